"""A transaction for the tests of what a move changes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from scheduler.stores.base import Transaction
from scheduler.testing.tasks import memory_transaction, problems


@pytest.fixture
def tx() -> Iterator[Transaction]:
    """On an empty database in memory; afterwards everything in it has to add up."""
    with memory_transaction() as transaction:
        yield transaction
        assert problems(transaction) == []
