"""Prints how a model would be cut into stages, without starting any.

What is printed holds for stages that all run on devices like this process's. Inside a replica each
stage measures its own.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from handlers.pipeline.partition import TOLERANCE, Device, Plan, plan


def main(command_line: Sequence[str] | None = None) -> None:
    """Read the command line and print the plan."""
    arguments = _parser().parse_args(command_line)
    try:
        made = _plan(arguments)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    sys.stdout.write(f"{made.describe()}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m handlers.pipeline.partition",
        description="Print how a model would be cut into stages.",
    )
    parser.add_argument("model", type=Path, help="a model's folder; only its config.json is read")
    parser.add_argument("--stages", type=int, default=2)
    parser.add_argument("--measure", action="store_true", help="measure here instead of estimating")
    parser.add_argument("--layers", type=int, nargs="+", help="layers of each stage, if given")
    parser.add_argument("--rows", type=int, default=4, help="rows of a step (default 4)")
    parser.add_argument("--lanes", type=int, help="steps in flight (default: one for each stage)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--device", default="cpu", help="a torch device (default cpu)")
    parser.add_argument("--threads", type=int, default=1, help="of one stage, on CPUs")
    parser.add_argument("--kernels", choices=("auto", "plain", "packed"), default="auto")
    return parser


def _plan(arguments: argparse.Namespace) -> Plan:
    if not (arguments.model / "config.json").is_file():
        raise ValueError(f"{arguments.model} is no model's folder: it has no config.json")
    if arguments.stages < 1:
        raise ValueError(f"--stages is {arguments.stages}; it must be at least 1")
    return plan(
        [_device(arguments)] * arguments.stages,
        explicit=arguments.layers,
        rows=arguments.rows,
        num_lanes=arguments.lanes,
        tolerance=TOLERANCE if arguments.measure else 0.0,
    )


def _device(arguments: argparse.Namespace) -> Device:
    # Imported here so that --help does not wait for torch.
    import torch

    from handlers.pipeline import profile

    dtype, device = getattr(torch, arguments.dtype), torch.device(arguments.device)
    if not arguments.measure:
        return Device(profile.count(arguments.model, dtype))
    from handlers.pipeline import kernels

    torch.set_num_threads(arguments.threads)
    measured = profile.measure(
        arguments.model,
        dtype,
        device,
        prepare=lambda parts: kernels.prepare(parts, kernels=arguments.kernels),
    )
    memory = measured.memory if device.type == "cpu" else ""
    return Device(measured.costs(arguments.rows), measured.free_bytes, memory)
