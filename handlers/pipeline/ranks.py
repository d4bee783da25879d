"""The work of every rank but the first: take a step, run it, pass it on, until told to stop."""

from __future__ import annotations

import torch

from handlers.pipeline.sampling import draw
from handlers.pipeline.stage import Stage
from handlers.pipeline.step import Operation, Step
from handlers.pipeline.transport import Ring


def serve(stage: Stage, ring: Ring) -> None:
    """Work until the first rank closes the pipeline.

    Raises:
        RuntimeError: a neighbour is gone or silent.
    """
    while True:
        step = ring.receive_step()
        if not stage.is_last:
            ring.send_step(step)
        if step.operation is Operation.STOP:
            ring.flush()
            return
        if step.operation is Operation.FORWARD:
            _forward(step, stage, ring)
        elif stage.is_last:
            ring.send_tokens([])


def _forward(step: Step, stage: Stage, ring: Ring) -> None:
    hidden = ring.receive_hidden(step, stage.hidden_size, stage.dtype)
    result = stage.forward(step, hidden)
    if stage.is_last:
        with torch.inference_mode():
            ring.send_tokens(draw(result, step.rows))
    else:
        ring.send_hidden(result)
