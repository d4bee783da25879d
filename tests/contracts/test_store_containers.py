"""What every store keeps of containers and of their providers."""

from __future__ import annotations

from scheduler.container import ContainerOrder, Flakiness, OrderState
from scheduler.records import changed
from scheduler.stores.base import Store, Transaction


async def test_containers_and_what_was_noted_of_providers_are_read_as_they_were_written(
    store: Store,
) -> None:
    order = ContainerOrder("b", 1, 3, OrderState.UP, "c1", "i", "a10", 1.5, 2.5, None, 4.5, "why")
    first = ContainerOrder("a", 0, 1, OrderState.ORDERED)
    note = Flakiness("b", "a10", 1.5, 0.25, 0.125, 8.0, 99.5)

    def write(tx: Transaction) -> None:
        for each in (order, first, changed(first, state=OrderState.GONE, generation=2)):
            tx.put_container_order(each)
        tx.put_provider_note(changed(note, losses=0.0))
        tx.put_provider_note(note)

    await store.run(write)

    assert await store.read(lambda tx: tx.container_orders()) == [
        changed(first, state=OrderState.GONE, generation=2),
        order,
    ]
    assert await store.read(lambda tx: tx.provider_ledger()) == [note]
