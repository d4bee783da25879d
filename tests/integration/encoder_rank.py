"""One rank of an encoder replica, as a process of its own.

Rank 0 reads lines of ``{"id": [text, ...], ...}``, submits all requests of a line at once and
writes one line with their answers. The other ranks work until their process ends.
"""

from __future__ import annotations

import json
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

from handlers import model_config
from handlers.engines.base import Document, Engine, Place
from handlers.engines.encoder import Engine as EncoderEngine
from handlers.wire import ClassificationRequest, EmbeddingRequest

REQUESTS = {"embed": EmbeddingRequest, "classify": ClassificationRequest}


def embed(
    engine: Engine, requests: dict[str, list[str]], request_type: Any = EmbeddingRequest
) -> dict[str, Any]:
    for request_id, texts in requests.items():
        engine.submit(request_id, request_type(tuple(texts)))
    answers: dict[str, Any] = {}
    while len(answers) < len(requests):
        if not engine.wait(30):
            raise TimeoutError(f"{len(answers)} of {len(requests)} answers in 30 s")
        for request_id in requests.keys() - answers.keys():
            for answer in engine.take(request_id):
                assert isinstance(answer, Document), answer
                answers[request_id] = dict(answer.body)
    return answers


def say(document: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


def main() -> None:
    place = Place.from_environment()
    config = model_config.load(Path(sys.argv[1]))
    engine = EncoderEngine.start(replace(config, num_stages=place.num_ranks), place)
    say({"ready": place.rank})
    if place.rank > 0:
        threading.Event().wait()
    for line in sys.stdin:
        say(embed(engine, json.loads(line), REQUESTS[config.task]))
    engine.close()


if __name__ == "__main__":
    main()
