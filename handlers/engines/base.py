"""What every engine promises the handler that drives it.

An engine takes requests, works on them at its own pace in threads or processes of its own, and
keeps what they produce until it is taken. The handler never waits for a particular request: it
asks whether anything is new, and hands over what there is.

An engine is a class named ``Engine`` in a file of this folder; the file's name is what a model's
YAML calls it. It is started once in every rank of a replica, and only rank 0 is given requests.
An engine that cannot go on (a rank died, a device failed) ends its process instead of answering:
the worker is then started anew and the requests go on from their journal.

The executable form of this contract is ``tests/contracts/test_engine_contract.py``.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Protocol

from handlers.model_config import ModelConfig
from handlers.outbox import Answer, Document, is_final
from handlers.pipeline.place import Place
from handlers.wire import Request

#: The contract and the types it speaks in.
__all__ = ["Answer", "Document", "Engine", "Place", "Request", "is_final"]


class Engine(Protocol):
    """One replica's engine. The methods below ``start`` are called by one thread, in rank 0."""

    @classmethod
    @abstractmethod
    def start(cls, config: ModelConfig, place: Place) -> Engine:
        """Load this rank's part and start working, in threads of its own.

        Returns when every rank of the replica is ready. On ranks other than 0 the engine works
        for rank 0 until the process ends.

        Raises:
            ValueError: the configuration and the model do not fit together; says what to change.
        """

    @abstractmethod
    def submit(self, request_id: str, request: Request) -> None:
        """Take a request. Its answers are kept under ``request_id`` until they are taken.

        Raises:
            BadRequest: the model cannot serve it as it is (too long, unknown token, wrong kind);
                nothing is kept under the id.
        """

    @abstractmethod
    def cancel(self, request_id: str) -> None:
        """Forget a request: what it produced is dropped, what it holds is freed soon.

        An id that is not known, because it ended or never was, is ignored.
        """

    @abstractmethod
    def take(self, request_id: str) -> list[Answer]:
        """What the request produced since the last call, in order, each answer once.

        Tokens that came in several pieces may be one :class:`~handlers.wire.Chunk`. Once the
        final answer was taken the id is forgotten and may be used again.

        Returns:
            The answers; an empty list when there is nothing new.
        """

    @abstractmethod
    def wait(self, timeout_s: float) -> bool:
        """Sleep until some request has something to take, ``timeout_s`` at most.

        Returns:
            Whether there is something to take.
        """

    @abstractmethod
    def close(self) -> None:
        """Stop working and free what is held; open requests get no further answer."""
