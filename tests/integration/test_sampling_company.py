"""A row is drawn the same to the bit whichever rows are beside it."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from handlers.pipeline.sampling import choice
from handlers.pipeline.sampling.filters import Shapes, from_all, from_head
from handlers.pipeline.sampling.noise import key
from handlers.pipeline.step import Sampling
from tests.integration.sampler_rows import draws

#: Larger than the head that is looked at first, so that some rows need more than that.
SIZE = 3000
unhurried = settings(deadline=None, max_examples=60)
shares = st.sampled_from([0.0, 0.01, 0.3])

samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 4.0]),
    top_k=st.sampled_from([0, 1, 40, 1023, 1024, 2500, 5000]),
    top_p=st.sampled_from([0.05, 0.5, 0.9, 0.999, 1.0]),
    seed=st.integers(0, 2**63 - 1),
    index=st.integers(0, 3),
    min_p=shares,
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    frequency_penalty=st.sampled_from([0.0, 0.7]),
    logit_bias=st.sampled_from([(), ((5, 4.0), (2999, 1.0))]),
    logprobs=st.sampled_from([None, 0, 3]),
)


def rows_of_logits(count: int, seed: int, is_coarse: bool) -> torch.Tensor:
    """Logits as different as can be; coarse ones have ties everywhere, as half-width floats do."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.logspace(-1, 1, count)[:, None]
    logits = torch.randn(count, SIZE, generator=generator) * spread
    return logits.bfloat16().float() if is_coarse else logits


@unhurried
@given(st.lists(samplings, min_size=2, max_size=6), st.integers(0, 99), st.booleans(), st.data())
def test_a_row_is_drawn_in_any_company_as_it_is_alone(
    hows: list[Sampling], seed: int, is_coarse: bool, data: st.DataObject
) -> None:
    logits = rows_of_logits(len(hows), seed, is_coarse)
    order = data.draw(st.permutations(range(len(hows))))

    alone = [draws(logits[i : i + 1], [how], seed)[0] for i, how in enumerate(hows)]
    together = draws(logits[order], [hows[i] for i in order], seed)

    assert together == [alone[i] for i in order]
    assert not any(draw.fault for draw in alone)


@unhurried
@given(st.lists(samplings, min_size=1, max_size=6), st.integers(0, 99), st.booleans())
def test_looking_at_the_head_first_changes_no_draw(
    hows: list[Sampling], seed: int, is_coarse: bool
) -> None:
    logits = rows_of_logits(len(hows), seed, is_coarse)
    warm = [dataclasses.replace(how, temperature=how.temperature or 1.0) for how in hows]
    keys = [key(how.seed, how.index, 7) for how in warm]
    shapes = Shapes.of(warm, SIZE, logits.amax(-1).double(), keys)

    from_the_head = choice.draw(logits, shapes)

    assert torch.equal(
        from_the_head, choice.draw_from_all(logits, shapes, from_all(logits, shapes))
    )


@unhurried
@given(st.lists(samplings, min_size=1, max_size=6), st.integers(0, 99), st.booleans())
def test_a_threshold_that_the_head_knows_is_the_threshold(
    hows: list[Sampling], seed: int, is_coarse: bool
) -> None:
    logits = rows_of_logits(len(hows), seed, is_coarse)
    warm = [dataclasses.replace(how, temperature=how.temperature or 1.0) for how in hows]
    shapes = Shapes.of(warm, SIZE, logits.amax(-1).double(), [0] * len(hows))
    head = logits.topk(max(100, min(shapes.most + 1, SIZE)), dim=-1).values

    found, is_known = from_head(logits, shapes, head)

    assert torch.equal(found[is_known], from_all(logits, shapes)[is_known])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_whole_row_that_is_not_finite_changes_no_threshold_of_others(bad: float) -> None:
    logits = rows_of_logits(3, 1, is_coarse=False)
    hows = [Sampling(1.0, top_k=900, top_p=0.9), Sampling(1.0, top_p=0.5), Sampling(1.0, top_k=9)]
    good = from_all(logits, Shapes.of(hows, SIZE, logits.amax(-1).double(), [0] * 3))

    logits[1] = bad
    found = from_all(logits, Shapes.of(hows, SIZE, logits.amax(-1).double(), [0] * 3))

    assert torch.equal(found[[0, 2]], good[[0, 2]])
