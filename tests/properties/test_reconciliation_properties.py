"""However a store is damaged, one look at everything puts it right, and a second finds nothing.

A flow that is gone is made again but for what it was charged, which nothing else knows.
"""

from __future__ import annotations

import asyncio

from hypothesis import event, given, settings
from hypothesis import strategies as st

from tests.unit.drifting_store import Drifting, drifting

_CHUNK = "INSERT INTO journal (task_id, seq, token_ids, text, answer)"
_SOME = "(SELECT id FROM tasks ORDER BY id LIMIT 1 OFFSET {place})"

#: What happens to a store; ``place`` chooses a row, ``number`` a wrong value.
DAMAGE = {
    "a flow's queue": "UPDATE flows SET num_queued = {number}",
    "a flow's cost": "UPDATE flows SET queued_cost = queued_cost + {number}",
    "a flow's leases": "UPDATE flows SET num_leased = {number}",
    "a flow held": "UPDATE flows SET is_held = 1 - is_held",
    "a band": "UPDATE bands SET num_active = {number}",
    "a band gone": "DELETE FROM bands",
    "a request gone": f"DELETE FROM documents WHERE task_id = {_SOME}",
    "requests of nobody": "INSERT INTO documents VALUES ('gone{number}', '{{}}')",
    "output of nobody": f"{_CHUNK} VALUES ('gone{{number}}', 0, '[]', '', 0)",
    "a chunk gone": f"DELETE FROM journal WHERE seq = {{number}} AND task_id = {_SOME}",
    "output gone": f"DELETE FROM journal WHERE task_id = {_SOME}",
    "a chunk too many": f"{_CHUNK} SELECT id, num_chunks + {{number}}, '[1]', '', 0 FROM tasks"
    f" WHERE id = {_SOME}",
    "a lease of nobody": f"UPDATE tasks SET runner = NULL WHERE state = 'leased' AND id = {_SOME}",
    "a lease for ever": "UPDATE tasks SET lease_expires_at = NULL WHERE state = 'leased'",
    "a pause for ever": "UPDATE tasks SET not_before = not_before + 1e6 WHERE state = 'delayed'",
}

damages = st.lists(
    st.tuples(st.sampled_from(sorted(DAMAGE)), st.integers(0, 6), st.integers(0, 3)), max_size=6
)


async def populate(store: Drifting) -> None:
    """Tasks of two tenants in every state they may be in."""
    running = await store.running(num_chunks=3)
    await store.book.succeed(running.id, 1, {})
    for resume in ("close", "none"):
        await store.running(num_chunks=2, resume=resume)
    twice = await store.running(tenant="bob")
    await store.book.release(twice.id, 1, "worker died")
    (grant,) = await store.claim()
    await store.book.release(grant.task.id, grant.task.fence, "worker died")
    for tenant in ("ann", "bob"):
        await store.submit(tenant)
    await store.book.pause((await store.submit()).id)


async def damaged_and_repaired(
    damage: list[tuple[str, int, int]], jump_s: float
) -> tuple[list[str], list[str]]:
    """What does not add up after one look, and the checks that find something at the second."""
    async with drifting() as store:
        await populate(store)
        assert await store.problems() == []
        for kind, place, number in damage:
            if await store.try_damage(DAMAGE[kind].format(place=place, number=number)):
                event(kind)
        store.machine.set_by_s = jump_s
        store.start()
        await store.reconciliation.look(is_whole=True)
        problems = await store.problems()
        assert all(not each.num_failed for each in store.reconciliation.tallies())
        return problems, list(await store.found())


@given(damages, st.sampled_from([0.0, 3600.0, -3600.0]))
@settings(max_examples=20, deadline=None)
def test_one_look_puts_everything_right_and_a_second_finds_nothing(
    damage: list[tuple[str, int, int]], jump_s: float
) -> None:
    problems, found_again = asyncio.run(damaged_and_repaired(damage, jump_s))

    assert problems == []
    assert found_again == []
