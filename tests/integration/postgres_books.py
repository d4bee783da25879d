"""What the tests of PostgreSQL run on its stores."""

from __future__ import annotations

from scheduler.clock import SystemClock
from scheduler.records import changed
from scheduler.stores.base import Store, Transaction
from scheduler.task_book import TaskBook


def book_on(store: Store) -> TaskBook:
    return TaskBook(store, SystemClock(), lease_ttl_s=60)


def add_one(tx: Transaction) -> None:
    ann = tx.tenant("ann")
    tx.put_tenant(changed(ann, weight_permille=ann.weight_permille + 1))


def weight(tx: Transaction) -> int:
    return tx.tenant("ann").weight_permille
