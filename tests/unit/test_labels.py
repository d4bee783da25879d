"""What a classifier's numbers are said to mean."""

from __future__ import annotations

import pytest

from handlers.pipeline.labels import Labels

THREE = {0: "bad", 1: "so so", 2: "good"}


def test_classes_share_one_probability_the_best_first() -> None:
    labels, scores = Labels.of(THREE, None).sort([0.0, -1.0, 2.0])

    assert labels == ["good", "bad", "so so"]
    assert scores == pytest.approx([0.8438, 0.1142, 0.0420], abs=1e-4)


def test_independent_labels_have_a_probability_each() -> None:
    labels, scores = Labels.of(THREE, "multi_label_classification").sort([0.0, -1.0, 2.0])

    assert labels == ["good", "bad", "so so"]
    assert scores == pytest.approx([0.8808, 0.5, 0.2689], abs=1e-4)


def test_a_single_label_has_a_probability_of_its_own() -> None:
    assert Labels.of({0: "spam"}, None).sort([0.0]) == (["spam"], [0.5])


def test_a_regressions_number_stays_as_it_is() -> None:
    assert Labels.of({0: "stars"}, "regression").sort([4.2]) == (["stars"], [4.2])


@pytest.mark.parametrize("kind", [None, "multi_label_classification"])
def test_numbers_of_any_size_have_scores(kind: str | None) -> None:
    _, scores = Labels.of(THREE, kind).sort([1e4, -1e4, 1e4])

    assert all(0 <= score <= 1 for score in scores)


def test_labels_of_equal_score_keep_their_order() -> None:
    assert Labels.of(THREE, None).sort([1.0, 1.0, 1.0])[0] == ["bad", "so so", "good"]
