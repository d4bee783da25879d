"""Brings a PostgreSQL database's schema up to date, one control plane at a time."""

from __future__ import annotations

from typing import Any, Final

import psycopg

from scheduler.errors import StartupError
from scheduler.stores import _migrations
from scheduler.stores._postgres_link import name_of, parameters

#: "Schema" in ASCII. Held by the one that changes the schema, while others wait.
_LOCK_ID: Final = 0x536368656D61


def migrate(url: str) -> None:
    """Bring the schema up to date, each step as one transaction.

    Raises:
        StartupError: the server cannot be reached or refuses, or a newer Plait wrote the database.
    """
    name, known = name_of(url), parameters(url)
    try:
        with psycopg.connect(**known, autocommit=True) as connection:
            if _is_current(connection, name):
                return
            connection.execute("SELECT pg_advisory_lock(%s)", [_LOCK_ID])
            # Another may have done it meanwhile.
            if not _is_current(connection, name):
                _upgrade(known, name)
    except psycopg.Error as error:
        raise StartupError(f"cannot open the store {name}: {error}") from error


def _is_current(connection: psycopg.Connection[Any], name: str) -> bool:
    found = connection.execute("SELECT to_regclass('alembic_version')").fetchone()
    if found is None or found[0] is None:
        return False
    row = connection.execute(_migrations.VERSION_QUERY).fetchone()
    if row is None:
        return False
    _migrations.check_known(str(row[0]), name)
    return bool(row[0] == _migrations.HEAD)


def _upgrade(known: dict[str, Any], name: str) -> None:
    import sqlalchemy as sa

    engine = sa.create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(**known), poolclass=sa.NullPool
    )
    try:
        with engine.connect() as opened:
            _migrations.upgrade(opened)
    except sa.exc.SQLAlchemyError as error:
        raise StartupError(f"cannot bring the store {name} up to date: {error}") from error
