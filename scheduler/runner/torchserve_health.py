"""What this node's TorchServe is doing: starting, answering, gone, and how often it came back.

A start is known by the file in which TorchServe's ports are published, written anew at each. One
that does not answer is starting until it has answered for the first time, and gone from then on.
"""

from __future__ import annotations

from scheduler.rpc import plait_pb2 as pb


class TorchServeHealth:
    """TorchServe, as whoever asks it found it. It reads nothing by itself."""

    def __init__(self) -> None:
        self._state = pb.TorchServe.STARTING
        self._detail = ""
        self._num_restarts = 0
        #: The start that has answered last; None: none has.
        self._answered: object = None

    def __repr__(self) -> str:
        state = pb.TorchServe.State.Name(self._state).lower()
        return f"<TorchServeHealth {state} restarts={self._num_restarts}>"

    def answered(self, start: object) -> None:
        """It answers; ``start`` differs from one of its starts to the next."""
        if self._answered is not None and start != self._answered:
            self._num_restarts += 1
        self._answered = start
        self._state, self._detail = pb.TorchServe.READY, ""

    def silent(self, start: object, reason: str) -> None:
        """It does not answer."""
        has_answered = self._answered is not None and start == self._answered
        self._state = pb.TorchServe.GONE if has_answered else pb.TorchServe.STARTING
        self._detail = reason

    def report(self) -> pb.TorchServe:
        """As the control plane is told of it."""
        return pb.TorchServe(
            state=self._state, num_restarts=self._num_restarts, detail=self._detail
        )
