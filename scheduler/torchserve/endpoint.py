"""Where TorchServe is right now, and the keys it takes.

TorchServe may be started again at any time, on other ports and with other keys, while the runner
goes on. So both are read from the files in its folder, and read again whenever they change. A key
lasts an hour; :meth:`Management.renew_keys` asks for new ones before that.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from scheduler.errors import Unavailable
from scheduler.torchserve import process

PortName = Literal["inference", "management", "metrics"]
KeyName = Literal["inference", "management", "API"]


class NotRunning(Unavailable):
    """TorchServe has not published its ports or its keys; it is starting, or gone."""


@dataclass(slots=True)
class _File:
    """A JSON file that is read again when it has changed."""

    path: Path
    stamp: tuple[int, int, int] | None = None
    document: dict[str, Any] | None = None

    def read(self) -> dict[str, Any]:
        try:
            status = self.path.stat()
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
            if self.document is None or stamp != self.stamp:
                self.document = json.loads(self.path.read_bytes())
                self.stamp = stamp
        except (OSError, ValueError) as error:
            # A half-written file reads as a whole one a moment later.
            self.document = None
            raise NotRunning(f"TorchServe is not running: {self.path} cannot be read") from error
        assert self.document is not None
        return self.document


class Endpoint:
    """The ports and keys of the TorchServe whose state folder this is."""

    def __init__(self, state: Path) -> None:
        self.state = state
        home = process.folder(state)
        self._ports = _File(home / process.ENDPOINTS_FILE)
        self._keys = _File(home / process.KEY_FILE)

    def __repr__(self) -> str:
        return f"<Endpoint {self._ports.path}>"

    def url(self, port: PortName) -> str:
        """``http://host:port`` of one of its addresses.

        Raises:
            NotRunning: TorchServe has not been started.
        """
        return f"http://127.0.0.1:{int(self._ports.read()[port])}"

    def headers(self, key: KeyName) -> dict[str, str]:
        """The header that authorizes a request.

        Raises:
            NotRunning: TorchServe has not written its keys yet.
        """
        return {"Authorization": f"Bearer {self._keys.read()[key]['key']}"}

    def expires_at(self, key: KeyName) -> float:
        """When the key stops being taken, in seconds since the epoch."""
        return datetime.fromisoformat(self._keys.read()[key]["expiration time"]).timestamp()

    def start_id(self) -> tuple[int, int] | None:
        """Differs from one start of TorchServe to the next; None: it was never started."""
        try:
            status = self._ports.path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_ino

    def forget(self) -> None:
        """Read the files again at the next use: what they said was refused."""
        self._keys.document = None
        self._ports.document = None
