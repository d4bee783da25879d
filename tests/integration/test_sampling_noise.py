"""The noise is a hash: the same wherever it is computed, and never the same twice."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from handlers.pipeline.sampling.noise import gumbel, key, mixed

#: The first call of torch takes as long as it takes.
unhurried = settings(deadline=None)
words = st.integers(0, 2**64 - 1)
seeds = st.integers(0, 2**63 - 1)


def splitmix(given: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """One step of splitmix64 in unsigned integers."""
    words = given + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def uniform(seed: int, position: int, token_ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """What the first answer's noise has always been made from."""
    root = splitmix(splitmix(np.asarray([seed], np.uint64)) ^ np.uint64(position))
    bits = splitmix(splitmix(root) ^ token_ids.astype(np.uint64))
    return ((bits >> np.uint64(12)).astype(np.float64) + 0.5) / float(1 << 52)


@unhurried
@given(st.lists(words, min_size=1, max_size=50))
def test_signed_words_are_mixed_as_unsigned_ones_are(given_words: list[int]) -> None:
    unsigned = np.asarray(given_words, np.uint64)

    found = mixed(torch.from_numpy(unsigned.view(np.int64).copy()))

    assert found.numpy().view(np.uint64).tolist() == splitmix(unsigned).tolist()


@unhurried
@given(seeds, st.integers(0, 2**31), st.lists(st.integers(0, 2**31), min_size=1, max_size=40))
def test_the_first_answer_has_the_noise_it_always_had(
    seed: int, position: int, token_ids: list[int]
) -> None:
    ids = np.asarray(token_ids, np.int64)
    wanted = -np.log(-np.log(uniform(seed, position, ids)))

    found = gumbel(torch.tensor([key(seed, 0, position)]), torch.from_numpy(ids))

    # The bits are equal; libraries may differ in a logarithm's last one.
    np.testing.assert_allclose(found[0].numpy(), wanted, rtol=1e-14, atol=1e-15)


def test_noise_is_standard_gumbel() -> None:
    noise = gumbel(torch.tensor([key(7, 0, 3)]), torch.arange(200_000))[0]

    assert float(noise.mean()) == pytest.approx(0.5772, abs=0.01)
    assert float(noise.var()) == pytest.approx(torch.pi**2 / 6, rel=0.02)


def test_seeds_answers_and_positions_give_unrelated_noise() -> None:
    keys = [key(s, i, p) for s in (0, 1, 2**63 - 1) for i in (0, 1, 15) for p in (0, 1)]

    noises = gumbel(torch.tensor(keys), torch.arange(2000))

    correlation = torch.corrcoef(noises) - torch.eye(len(keys))
    assert correlation.abs().max() < 0.1


def test_candidates_of_their_own_have_the_noise_of_their_ids() -> None:
    keys = torch.tensor([key(1, 0, 0), key(2, 0, 0)])
    ids = torch.tensor([[5, 3], [0, 9]])

    assert torch.equal(gumbel(keys, ids), gumbel(keys, torch.arange(10)).gather(1, ids))
