"""One rank's process: builds its stage of a model and says what memory that took.

Arguments: the model's folder, the stage's first layer, the layer behind its last, a dtype, and the
folder of a small model to be built first, so that what is imported on the way is not counted.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from handlers.pipeline import surgery
from handlers.pipeline.stage import Stage
from handlers.pipeline.step import BLOCK, Row, Step

MIB = 2**20


def resident(field: str) -> float:
    """A number of this process in MiB: VmRSS, or VmHWM, the most it was."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise AssertionError(field)


def mapped_weights() -> float:
    """Pages of weight files that were read into this process and are still there, in MiB."""
    total, is_weights = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ", 1)[0]:
            is_weights = line.endswith(".safetensors")
        elif is_weights and line.startswith("Rss:"):
            total += int(line.split()[1])
    return total / 1024


def build_and_run(folder: Path, cut: tuple[int, int], dtype: torch.dtype) -> Stage:
    """A stage that has touched each of its weights."""
    stage = Stage(surgery.build(folder, cut, dtype), 1, BLOCK)
    stage.allocate(1)
    tokens = torch.zeros(1, 8, dtype=torch.long)
    hidden = torch.zeros(1, 8, stage.hidden_size, dtype=dtype)
    step = Step(0, 8, BLOCK, (Row(0, 0, 8, is_drawn=True),))
    stage.forward(step, tokens if stage.is_first else hidden)
    return stage


def main() -> None:
    folder, start, end, dtype, small = sys.argv[1:]
    torch.set_num_threads(1)
    for cut in ((0, 1), (1, 2)):
        build_and_run(Path(small), cut, getattr(torch, dtype))
    # Makes what is resident now the peak so far.
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    stage = build_and_run(Path(folder), (int(start), int(end)), getattr(torch, dtype))
    own = {"grown": resident("VmHWM") - before, "mapped": mapped_weights()}
    sys.stdout.write(json.dumps(own | {"stage": repr(stage)}) + "\n")


if __name__ == "__main__":
    main()
