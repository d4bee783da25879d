"""Reads what a replica's engine tells of itself: a small JSON file in the replica's own folder.

The worker writes it whenever it likes and may die half way, so whatever is not a whole JSON object
of a bearable size is nothing to show, and no error. Nothing is decided by it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from scheduler.torchserve.archive import STATUS_FILE

#: Largest file that is passed on; it travels with every heartbeat.
MAX_STATUS_BYTES: Final = 16 * 1024


def read_status(folder: Path) -> str:
    """The status of the replica in ``folder`` as compact JSON text; empty: nothing to show."""
    try:
        with (folder / STATUS_FILE).open("rb") as file:
            body = file.read(MAX_STATUS_BYTES + 1)
        document = json.loads(body, parse_constant=_refuse) if len(body) <= MAX_STATUS_BYTES else 0
        if not isinstance(document, dict):
            return ""
        return json.dumps(document, separators=(",", ":"), allow_nan=False)
    except (OSError, ValueError, RecursionError):
        return ""


def forget_status(folder: Path) -> None:
    """Take away what an earlier worker left in the folder, before a new one is started from it."""
    (folder / STATUS_FILE).unlink(missing_ok=True)


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON, and would not be for any reader of ours")
