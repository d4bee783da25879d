"""Tokens are drawn from the distribution that temperature, top-k, top-p and min-p describe."""

from __future__ import annotations

import pytest
import torch

from handlers.pipeline.sampling import Sampler
from handlers.pipeline.step import Open, Row, Sampling
from tests.integration.sampler_rows import chi_square, draws, frequencies, tokens

LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0, -2.0, 1.5])


def softmax_of(*kept: int, temperature: float = 1.0) -> torch.Tensor:
    """The likelihoods of the six tokens when only some are left."""
    likelihoods = torch.zeros(len(LOGITS))
    likelihoods[list(kept)] = (LOGITS[list(kept)] / temperature).softmax(0)
    return likelihoods


def test_without_temperature_the_most_likely_token_is_taken() -> None:
    assert tokens(LOGITS.expand(5, -1), [Sampling()] * 5) == [0] * 5


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_are_the_softmax_of_the_scaled_logits(temperature: float) -> None:
    wanted = softmax_of(*range(6), temperature=temperature)

    assert chi_square(frequencies(LOGITS, Sampling(temperature, seed=11)), wanted) < 1


def test_frequencies_over_a_large_vocabulary_are_the_softmax() -> None:
    logits = torch.linspace(-2, 2, 3000)

    counts = frequencies(logits, Sampling(1.0, seed=2)).view(30, 100).sum(1)

    assert chi_square(counts, logits.softmax(0).view(30, 100).sum(1)) < 1


def test_top_k_leaves_the_k_most_likely() -> None:
    assert chi_square(frequencies(LOGITS, Sampling(1.0, top_k=3)), softmax_of(0, 1, 5)) < 1


def test_top_p_leaves_the_fewest_that_reach_it() -> None:
    # The likelihoods are 0.45, 0.27, 0.17, 0.06, ...: two reach 0.6, one does not.
    assert chi_square(frequencies(LOGITS, Sampling(1.0, top_p=0.6)), softmax_of(0, 5)) < 1


def test_top_p_is_a_share_of_what_top_k_leaves() -> None:
    # Of the three most likely the first has 0.51 and two have 0.81; of all six two have 0.72.
    counts = frequencies(LOGITS, Sampling(1.0, top_k=3, top_p=0.75))

    assert chi_square(counts, softmax_of(0, 5)) < 1


def test_min_p_leaves_tokens_by_their_share_of_the_likeliest() -> None:
    # 1.5 and 1.0 below the peak of 2.0 are shares of 0.61 and 0.37; 0.0 is one of 0.14.
    assert chi_square(frequencies(LOGITS, Sampling(1.0, min_p=0.3)), softmax_of(0, 1, 5)) < 1


def test_min_p_is_compared_after_the_temperature() -> None:
    counts = frequencies(LOGITS, Sampling(0.5, min_p=0.3))

    assert chi_square(counts, softmax_of(0, 5, temperature=0.5)) < 1


@pytest.mark.parametrize(
    "how", [Sampling(5.0, top_p=1e-9), Sampling(5.0, min_p=1.0), Sampling(5.0, top_k=1)]
)
def test_the_tightest_filter_leaves_one_token(how: Sampling) -> None:
    assert frequencies(LOGITS, how, 20).tolist() == [20, 0, 0, 0, 0, 0]


def test_tokens_that_tie_with_the_last_one_kept_are_kept() -> None:
    logits = torch.tensor([1.0, 0.0, 0.0, 0.0, -9.0])

    counts = frequencies(logits, Sampling(1.0, top_k=2))

    assert chi_square(counts, torch.tensor([1.0, 0, 0, 0, -torch.inf]).softmax(0)) < 1


@pytest.mark.parametrize("temperature", [1e-300, 1e-6, 10.0])
def test_no_temperature_is_too_low_or_too_high(temperature: float) -> None:
    logits = torch.tensor([80.0, 100.0, -torch.inf, 99.0])

    counts = frequencies(logits, Sampling(temperature), 20)

    assert counts[2] == 0
    assert temperature == 10.0 or counts[1] == 20


def test_a_token_depends_on_its_position_not_on_how_it_was_reached() -> None:
    sampler = Sampler(6, "cpu")
    for slot in (0, 3):
        sampler.open(Open(slot, Sampling(3.0, seed=5), ()))

    first, second = sampler.draw(
        LOGITS.expand(2, -1), [Row(0, 0, 8, is_drawn=True), Row(3, 7, 1, is_drawn=True)]
    )

    assert first == second


def test_the_answers_of_one_request_differ() -> None:
    logits = torch.zeros(1000)
    found = tokens(logits.expand(8, -1), [Sampling(1.0, seed=3, index=i) for i in range(8)])

    assert len(set(found)) == 8


def test_nothing_is_drawn_after_a_row_in_the_middle_of_a_prompt() -> None:
    sampler = Sampler(6, "cpu")
    sampler.open(Open(1, Sampling(), ()))
    logits = torch.stack([torch.full((6,), torch.nan), LOGITS])

    first, second = sampler.draw(logits, [Row(0, 0, 1), Row(1, 0, 1, is_drawn=True)])

    assert first is None
    assert second is not None
    assert second.token_id == 0


def test_a_slot_that_no_sequence_has_taken_draws_nothing() -> None:
    with pytest.raises(KeyError, match="slot 4"):
        Sampler(6, "cpu").draw(LOGITS[None], [Row(4, 0, 1, is_drawn=True)])


def test_a_slot_forgets_the_sequence_before() -> None:
    sampler = Sampler(6, "cpu")
    sampler.open(Open(0, Sampling(logit_bias=((4, 50.0),)), ()))
    sampler.open(Open(0, Sampling(), ()))

    (drawn,) = sampler.draw(LOGITS[None], [Row(0, 0, 1, is_drawn=True)])

    assert drawn is not None
    assert drawn.token_id == 0


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize(
    "how", [Sampling(), Sampling(1.0, seed=1), Sampling(1.0, top_p=0.9, presence_penalty=1.0)]
)
def test_a_row_that_is_not_finite_has_a_fault_and_spoils_no_other(
    bad: float, how: Sampling
) -> None:
    logits = torch.randn(3, 2000, generator=torch.Generator().manual_seed(1))
    good = draws(logits, [how] * 3)
    logits[1, 7] = bad

    found = draws(logits, [how] * 3)

    assert "not finite" in found[1].fault
    assert found[1].token_id == -1
    assert [found[0], found[2]] == [good[0], good[2]]


def test_a_row_without_any_likelihood_has_a_fault() -> None:
    (drawn,) = draws(torch.full((1, 9), -torch.inf), [Sampling(1.0)])

    assert "not finite" in drawn.fault


def test_tokens_without_likelihood_are_never_drawn() -> None:
    logits = torch.full((2000,), -torch.inf)
    logits[[5, 1900]] = 0.0

    counts = frequencies(logits, Sampling(1.0, top_k=50, top_p=0.999), 100)

    assert set(counts.nonzero().flatten().tolist()) == {5, 1900}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_logits_of_any_width_are_drawn_from(dtype: torch.dtype) -> None:
    hows = [Sampling(), Sampling(1.0, seed=1), Sampling(1.0, top_k=2, logprobs=1)]

    # These logits are exact in any width.
    assert draws(LOGITS.to(dtype).expand(3, -1), hows) == draws(LOGITS.expand(3, -1), hows)


def test_a_device_without_double_width_has_its_tokens_drawn_on_the_cpu() -> None:
    # The meta device computes nothing at all.
    sampler = Sampler(6, "meta")
    sampler.open(Open(0, Sampling(1.0, seed=1), ()))

    found = sampler.draw(LOGITS[None], [Row(0, 0, 1, is_drawn=True)])

    assert found == draws(LOGITS[None], [Sampling(1.0, seed=1)])


def test_logits_are_not_changed() -> None:
    logits = torch.randn(2, 50)
    before = logits.clone()

    draws(logits, [Sampling(1.0, repetition_penalty=2.0, logit_bias=((3, 9.0),))] * 2, prompt=[1])

    assert torch.equal(logits, before)
