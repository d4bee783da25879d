"""Measures a model's parts in a process of its own, as a stage does; prints the profile.

    python -m tests.integration.profile_stage MODEL_FOLDER REPEATS

Every layer runs ``REPEATS`` times instead of once, so the device seems so much slower.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from handlers.pipeline import profile
from handlers.pipeline.surgery import StageModel


def repeated(forward: Callable[..., Any], times: int) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        for _ in range(times - 1):
            forward(*args, **kwargs)
        return forward(*args, **kwargs)

    return run


def slow_down(parts: StageModel, times: int) -> None:
    for module in parts.decoder.modules():
        if isinstance(module, nn.ModuleList):
            for layer in module:
                layer.forward = repeated(layer.forward, times)


def main(folder: str, times: str) -> None:
    torch.set_num_threads(1)
    measured = profile.measure(
        Path(folder),
        torch.float32,
        torch.device("cpu"),
        prepare=lambda parts: slow_down(parts, int(times)),
    )
    json.dump(measured.to_document(), sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
