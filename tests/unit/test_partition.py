"""Which layers each stage gets."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from handlers.pipeline.partition import Weights, plan


def weights(num_layers: int = 8, layer: int = 100, embedding: int = 0, head: int = 0) -> Weights:
    return Weights((layer,) * num_layers, embedding, head)


def test_equal_layers_are_shared_equally() -> None:
    assert plan(weights(8), 4) == [(0, 2), (2, 4), (4, 6), (6, 8)]


def test_one_stage_gets_everything() -> None:
    assert plan(weights(5, head=1000), 1) == [(0, 5)]


def test_the_head_takes_layers_away_from_the_last_stage() -> None:
    assert plan(weights(12, head=600), 2) == [(0, 9), (9, 12)]


def test_the_last_stage_keeps_one_layer_beside_a_huge_head() -> None:
    assert plan(weights(6, head=100_000), 2)[-1][1] == 6
    assert all(end > start for start, end in plan(weights(6, head=100_000), 3))


def test_the_embedding_decides_between_cuts_of_equal_time() -> None:
    without = plan(weights(5, embedding=0), 2)
    with_embedding = plan(weights(5, embedding=300), 2)

    assert max(end - start for start, end in without) == 3
    assert with_embedding == [(0, 2), (2, 5)]


def test_the_embedding_never_makes_a_slower_cut() -> None:
    assert plan(weights(8, embedding=100_000), 2) == [(0, 4), (4, 8)]


def test_uneven_layers_are_cut_by_weight() -> None:
    assert plan(Weights((300, 100, 100, 100), 0, 0), 2) == [(0, 1), (1, 4)]


def test_an_explicit_partition_is_taken_as_it_is() -> None:
    assert plan(weights(8, head=10_000), 2, [6, 2]) == [(0, 6), (6, 8)]


@pytest.mark.parametrize("counts", [[4, 3], [8], [4, 2, 2], [8, 0], [9, -1]])
def test_an_explicit_partition_that_does_not_fit_is_refused(counts: list[int]) -> None:
    with pytest.raises(ValueError, match="2 stages of at least one layer each, 8 layers in all"):
        plan(weights(8), 2, counts)


def test_more_stages_than_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="allowed are 1 to 4"):
        plan(weights(4), 5)


def test_estimate_counts_the_head_by_the_vocabulary() -> None:
    config = SimpleNamespace(
        hidden_size=10, intermediate_size=20, num_attention_heads=2, num_hidden_layers=3,
        vocab_size=1000,
    )  # fmt: skip

    estimate = Weights.estimate(config)

    assert estimate.layers == (2 * 10 * 5 * 4 + 3 * 10 * 20,) * 3
    assert estimate.head == estimate.embedding == 10_000
