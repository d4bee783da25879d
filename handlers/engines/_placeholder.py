"""What a rank holds whose engine works elsewhere: nothing.

TorchServe starts a process for each rank of a replica. Where the engine starts its own processes
on the ranks' devices, the ranks other than 0 only keep their place until the replica ends.
"""

from __future__ import annotations

from handlers.engines import base
from handlers.engines.base import Answer, Place, Request
from handlers.model_config import ModelConfig


class Placeholder(base.Engine):
    """An engine that is never given a request."""

    @classmethod
    def start(cls, config: ModelConfig, place: Place) -> Placeholder:  # noqa: ARG003  # the contract's
        return cls()

    def submit(self, request_id: str, request: Request) -> None:  # noqa: ARG002  # the contract's
        raise RuntimeError("only rank 0 takes requests")

    def cancel(self, request_id: str) -> None:
        """Nothing is open here."""

    def take(self, request_id: str) -> list[Answer]:  # noqa: ARG002  # the contract's
        return []

    def wait(self, timeout_s: float) -> bool:  # noqa: ARG002  # the contract's
        return False

    def close(self) -> None:
        """Nothing is held here."""
