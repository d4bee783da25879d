"""Penalties and biases are what the transformers library and OpenAI say they are."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from handlers.pipeline.sampling.adjustments import Adjustments, apply
from handlers.pipeline.sampling.filters import Shapes, from_all, from_head
from handlers.pipeline.step import Open, Sampling
from tests.integration.sampler_rows import answer, random_logits

#: The first call of torch takes as long as it takes.
unhurried = settings(deadline=None)
SIZE = 40
some_tokens = st.lists(st.integers(0, SIZE - 1), max_size=30)
LOGITS = torch.randn(SIZE, generator=torch.Generator().manual_seed(3)) * 3


def adjusted(how: Sampling, prompt: list[int], generated: list[int]) -> torch.Tensor:
    logits = LOGITS[None].clone()
    apply(logits, [0], [Adjustments(Open(0, how, tuple(prompt), tuple(generated)))])
    return logits[0]


@unhurried
@given(some_tokens, some_tokens, st.floats(0.1, 3.0))
def test_the_repetition_penalty_is_that_of_transformers(
    prompt: list[int], generated: list[int], penalty: float
) -> None:
    said = torch.tensor([prompt + generated], dtype=torch.int64)
    wanted = RepetitionPenaltyLogitsProcessor(penalty)(said, LOGITS[None].clone())[0]

    found = adjusted(Sampling(repetition_penalty=penalty), prompt, generated)

    torch.testing.assert_close(found, wanted)


@unhurried
@given(some_tokens, some_tokens, st.floats(-2.0, 2.0), st.floats(-2.0, 2.0))
def test_presence_and_frequency_penalties_count_the_answer_only(
    prompt: list[int], generated: list[int], presence: float, frequency: float
) -> None:
    wanted = LOGITS.clone()
    for token_id, count in Counter(generated).items():
        wanted[token_id] -= presence + frequency * count

    how = Sampling(presence_penalty=presence, frequency_penalty=frequency)

    torch.testing.assert_close(adjusted(how, prompt, generated), wanted)


@unhurried
@given(st.dictionaries(st.integers(0, SIZE - 1), st.floats(-100.0, 100.0), min_size=1))
def test_the_logit_bias_is_that_of_transformers(biases: dict[int, float]) -> None:
    bias = {(token_id,): value for token_id, value in biases.items()}
    process = SequenceBiasLogitsProcessor(bias)
    wanted = process(torch.zeros(1, 1, dtype=torch.int64), LOGITS[None].clone())[0]

    found = adjusted(Sampling(logit_bias=tuple(biases.items())), [], [])

    torch.testing.assert_close(found, wanted)


def test_the_repetition_penalty_changes_logits_before_anything_is_added() -> None:
    how = Sampling(repetition_penalty=2.0, presence_penalty=0.5, logit_bias=((7, 3.0),))

    found = adjusted(how, [], [7])

    wanted = LOGITS[7] / 2 if LOGITS[7] > 0 else LOGITS[7] * 2
    assert float(found[7]) == pytest.approx(float(wanted) - 0.5 + 3.0)


def test_rows_with_more_and_fewer_tokens_are_each_changed_as_alone() -> None:
    how = Sampling(repetition_penalty=1.5, frequency_penalty=0.3)
    answers = [list(range(30)) * 3, [], [4, 4, 4]]
    logits = LOGITS.expand(4, -1).clone()

    apply(logits, [0, 1, 3], [Adjustments(Open(0, how, (), tuple(each))) for each in answers])

    for row, generated in zip((0, 1, 3), answers, strict=True):
        assert torch.equal(logits[row], adjusted(how, [], generated))
    assert torch.equal(logits[2], LOGITS)


@pytest.mark.parametrize(
    "how",
    [
        Sampling(presence_penalty=1.5, frequency_penalty=0.4),
        Sampling(0.9, seed=4, repetition_penalty=1.4),
        Sampling(1.2, seed=5, top_p=0.9, frequency_penalty=1.0, logit_bias=((3, 2.0),)),
    ],
)
def test_penalties_go_on_the_same_after_a_resume_at_any_position(how: Sampling) -> None:
    source = random_logits(50, spread=1.0)
    whole = answer(how, source, 64)
    said = [draw.token_id for draw in whole]

    for cut in range(64):
        assert answer(how, source, min(cut + 3, 64), said[:cut]) == whole[cut : cut + 3]


@unhurried
@given(
    st.lists(st.integers(-20, 20), min_size=4, max_size=60),
    st.integers(1, 60),
    st.sampled_from([0.01, 0.3, 0.5, 0.9, 0.99, 1.0]),
    st.sampled_from([0.0, 0.05, 0.5]),
    st.sampled_from([0.5, 1.0, 3.0]),
)
def test_filters_leave_what_those_of_transformers_leave(
    steps: list[int], top_k: int, top_p: float, min_p: float, temperature: float
) -> None:
    # Distinct values: among equal ones the library's sort decides, which is none of its claims.
    logits = torch.tensor(steps).float().cumsum(0)[None] / 7 + torch.arange(len(steps)) * 1e-3
    if len(set(logits[0].tolist())) < len(steps):
        return
    wanted = logits / temperature
    for warper in (TopKLogitsWarper(top_k), TopPLogitsWarper(top_p), MinPLogitsWarper(min_p)):
        wanted = warper(torch.zeros(1, 1, dtype=torch.int64), wanted)
    how = Sampling(temperature, top_k, top_p, min_p=min_p)
    shapes = Shapes.of([how], len(steps), logits.amax(-1).double(), [0])

    by_all = from_all(logits, shapes)
    by_head, is_known = from_head(logits, shapes, logits.sort(descending=True).values)

    assert bool(is_known.all())
    assert torch.equal(by_all, by_head)
    left = (logits.double() >= by_all[:, None])[0]
    assert left.tolist() == (wanted > -torch.inf)[0].tolist()
