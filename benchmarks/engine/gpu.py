"""The GPU part: a Gemma-2B-shaped model of random bfloat16 weights on one CUDA device.

Decoding one row reads all weights once a step; how near that comes to the speed at which the
device copies memory is the figure. ``generate`` has a static cache and a compiled step.
"""

from __future__ import annotations

from dataclasses import replace

from benchmarks.engine import limits
from benchmarks.engine.bench import Bench
from benchmarks.engine.contenders.base import Job, Settings
from benchmarks.engine.figures import Outcome
from benchmarks.engine.workload import GEMMA_2B, Shape, mixed_prompts, model_folder
from benchmarks.report import Figure, percent, rate

GOAL_BANDWIDTH = 0.75
DTYPE, DEVICE = "bfloat16", "gpu"
BATCHES = (1, 64)
NUM_TOKENS, MEAN_PROMPT, MAX_CONTEXT = 128, 64, 512
_COPY_BYTES = 4 * 1024**3
COLUMNS = (
    "batch", "way", "decode tok/s", "of generate", "ms a step", "read GB/s", "of copying",
    "end to end tok/s", "spread", "same tokens",
)  # fmt: skip


def is_there() -> bool:
    import torch

    return torch.cuda.is_available()


def copy_bytes_per_s(num_bytes: int = _COPY_BYTES) -> float:
    """What the device reads and writes a second while it copies."""
    import torch

    source = torch.ones(num_bytes // 2, dtype=torch.bfloat16, device="cuda")
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)
        torch.cuda.synchronize()

    return 2 * num_bytes / limits.best(copy)


def run(bench: Bench, shape: Shape = GEMMA_2B) -> None:
    import torch

    copying = copy_bytes_per_s()
    name = torch.cuda.get_device_name()
    torch.cuda.empty_cache()
    folder = model_folder(shape, bench.cache, DTYPE)
    settings = Settings(str(folder), DTYPE, num_threads=4, max_context=MAX_CONTEXT, device=DEVICE)
    rows: list[list[object]] = []
    for batch in BATCHES:
        prompts = mixed_prompts(batch, MEAN_PROMPT, shape.vocab_size)
        jobs = [Job(tuple(prompt), NUM_TOKENS) for prompt in prompts]
        each = replace(settings, max_batch=batch)
        with bench.hosts({"generate": ("generate", each), "plait": ("plait", each)}) as hosts:
            outcomes = bench.contest({label: (host, jobs) for label, host in hosts.items()})
        base = outcomes["generate"]
        reads = 2 * (
            shape.parameters_a_step_reads
            + shape.cache_values(round(batch * (MEAN_PROMPT + NUM_TOKENS / 2)))
        )
        for label, got in outcomes.items():
            rows.append(_row(bench, batch, label, got, base, reads * got.rate / batch, copying))
        ours = outcomes["plait"]
        if batch == 1:
            share = reads * ours.rate / copying
            bench.report.figure(Figure("GPU batch 1, of copying", share, GOAL_BANDWIDTH))
        ratio = ours.rate / base.rate
        bench.report.figure(Figure(f"GPU batch {batch} against generate", ratio, unit="x"))
    title = f"{name}: {shape.name}, {DTYPE}; copying reaches {copying / 1e9:.0f} GB/s"
    bench.report.table(title, COLUMNS, rows)


def _row(
    bench: Bench,
    batch: int,
    label: str,
    got: Outcome,
    base: Outcome,
    reading: float,
    copying: float,
) -> list[object]:
    """``reading`` and ``copying`` are bytes a second."""
    return [
        batch,
        label,
        rate(got.rate),
        f"{got.rate / base.rate:.2f}",
        f"{1e3 * batch / got.rate:.2f}",
        f"{reading / 1e9:.0f}",
        percent(reading / copying),
        rate(got.end_to_end_rate),
        percent(got.spread_ratio),
        bench.equal(label, DTYPE, got, base.tokens),
    ]
