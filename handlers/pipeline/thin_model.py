"""Makes a thin copy of a model, whole and with random weights, to try something with.

The copy answers as the real model would, weights aside, and is small enough to be made in about a
second. What is tried with it, and what that shows, is the business of whoever asks for it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import torch
from torch import nn
from transformers.utils import logging as transformers_logging

from handlers.pipeline.thin_config import RECIPES, thin_config

#: Most parameters of a thin copy; what is larger was not made thin.
MAX_PARAMETERS: Final = 60_000_000

Found = TypeVar("Found")


class NotThin(ValueError):
    """No thin copy of the model could be made and run."""


def write_thin(config: Any, auto_class: Any, folder: Path, run: Callable[[Any], Found]) -> Found:
    """Write a thin copy of the model into a folder; returns what ``run`` makes of it, whole.

    ``auto_class``: the class of transformers that makes a model of a configuration.

    Raises:
        NotThin: the copies cannot be built, or ``run`` fails with all of them.
    """
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers has no types here
    failure: Exception | None = None
    for recipe in RECIPES:
        try:
            model = _random_model(thin_config(config, recipe), auto_class.from_config)
            found = run(model)
            model.save_pretrained(folder)
        except Exception as error:  # noqa: BLE001  # it may be anything; the next is tried
            failure = failure or error
        else:
            return found
    assert failure is not None
    raise NotThin(brief(failure)) from failure


def brief(error: Exception) -> str:
    """An exception in a few words, for a sentence about something else."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:200]


def _random_model(config: Any, build: Callable[..., Any]) -> Any:
    with torch.device("meta"):
        shape = build(config)
    if (size := sum(p.numel() for p in shape.parameters())) > MAX_PARAMETERS:
        raise ValueError(f"it would have {size} parameters")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build(config, dtype=torch.float32)
    _randomise(model)
    return model.eval().requires_grad_(False)


@torch.no_grad()
def _randomise(model: nn.Module) -> None:
    """Weights that carry signals through any number of layers, so that every one is heard."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            parameter.copy_(noise / parameter.shape[-1] ** 0.5)
        else:
            # Norms rest at 0 in some models and at 1 in others.
            parameter.add_(noise.clamp(-2, 2) * 0.2)
