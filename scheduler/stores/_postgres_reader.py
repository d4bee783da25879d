"""Answers queries on PostgreSQL, each batch over one state that no control plane changes."""

from __future__ import annotations

from collections.abc import Sequence

import psycopg

from scheduler.errors import StoreUnavailable
from scheduler.stores._postgres_link import Link
from scheduler.stores._postgres_wire import ReadOnly, Wire
from scheduler.stores._postgres_writer import translated
from scheduler.stores._transaction import Transaction
from scheduler.stores._worker import Entry, refuse


class Reader:
    """Runs queries; lives in the reader's thread."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._wire: Wire | None = None
        self._transaction: Transaction | None = None

    def read(self, batch: Sequence[Entry]) -> None:
        """Answer all of a batch."""
        waiting, is_first_try = list(batch), True
        while waiting:
            try:
                num_done = self._read_some(waiting)
            except StoreUnavailable as error:
                refuse(waiting, error)
                return
            except psycopg.Error as error:
                self._link.close()
                if not is_first_try:
                    refuse(waiting, error)
                    return
                is_first_try, num_done = False, 0
            waiting = waiting[num_done:]

    def _read_some(self, entries: Sequence[Entry]) -> int:
        """Run queries up to the first that the server refuses; how many are answered.

        Raises:
            psycopg.Error: the connection is lost; none is answered.
        """
        wire, transaction = self._open()
        wire.send("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        transaction.forget()
        num_done = 0
        for entry in entries:
            num_done += 1
            entry.error = None
            try:
                entry.value = entry.function(transaction)
            except psycopg.Error as error:
                if not wire.is_open:
                    raise
                entry.error = translated(error)
                break
            except BaseException as error:  # noqa: BLE001  # it is the caller's, and raised there
                entry.error = translated(error)
        wire.roll_back()
        return num_done

    def _open(self) -> tuple[Wire, Transaction]:
        wire = self._link.wire()
        if self._transaction is None or self._wire is not wire:
            self._wire, self._transaction = wire, Transaction(ReadOnly(wire))
        return wire, self._transaction
