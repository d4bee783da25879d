"""Brings a database's schema up to date with Alembic.

Each file of ``versions`` is one step, run in a transaction of its own, the same for SQLite and
PostgreSQL. A database that is up to date is recognised without loading Alembic, which takes longer
than all else a control plane does at its start.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from scheduler.errors import StartupError

#: The newest version; a test compares it with the files.
HEAD: Final = "0008"
#: Where Alembic notes the version of a database.
VERSION_QUERY: Final = "SELECT version_num FROM alembic_version"


def check_known(version: str, where: str) -> None:
    """Refuse a database that a newer Plait has written.

    Raises:
        StartupError: it was.
    """
    if not version.isdigit() or int(version) > int(HEAD):
        raise StartupError(
            f"the store {where} has schema {version}, this Plait knows up to {HEAD}: "
            "use the newer Plait that wrote it"
        )


def upgrade(connection: Any, before: str | None = None) -> None:
    """Run the steps that the database lacks.

    Args:
        connection: of SQLAlchemy.
        before: the version of a database that was written before Alembic noted it.
    """
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    if before is not None:
        command.stamp(config, before)
    command.upgrade(config, "head")
