"""One transaction of a store, as commands and queries see it: the statements over a connection."""

from __future__ import annotations

from collections.abc import Callable

from scheduler.stores import base
from scheduler.stores._connection import Connection, Row
from scheduler.stores._containers_sql import Containers
from scheduler.stores._flows_sql import Flows
from scheduler.stores._nodes_sql import Nodes
from scheduler.stores._others_sql import Others
from scheduler.stores._row_checks_sql import RowChecks
from scheduler.stores._scaling_sql import Scaling
from scheduler.stores._tasks_sql import Tasks


class Transaction(RowChecks, Others, Scaling, Containers, Nodes, base.Transaction):
    """The statements, on one connection."""

    def __init__(self, db: Connection, tell: Callable[[base.News], None] | None = None) -> None:
        """``tell`` is given what other processes should hear of; None: there are none."""
        Tasks.__init__(self)
        Flows.__init__(self)
        self._db = db
        self._tell = tell

    def begin(self) -> None:
        super().begin()
        self._known.begin()

    def undo(self) -> None:
        super().undo()
        self._undo_tasks()

    def forget(self) -> None:
        super().forget()
        self._forget_tasks()

    def fetch_one(self, statement: str) -> Row:
        """The row of a query that always has one, in a store's own words."""
        row = self._db.row(statement)
        assert row is not None, statement
        return row

    def tell(self, news: base.News) -> None:
        if self._tell is not None:
            self._tell(news)
