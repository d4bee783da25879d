"""Which control plane decides for all."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from scheduler.autoscaler.leader import Leader
from scheduler.clock import ManualClock
from scheduler.cluster_view import Placed
from scheduler.ledger import Ledger
from scheduler.node_book import NodeBook
from scheduler.stores.sqlite import MEMORY, Store

TERM_S = 6.0


class Planes:
    """Several control planes, as if on one database."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.store = Store(MEMORY)
        self.store.is_shared = True  # type: ignore[misc]  # of this one store only

    def plane(self, name: str) -> tuple[NodeBook, Leader]:
        book = NodeBook(Ledger(self.store, self.clock), name)
        return book, Leader(book, self.clock, term_s=TERM_S)


@pytest_asyncio.fixture
async def planes() -> AsyncIterator[Planes]:
    given = Planes()
    yield given
    await given.store.close()


async def test_the_first_that_looks_leads_and_goes_on_leading(planes: Planes) -> None:
    (_, a), (_, b) = planes.plane("a"), planes.plane("b")

    epochs = []
    for _ in range(5):
        epochs.append((await a.lead(), await b.lead()))
        planes.clock.advance(TERM_S / 3)

    assert epochs == [(1, None)] * 5


async def test_another_takes_over_from_one_that_shows_no_life(planes: Planes) -> None:
    (_, a), (_, b) = planes.plane("a"), planes.plane("b")
    await a.lead()
    await b.lead()

    planes.clock.advance(TERM_S - 0.1)
    assert await b.lead() is None
    planes.clock.advance(0.1)

    assert await b.lead() == 2
    assert await a.lead() is None


async def test_one_that_resigns_is_followed_at_once(planes: Planes) -> None:
    (book, a), (_, b) = planes.plane("a"), planes.plane("b")
    await a.lead()

    await book.resign()

    assert await b.lead() == 2


async def test_what_an_earlier_leader_decides_is_not_written(planes: Planes) -> None:
    (old, a), (new, b) = planes.plane("a"), planes.plane("b")
    epoch = await a.lead()
    assert epoch is not None
    await b.lead()
    planes.clock.advance(TERM_S)
    await b.lead()

    is_written = await old.place(epoch, {"r1": (Placed("demo__r0", "demo"),)})

    assert not is_written
    assert (await new.read())[1] == {}
