"""Decides, before any work is done, whether a request's lost attempt can go on.

An attempt that is lost leaves its tokens in the journal, and the next one goes on after them. What
that is worth depends on the engine and on what is asked of it:

    exact   the logits after the known tokens are bit for bit what they would have been, so the
            answer is too; with the same build, dtype and kind of device
    close   it goes on from the same tokens; the last bits of its logits may differ, so that in a
            low precision a later token may
    none    it cannot go on: once output is on disk, a lost attempt fails its task, because a new
            one would answer differently and the two would be mixed

It knows requests and models' settings only; who is lost, and when, is not its business.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from handlers.model_config import ModelConfig
from handlers.wire import GenerationRequest, Request

EXACT: Final = "exact"
CLOSE: Final = "close"
NONE: Final = "none"
#: Every label, best first.
LABELS: Final = (EXACT, CLOSE, NONE)

#: Engines that compute an answer in the same pieces whenever they do, whatever their YAML says.
ALWAYS_EXACT: Final = ("transformers",)

#: Engines that cannot go on when one of these fields is set: what they keep beside the tokens (a
#: grammar's state, how often the answer holds a token) cannot be made again from them.
CANNOT_GO_ON: Final[Mapping[str, tuple[str, ...]]] = {
    "vllm": ("json_schema", "regex", "presence_penalty", "frequency_penalty")
}


def label(request: Request, config: ModelConfig) -> str:
    """One of ``LABELS``: what becomes of the request's answer when an attempt is lost."""
    if not isinstance(request, GenerationRequest):
        # One answer in one piece: nothing is on disk before it is whole, so none can be mixed.
        return CLOSE
    if fields_in_the_way(request, config):
        return NONE
    is_exact = config.resume == "exact" or config.engine in ALWAYS_EXACT
    return EXACT if is_exact else CLOSE


def fields_in_the_way(request: GenerationRequest, config: ModelConfig) -> tuple[str, ...]:
    """The request's fields for which the model's engine cannot go on; empty when it can."""
    named = CANNOT_GO_ON.get(config.engine, ())
    return tuple(name for name in named if getattr(request, name))
