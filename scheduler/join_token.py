"""The token by which the runner of a control plane's own machine joins: a file in the state folder,
that only its owner may read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from scheduler.keys import Role
from scheduler.operations import Operations

FILE: Final = "join-token"
#: Whose a join token is; it speaks for no tenant.
NOBODY: Final = "nodes"


def read(state: Path) -> str:
    """The token in a state folder; empty when there is none."""
    try:
        return (state / FILE).read_text().strip()
    except FileNotFoundError:
        return ""


async def keep(operations: Operations, state: Path) -> None:
    """Have a valid one there.

    Raises:
        StoreUnavailable: whether there is one is unknown.
    """
    known = read(state)
    key = await operations.authenticate(known) if known else None
    if key is None or key.role is not Role.NODE:
        _, written = await operations.create_key(
            NOBODY, Role.NODE, "of the control plane's machine"
        )
        _write(state / FILE, written)


def _write(path: Path, token: str) -> None:
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(token + "\n")
    new.replace(path)
