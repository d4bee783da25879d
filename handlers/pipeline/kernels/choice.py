"""Chooses the form of a stage's weights by trying them on the stage's own matrices.

Which product is fastest depends on the processor, its vendor's library, the shape and the number
of rows, and no rule of thumb held on two machines. The shape that most weights are in decides for
all, since the time is spent where the weights are, and one clear comparison comes out the same
the next time. A form has to win clearly: rearranging takes time at the start.

Neighbours on the machine only make a product slower, so the fastest of several repetitions
counts, taken in turns; and the median over numbers of rows, lest one unlucky time decides.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from handlers.pipeline.kernels.weights import Form, HalfWeights, OneDNN

FORMS: Final[tuple[type[Form], ...]] = (OneDNN, HalfWeights)
#: Numbers of rows that are tried: one sequence, and batches as they decode.
ROWS: Final = (1, 4, 8, 16)
#: The most bytes of a matrix that are tried.
MAX_TRIED_BYTES: Final = 32 << 20
#: Most bytes of weights that are gone through, so that they stay in a cache from one product to
#: the next no more than the stage's own would; last-level caches of hundreds of megabytes exist.
MAX_FOOTPRINT_BYTES: Final = 256 << 20
#: A form is taken when it needs at most this share of the plain product's time.
WORTHWHILE_RATIO: Final = 0.9
_REPETITIONS: Final = 5

Product = Callable[[Tensor], Tensor]


def choose(weight: Tensor, num_bytes: int) -> type[Form] | None:
    """The form for matrices like ``weight`` [out, in]; None: they stay as they are.

    ``num_bytes``: of all the weights that a step goes through.
    """
    out, width = weight.shape
    row_bytes = width * weight.element_size()
    tried = max(1, min(out, MAX_TRIED_BYTES // row_bytes))
    num_copies = -(-min(num_bytes, MAX_FOOTPRINT_BYTES) // (tried * row_bytes))
    return _choose(tried, width, weight.dtype, num_copies, torch.get_num_threads())


def available(weight: Tensor) -> type[Form] | None:
    """The first form that matrices like ``weight`` [out, in] can take here."""
    return next((form for form in FORMS if _kept(form, weight[:1]) is not None), None)


def _kept(form: type[Form], weight: Tensor) -> Form | None:
    try:
        return form(weight, None)
    except RuntimeError:
        return None  # this processor cannot keep weights of this type so


# A process that measures its parts before it builds its stage should not choose twice.
@functools.lru_cache(maxsize=16)
def _choose(
    out: int, width: int, dtype: torch.dtype, num_copies: int, _num_threads: int
) -> type[Form] | None:
    weight = torch.randn(out, width).to(dtype)
    copies = [weight, *(weight.clone() for _ in range(num_copies - 1))]
    plain = [functools.partial(functional.linear, weight=copy) for copy in copies]
    kept = {
        form: [form(copy, None) for copy in copies]
        for form in FORMS
        if _kept(form, weight[:1]) is not None
    }
    inputs = [torch.randn(rows, width).to(dtype) for rows in ROWS]
    reference, *others = _seconds([plain, *kept.values()], inputs)
    ratios = {f: _median_ratio(each, reference) for f, each in zip(kept, others, strict=True)}
    best = min(ratios, key=ratios.__getitem__, default=None)
    return best if best is not None and ratios[best] <= WORTHWHILE_RATIO else None


def _seconds(ways: Sequence[Sequence[Product]], inputs: Sequence[Tensor]) -> list[list[float]]:
    """The fastest of a few rounds over all products of a way, by way and input."""
    seconds = [[float("inf")] * len(inputs) for _ in ways]
    for _ in range(_REPETITIONS):
        for column, each in enumerate(inputs):
            for row, products in enumerate(ways):
                began = time.perf_counter()
                for product in products:
                    product(each)
                seconds[row][column] = min(seconds[row][column], time.perf_counter() - began)
    return seconds


def _median_ratio(seconds: Sequence[float], reference: Sequence[float]) -> float:
    return statistics.median(each / other for each, other in zip(seconds, reference, strict=True))
