"""What an encoder's answers are made of, and how many fit into one."""

from __future__ import annotations

import json

import pytest

from handlers.pipeline.encoder_answers import MAX_ANSWER_BYTES, Classes, Vectors, check_size
from handlers.pipeline.labels import Labels
from handlers.wire import BadRequest, ClassificationRequest, EmbeddingRequest

CLASSES = Classes(Labels(("no", "größer")))
#: As long as a number gets.
LONG = -1.2345678901234567e-100


def size(document: dict[str, object]) -> int:
    return len(json.dumps(document, separators=(",", ":")).encode())


@pytest.mark.parametrize("answers", [Vectors(300), CLASSES], ids=["vectors", "classes"])
def test_no_answer_is_larger_than_was_reckoned(answers: Vectors | Classes) -> None:
    numbers = [LONG] * (300 if isinstance(answers, Vectors) else 2)

    one, two = (size(answers.document([numbers] * count, 10**9)) for count in (1, 2))

    assert two - one <= answers.bytes_per_text + len("[],[],")


def test_as_many_texts_as_fit_are_taken_and_no_more() -> None:
    vectors = Vectors(4096)
    most = MAX_ANSWER_BYTES // vectors.bytes_per_text

    check_size(["text"] * most, vectors)
    with pytest.raises(BadRequest, match=f"allowed are {most}") as refused:
        check_size(["text"] * (most + 1), vectors)
    assert (refused.value.field, refused.value.status) == ("input", 413)


def test_a_request_of_another_kind_is_refused() -> None:
    assert Vectors(3).texts_of(EmbeddingRequest(("a",))) == ("a",)
    with pytest.raises(BadRequest, match="embeds"):
        Vectors(3).texts_of(ClassificationRequest(("a",)))
    with pytest.raises(BadRequest, match="classifies"):
        CLASSES.texts_of(EmbeddingRequest(("a",)))


def test_labels_and_scores_stand_in_the_same_order() -> None:
    document = CLASSES.document([[0.0, 2.0], [2.0, 0.0]], 7)

    assert document["labels"] == [["größer", "no"], ["no", "größer"]]
    assert document["scores"][0] == document["scores"][1]
    assert document["num_input_tokens"] == 7
