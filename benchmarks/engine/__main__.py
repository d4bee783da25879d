"""The pipelined engine against its limits and against other ways to run the same model.

    make bench-engine                      # everything; about twenty minutes on two cores
    make bench-engine ARGS=--quick         # does it run? a tiny model, no figures worth keeping
    make bench-engine ARGS="--only ad --dtypes float32 --json out.json"
    make bench-engine ARGS=--gpu           # the GPU part alone

Run it on a machine that does nothing else. It ends with 1 when greedy tokens in float32 differ
between two ways, whatever the figures are.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.engine import gpu
from benchmarks.engine.bench import Bench, Sizes
from benchmarks.engine.parts import gap, growth, others, scaling, single
from benchmarks.engine.report import Report
from benchmarks.engine.workload import LLAMA_200M, LLAMA_TINY
from benchmarks.noise import Patience

FULL = Sizes(
    shape=LLAMA_200M,
    num_tokens=96,
    mean_prompt=64,
    slow_mean_prompt=16,
    rounds=3,
    batches=(1, 4, 8, 16),
    main_batch=8,
    rows_per_lane=8,
    num_stages=(1, 2, 3, 4),
    link_delays_s=(0.0, 0.005, 0.01, 0.02),
    late_prompt=2000,
    late_after=32,
    minutes=20,
)
QUICK = replace(
    FULL,
    shape=LLAMA_TINY,
    num_tokens=8,
    mean_prompt=12,
    rounds=1,
    batches=(1, 4),
    main_batch=4,
    rows_per_lane=2,
    num_stages=(1, 2),
    link_delays_s=(0.0, 0.01),
    late_prompt=300,
    late_after=8,
    minutes=5,
)
#: The type in which everything is run, and tokens must be equal; other types get the main parts.
MAIN_TYPE = "float32"
#: Seconds all waiting for a quiet machine may take together.
PATIENCE_S, QUICK_PATIENCE_S = 90.0, 2.0


def main() -> int:
    options = _options()
    sizes = QUICK if options.quick else FULL
    sizes = replace(sizes, rounds=options.rounds or sizes.rounds)
    patience = Patience(QUICK_PATIENCE_S if options.quick else PATIENCE_S)
    bench = Bench(sizes, options.cache, options.threads, Report(), patience)
    began = time.monotonic()
    bench.report.note(_machine())
    if options.gpu:
        _run_gpu(bench)
    else:
        _run(bench, options.only, options.dtypes)
    bench.report.note(f"took {(time.monotonic() - began) / 60:.1f} minutes")
    if options.json:
        options.json.write_text(json.dumps(bench.report.to_document(), indent=1))
    print(bench.report.line())
    return 1 if bench.report.wrong else 0


def _run(bench: Bench, only: str, dtypes: list[str]) -> None:
    for dtype in dtypes:
        is_main = dtype == MAIN_TYPE
        if "a" in only:
            single.run(bench, dtype)
        if "b" in only:
            scaling.run(bench, dtype, scaling.LANES if is_main else scaling.MAIN_LANES)
        if "c" in only:
            others.run(bench, dtype, others.WAYS if is_main else others.MAIN_WAYS)
        if "d" in only and is_main:
            gap.run(bench, dtype)
        if "e" in only and is_main:
            growth.run(bench, dtype)


def _run_gpu(bench: Bench) -> None:
    if gpu.is_there():
        gpu.run(bench)
    else:
        bench.report.note("no CUDA device here: the GPU part was not run")


def _machine() -> str:
    import psutil
    import torch
    import transformers

    capability = torch.backends.cpu.get_cpu_capability()
    return (
        f"{platform.machine()}, {psutil.cpu_count()} cores, {capability}, bfloat16 matrix "
        f"instructions: {torch.ops.mkldnn._is_mkldnn_bf16_supported()}; torch "
        f"{torch.__version__}, transformers {transformers.__version__}"
    )


def _options() -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.engine",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="a tiny model, once")
    parser.add_argument("--only", default="abcde", help="parts to run, such as: ad")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, help="repetitions of each measurement")
    parser.add_argument("--threads", type=int, default=2, help="of a way in one process")
    parser.add_argument("--gpu", action="store_true", help="the GPU part alone")
    parser.add_argument("--cache", type=Path, default=Path(".bench"), help="models and logs")
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
