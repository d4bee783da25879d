"""What the machine could do at best: how fast it reads, how fast it multiplies, what a step needs.

A decoding step reads every weight once and every cached key and value of its rows; it multiplies
each weight with each row. The larger of the two times is its *floor*: no engine that works with
these numbers of these types gets below it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.engine.workload import Shape

_READ_BYTES = 512 * 1024 * 1024
_SQUARE = 1536
_TRIES = 5


@dataclass(frozen=True, slots=True)
class Machine:
    """What some threads, or a device, reach."""

    bytes_per_s: float
    flops_per_s: float


@dataclass(frozen=True, slots=True)
class Floor:
    """What one decoding step of a batch needs."""

    num_bytes: int
    num_flops: int
    seconds: float


def measure_cpu(num_threads: int, dtype: str) -> Machine:
    """The best of a few tries of reading a large array, and of multiplying matrices.

    A type may be widened to float32 before it is multiplied, so that is what counts if faster.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        array = torch.ones(_READ_BYTES // 4)
        read_s = min(best(array.sum), best(lambda: torch.dot(array, array)))
        matrix = torch.randn(_SQUARE, _SQUARE)
        multiply_s = best(lambda: matrix @ matrix)
        if has_instructions_for(dtype):
            narrow = matrix.to(getattr(torch, dtype))
            multiply_s = min(multiply_s, best(lambda: narrow @ narrow))
    finally:
        torch.set_num_threads(before)
    return Machine(_READ_BYTES / read_s, 2 * _SQUARE**3 / multiply_s)


def has_instructions_for(dtype: str) -> bool:
    """Whether the processor multiplies matrices of this type itself."""
    return dtype == "float32" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def best(work: Callable[[], object]) -> float:
    """Seconds of the fastest of a few tries."""
    work()
    tries: list[float] = []
    for _ in range(_TRIES):
        began = time.perf_counter()
        work()
        tries.append(time.perf_counter() - began)
    return min(tries)


def floor(shape: Shape, dtype: str, batch: int, mean_context: float, machine: Machine) -> Floor:
    """The floor of one step of ``batch`` rows that have so many tokens each."""
    weights, width = shape.parameters_a_step_reads, getattr(torch, dtype).itemsize
    num_bytes = width * (weights + shape.cache_values(round(batch * mean_context)))
    num_flops = 2 * batch * weights
    seconds = max(num_bytes / machine.bytes_per_s, num_flops / machine.flops_per_s)
    return Floor(num_bytes, num_flops, seconds)
