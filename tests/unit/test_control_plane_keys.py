"""Keys that are required are worth nothing while nobody could make one."""

from __future__ import annotations

import pytest

from scheduler import control_plane
from scheduler.clock import ManualClock
from scheduler.errors import StartupError
from scheduler.keys import Role
from scheduler.operations import Operations
from scheduler.stores.sqlite import MEMORY, Store
from scheduler.task_book import TaskBook


async def test_a_start_that_would_lock_everybody_out_is_refused() -> None:
    store = Store(MEMORY)
    book = TaskBook(store, ManualClock(), lease_ttl_s=10)
    operations = Operations(book.ledger, book.rules.queue)
    await operations.create_key("red", Role.TENANT)
    revoked, _ = await operations.create_key("ops", Role.OPERATOR)
    await operations.revoke_key(revoked.id)

    with pytest.raises(StartupError, match="plait keys create default --role operator"):
        await control_plane.check_operator(operations)

    await operations.create_key("ops", Role.OPERATOR)
    await control_plane.check_operator(operations)
    await store.close()
