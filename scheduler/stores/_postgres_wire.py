"""The statements' way to a PostgreSQL server: prepared once, sent without waiting, read in order.

What costs is waiting for the server, so only reads do: a write is put into the connection's buffer,
and its error, if it has one, is raised by the next read or by :meth:`Wire.sync`. From an error to
the next sync the server skips whatever it is sent, so nothing is done after something failed.

It is libpq's pipeline mode by hand: the driver's own looks at the socket after each statement,
which takes several times as long as the statement.
"""

from __future__ import annotations

import itertools
import re
import select
from collections.abc import Callable, Sequence
from typing import Any, Final

import psycopg
from psycopg import errors, pq

from scheduler.errors import StoreUnavailable

#: PostgreSQL cannot hold the character NUL, which a model may well produce. It is written as two
#: others, the first of which is then written as two as well.
_ESCAPE: Final = "\x10"
_ESCAPED: Final = str.maketrans({"\x00": _ESCAPE + "@", _ESCAPE: _ESCAPE + "P"})
_PLAIN: Final = {_ESCAPE + "@": "\x00", _ESCAPE + "P": _ESCAPE}
_ANY_ESCAPED: Final = re.compile(f"{_ESCAPE}[@P]")

_FINE: Final = (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK)


def encode(value: Any) -> bytes | None:
    """A value as the server reads it; what type it is, the server knows."""
    if value is None:
        return None
    if isinstance(value, str):
        if "\x00" in value or _ESCAPE in value:
            value = value.translate(_ESCAPED)
        return bytes(value, "utf-8")
    return b"%r" % value


def decode_text(value: bytes) -> str:
    text = value.decode()
    if _ESCAPE in text:
        return _ANY_ESCAPED.sub(lambda found: _PLAIN[found[0]], text)
    return text


def _number(value: bytes) -> int | float:
    return float(value) if b"." in value else int(value)


#: By type; sums of integers come as numeric. Whatever else there is is text.
_LOADERS: Final[dict[int, Callable[[bytes], Any]]] = {
    20: int,
    21: int,
    23: int,
    1700: _number,
    701: float,
}


class Wire:
    """A connection in pipeline mode."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection, self._pg = connection, connection.pgconn
        self._socket = select.poll()
        self._socket.register(self._pg.socket, select.POLLIN)
        self._names: dict[str, bytes] = {}
        #: Statements that were sent for preparation since the last sync.
        self._unsure: list[str] = []
        self._numbers = itertools.count()
        self._loaders: dict[str, list[Callable[[bytes], Any]]] = {}
        #: Whether the server has said that it ends the session; the end itself may come later.
        self._is_ended = False
        #: Answers that have not been read.
        self._num_due = 0
        self._pg.enter_pipeline_mode()

    @property
    def is_open(self) -> bool:
        return not self._is_ended and bool(self._pg.status == pq.ConnStatus.OK)

    @property
    def is_in_transaction(self) -> bool:
        return bool(self._pg.transaction_status != pq.TransactionStatus.IDLE)

    def close(self) -> None:
        self._connection.close()

    # -- statements

    def send(self, statement: str, values: Sequence[Any] = ()) -> None:
        """Have a statement run after those before it; ``?`` stands for each value."""
        name = self._names.get(statement) or self._prepare(statement)
        self._pg.send_query_prepared(name, [encode(value) for value in values])
        self._num_due += 1

    def fetch(self, statement: str, values: Sequence[Any] = ()) -> list[list[Any]]:
        """Run a statement after those before it; what it finds.

        Raises:
            psycopg.Error: it failed, or one before it did.
        """
        self.send(statement, values)
        self._pg.send_flush_request()
        self._flush()
        while True:
            result = self._answer()
            if result.status not in _FINE:
                raise self._error(result)
            self._num_due -= 1
            if not self._num_due:
                return self._rows(statement, result)

    def sync(self) -> None:
        """Wait until all has been done that was sent.

        Raises:
            psycopg.Error: something failed; what came after it has not been done.
        """
        self._pg.pipeline_sync()
        self._flush()
        failed: pq.abc.PGresult | None = None
        while (result := self._answer()).status != pq.ExecStatus.PIPELINE_SYNC:
            if result.status not in _FINE and failed is None:
                failed = result
        self._num_due = 0
        if failed is not None:
            for statement in self._unsure:
                del self._names[statement]
        self._unsure.clear()
        if failed is not None:
            raise self._error(failed)

    def clear(self) -> None:
        """Get over an error that was heard of, so that statements are done again.

        Raises:
            psycopg.Error: the connection is lost.
        """
        try:
            self.sync()
        except psycopg.Error:
            if not self.is_open:
                raise

    def roll_back(self) -> None:
        """Undo the transaction, if one is open, after whatever may have failed in it.

        Raises:
            psycopg.Error: the connection is lost, and the transaction with it.
        """
        self.clear()
        if self.is_in_transaction:
            self.send("ROLLBACK")
            self.sync()

    def _prepare(self, statement: str) -> bytes:
        name = b"s%d" % next(self._numbers)
        places = (f"${number}" for number in itertools.count(1))
        text = re.sub(r"\?", lambda _: next(places), statement)
        self._pg.send_prepare(name, text.encode())
        self._num_due += 1
        self._names[statement] = name
        self._unsure.append(statement)
        return name

    # -- answers

    def _flush(self) -> None:
        # A blocking connection: it reads what comes while it cannot send, so neither side waits
        # for the other for ever.
        self._pg.flush()

    def _answer(self) -> pq.abc.PGresult:
        """The next answer, waited for without keeping other threads from running."""
        while True:
            while self._pg.is_busy():
                self._socket.poll()
                self._pg.consume_input()
            result = self._pg.get_result()
            if not self.is_open:
                raise psycopg.OperationalError(self._pg.get_error_message())
            if result is not None:
                return result

    def _rows(self, statement: str, result: pq.abc.PGresult) -> list[list[Any]]:
        loaders = self._loaders.get(statement)
        if loaders is None:
            types = [result.ftype(column) for column in range(result.nfields)]
            loaders = [_LOADERS.get(each, decode_text) for each in types]
            self._loaders[statement] = loaders
        value = result.get_value
        return [
            [
                None if (found := value(row, column)) is None else load(found)
                for column, load in enumerate(loaders)
            ]
            for row in range(result.ntuples)
        ]

    def _error(self, result: pq.abc.PGresult) -> psycopg.Error:
        severity = result.error_field(pq.DiagnosticField.SEVERITY_NONLOCALIZED)
        self._is_ended = self._is_ended or severity in (b"FATAL", b"PANIC")
        code = result.error_field(pq.DiagnosticField.SQLSTATE)
        text = result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY) or result.error_message
        try:
            kind = errors.lookup(code.decode()) if code else psycopg.OperationalError
        except KeyError:
            kind = psycopg.DatabaseError
        return kind(text.decode(errors="replace").strip() or "the connection was lost")


class Database:
    """A wire, as the statements use it."""

    def __init__(self, wire: Wire) -> None:
        self._send, self._fetch = wire.send, wire.fetch
        #: Statements sent that may have changed something.
        self.num_writes = 0

    def rows(self, statement: str, *values: Any) -> list[list[Any]]:
        return self._fetch(statement, values)

    def row(self, statement: str, *values: Any) -> list[Any] | None:
        found = self._fetch(statement, values)
        return found[0] if found else None

    def write(self, statement: str, *values: Any) -> None:
        self.num_writes += 1
        self._send(statement, values)

    def count(self, statement: str, *values: Any) -> int:
        self.num_writes += 1
        return len(self._fetch(f"{statement} RETURNING 1", values))

    def write_many(self, statement: str, rows: Sequence[Sequence[Any]]) -> None:
        for values in rows:
            self.write(statement, *values)


class ReadOnly(Database):
    """A wire for queries."""

    def write(self, *_: Any) -> None:
        raise StoreUnavailable("the store refused: a query is readonly")

    def count(self, *_: Any) -> int:
        raise StoreUnavailable("the store refused: a query is readonly")
