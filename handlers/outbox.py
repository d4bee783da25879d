"""Where an engine's threads leave answers and the handler's thread picks them up.

Each open request has its own list. Answers for a request that was dropped are thrown away, so a
producer need not know that a client left. Chunks of one answer become one: what piled up while
nobody looked costs one frame. It does not know what an answer means beyond that.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from handlers.wire import Chunk, Failure, Finish, Frame, join


@dataclass(frozen=True, slots=True)
class Document:
    """The whole answer of a one-shot request, as the JSON object to send."""

    body: Mapping[str, Any]


#: What an engine produces; a generation gives frames, a one-shot request one document.
Answer = Frame | Document


def is_final(answer: Answer) -> bool:
    """Whether nothing follows this answer."""
    return isinstance(answer, Finish | Failure | Document)


class Outbox:
    """Answers by request, safe to use from several threads."""

    def __init__(self) -> None:
        self._answers: dict[str, list[Answer]] = {}
        #: Of each open request: which of those that had its id it is.
        self._tickets: dict[str, int] = {}
        self._num_opened = 0
        self._news = threading.Condition()

    def __repr__(self) -> str:
        return f"<Outbox open={len(self._answers)}>"

    def open(self, request_id: str) -> int:
        """Begin to keep answers for a request.

        Returns:
            A ticket for :meth:`put`: ids are used again, tickets are not.
        """
        with self._news:
            self._num_opened += 1
            self._answers[request_id] = []
            self._tickets[request_id] = self._num_opened
            return self._num_opened

    def drop(self, request_id: str) -> None:
        """Forget a request and what it has; one that is not open is ignored."""
        with self._news:
            self._answers.pop(request_id, None)
            self._tickets.pop(request_id, None)

    def put(self, request_id: str, answers: Iterable[Answer], ticket: int | None = None) -> None:
        """Add answers; they are thrown away when the request is not open, or when a ``ticket`` is
        given and its id is another request's by now."""
        with self._news:
            kept = self._answers.get(request_id)
            if kept is None or ticket not in (None, self._tickets[request_id]):
                return
            for answer in answers:
                _append(kept, answer)
            self._news.notify_all()

    def take(self, request_id: str) -> list[Answer]:
        """What is there for a request; taking its final answer closes it."""
        with self._news:
            answers = self._answers.get(request_id)
            if not answers:
                return []
            if is_final(answers[-1]):
                del self._answers[request_id], self._tickets[request_id]
            else:
                self._answers[request_id] = []
            return answers

    def wait(self, timeout_s: float) -> bool:
        """Sleep until some request has answers; returns whether one has."""
        with self._news:
            return self._news.wait_for(lambda: any(self._answers.values()), timeout_s)


def _append(answers: list[Answer], answer: Answer) -> None:
    """Add an answer; the chunks of several answers may be told in any order among each other."""
    if isinstance(answer, Chunk):
        for place, kept in enumerate(answers):
            if isinstance(kept, Chunk) and kept.index == answer.index:
                answers[place] = join(kept, answer)
                return
    answers.append(answer)
