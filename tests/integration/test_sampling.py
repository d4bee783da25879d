"""Tokens are drawn from the distribution that temperature, top-k and top-p describe."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from handlers.pipeline.sampling import draw, gumbel
from handlers.pipeline.step import Row, Sampling

LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0, -2.0, 1.5])


def drawn(how: Sampling, count: int = 3000) -> list[float]:
    """How often each token was drawn at ``count`` positions."""
    rows = [Row(0, position, 1, how) for position in range(count)]
    tokens = torch.tensor(draw(LOGITS.expand(count, -1), rows))
    return (torch.bincount(tokens, minlength=len(LOGITS)) / count).tolist()


def test_without_temperature_the_most_likely_token_is_taken() -> None:
    assert drawn(Sampling(temperature=0.0), 5) == [1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_are_the_softmax_of_the_scaled_logits(temperature: float) -> None:
    wanted = (LOGITS / temperature).softmax(0).tolist()

    # Three standard deviations of the most uncertain frequency.
    assert drawn(Sampling(temperature, seed=11)) == pytest.approx(wanted, abs=0.028)


def test_top_k_leaves_the_k_most_likely() -> None:
    kept = LOGITS[[0, 1, 5]].softmax(0).tolist()
    wanted = [kept[0], kept[1], 0, 0, 0, kept[2]]

    assert drawn(Sampling(1.0, top_k=3)) == pytest.approx(wanted, abs=0.028)


def test_top_p_leaves_the_fewest_that_reach_it() -> None:
    # The likelihoods are 0.45, 0.27, 0.17, 0.06, ...: two reach 0.6, one does not.
    kept = LOGITS[[0, 5]].softmax(0).tolist()

    assert drawn(Sampling(1.0, top_p=0.6)) == pytest.approx(
        [kept[0], 0, 0, 0, 0, kept[1]], abs=0.028
    )


def test_the_smallest_top_p_leaves_one_token() -> None:
    assert drawn(Sampling(5.0, top_p=1e-9), 20) == [1, 0, 0, 0, 0, 0]


def test_a_row_is_drawn_the_same_whatever_is_beside_it() -> None:
    logits = torch.randn(5, 50, generator=torch.Generator().manual_seed(1))
    rows = [
        Row(i, i, 1, Sampling(0.5 + i, top_k=10 * i, top_p=1 - i / 10, seed=i)) for i in range(5)
    ]

    together = draw(logits, rows)

    assert together == [draw(logits[i : i + 1], [rows[i]])[0] for i in range(5)]


def test_a_token_depends_on_its_position_not_on_how_it_was_reached() -> None:
    how = Sampling(3.0, seed=5)

    assert draw(LOGITS[None], [Row(0, 0, 8, how)]) == draw(LOGITS[None], [Row(3, 7, 1, how)])


def test_seeds_and_positions_give_unrelated_noise() -> None:
    tokens = torch.arange(2000).numpy()
    noises = [torch.from_numpy(gumbel(s, p, tokens)) for s in (0, 1, 2**63 - 1) for p in (0, 1)]

    correlation = torch.corrcoef(torch.stack(noises)) - torch.eye(6)
    assert correlation.abs().max() < 0.1
    assert all(abs(float(noise.mean()) - 0.5772) < 0.1 for noise in noises)


def test_a_row_without_tokens_disturbs_nothing() -> None:
    assert len(draw(LOGITS.expand(2, -1), [Row(0, 0, 0), Row(1, 0, 1)])) == 2
