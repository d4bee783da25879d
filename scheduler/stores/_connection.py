"""What the statements need of a database connection, whichever database it is.

SQL is written once, with ``?`` for values, in the words that SQLite and PostgreSQL share; a
connection of a store translates what its driver says otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

#: A row as the driver gives it: values in the order of the columns.
Row = Sequence[Any]


class Connection(Protocol):
    """One open transaction of a database."""

    def rows(self, statement: str, *values: Any) -> Sequence[Row]:
        """Everything a query finds."""
        ...

    def row(self, statement: str, *values: Any) -> Row | None:
        """The first row a query finds."""
        ...

    def write(self, statement: str, *values: Any) -> None:
        """Run a statement whose effect nobody has to know; it may be sent later, before the next
        query."""
        ...

    def count(self, statement: str, *values: Any) -> int:
        """Run a statement; how many rows it changed."""
        ...

    def write_many(self, statement: str, rows: Sequence[Sequence[Any]]) -> None:
        """Run a statement once for each of ``rows``."""
        ...
