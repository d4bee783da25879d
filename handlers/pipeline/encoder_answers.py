"""What an encoder's numbers are to whoever asked: vectors, or labels with scores.

Also says how large an answer may become, so that one that could not be carried is refused before
anything is computed. It knows neither the model nor how the numbers come about.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from handlers.pipeline.labels import Labels
from handlers.wire import BadRequest, ClassificationRequest, EmbeddingRequest, Request

#: Most bytes of an answer: TorchServe and the messages between the parts carry 64 MiB, and there
#: is something around an answer.
MAX_ANSWER_BYTES: Final = 63 * 2**20
#: The longest way to write a number as JSON, and what separates it from the next.
NUMBER_BYTES: Final = len("-1.2345678901234567e-100,")

Numbers = Sequence[float]


class Answers(Protocol):
    """What a kind of model makes of its numbers."""

    @property
    def bytes_per_text(self) -> int:
        """Most bytes that one text takes in an answer."""

    def texts_of(self, request: Request) -> tuple[str, ...]:
        """The texts of a request.

        Raises:
            BadRequest: it asks for something else.
        """

    def document(self, outputs: Sequence[Numbers], num_tokens: int) -> dict[str, Any]:
        """The answer to the texts that these numbers are of, ``num_tokens`` long in all."""


@dataclass(frozen=True, slots=True)
class Vectors:
    """One vector for each text: ``{"embeddings": [[...], ...], "num_input_tokens": n}``."""

    size: int

    @property
    def bytes_per_text(self) -> int:
        return self.size * NUMBER_BYTES

    def texts_of(self, request: Request) -> tuple[str, ...]:
        if not isinstance(request, EmbeddingRequest):
            raise BadRequest("", "this model embeds texts; it does nothing else")
        return request.inputs

    def document(self, outputs: Sequence[Numbers], num_tokens: int) -> dict[str, Any]:
        return {"embeddings": [list(each) for each in outputs], "num_input_tokens": num_tokens}


@dataclass(frozen=True, slots=True)
class Classes:
    """All labels of each text with their scores, the best first:
    ``{"labels": [[...], ...], "scores": [[...], ...], "num_input_tokens": n}``.
    """

    labels: Labels

    @property
    def bytes_per_text(self) -> int:
        names = sum(len(json.dumps(name).encode()) + 1 for name in self.labels.names)
        return names + len(self.labels.names) * NUMBER_BYTES

    def texts_of(self, request: Request) -> tuple[str, ...]:
        if not isinstance(request, ClassificationRequest):
            raise BadRequest("", "this model classifies texts; it does nothing else")
        return request.inputs

    def document(self, outputs: Sequence[Numbers], num_tokens: int) -> dict[str, Any]:
        found = [self.labels.sort(each) for each in outputs]
        return {
            "labels": [labels for labels, _ in found],
            "scores": [scores for _, scores in found],
            "num_input_tokens": num_tokens,
        }


def check_size(texts: Sequence[str], answers: Answers) -> None:
    """Return when the answer to so many texts can be carried.

    Raises:
        BadRequest: it may be too large; says how many texts are allowed.
    """
    most = MAX_ANSWER_BYTES // answers.bytes_per_text
    if len(texts) > most:
        raise BadRequest(
            "input",
            f"holds {len(texts)} texts; this model's answer takes up to {answers.bytes_per_text} "
            f"bytes for each, so allowed are {most}",
            413,
        )
