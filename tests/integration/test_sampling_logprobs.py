"""Log probabilities are those of the model's own distribution."""

from __future__ import annotations

import pytest
import torch

from handlers.pipeline.sampling import logprobs
from handlers.pipeline.step import Sampling
from tests.integration.sampler_rows import draws

LOGITS = torch.randn(4, 3000, generator=torch.Generator().manual_seed(2)) * 4
WANTED = LOGITS.double().log_softmax(-1)


@pytest.mark.parametrize(
    "how",
    [
        Sampling(logprobs=0),
        Sampling(2.0, top_k=9, seed=1, logprobs=0),
        Sampling(0.5, top_p=0.9, logprobs=0, repetition_penalty=3.0, logit_bias=((1, 60.0),)),
    ],
)
def test_the_drawn_tokens_is_that_of_the_softmax_whatever_was_done_to_draw_it(
    how: Sampling,
) -> None:
    for row, draw in enumerate(draws(LOGITS, [how] * 4, prompt=(1, 2))):
        assert draw.logprob == pytest.approx(float(WANTED[row, draw.token_id]), abs=1e-6)
        assert draw.top == ()


def test_the_likeliest_tokens_come_first_with_theirs() -> None:
    (draw, *_) = draws(LOGITS, [Sampling(1.0, logprobs=20)] * 4)

    likelihoods, ids = WANTED[0].topk(20)
    assert [token for token, _ in draw.top] == ids.tolist()
    assert [value for _, value in draw.top] == pytest.approx(likelihoods.tolist(), abs=1e-6)


def test_each_row_gets_as_many_as_it_asks_for() -> None:
    found = draws(LOGITS, [Sampling(logprobs=count) for count in (None, 0, 1, 5)])

    assert [draw.logprob is None for draw in found] == [True, False, False, False]
    assert [len(draw.top) for draw in found] == [0, 0, 1, 5]


def test_of_equally_likely_tokens_those_with_lower_ids_come_first() -> None:
    logits = torch.zeros(1, 500)
    logits[0, 400] = 1.0
    logits[0, 3] = -0.0

    assert logprobs.likeliest(logits, 5).tolist() == [[400, 0, 1, 2, 3]]


def test_there_are_no_more_of_them_than_tokens() -> None:
    (draw,) = draws(torch.tensor([[0.0, 1.0, 2.0]]), [Sampling(logprobs=20)])

    assert [token for token, _ in draw.top] == [2, 1, 0]
