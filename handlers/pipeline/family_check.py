"""Finds out whether a model can be cut into stages, by doing it to a thin copy of it.

There is no list of families. A copy of the model with the same layers and few random weights is
written to a temporary folder, built once whole and once as the stages that are planned, and both
are given the same sequences: the stages in chunks, token by token, in rows of different lengths
that come and go; the whole model all at once and without a cache. If the logits differ, stages
would answer something else than the model, for whatever reason: layers that look at another
layer's states, positions that are added elsewhere, memory that is no key and value, attention
that takes no mask. Then the model is refused; nothing is served wrongly and silently.

It runs on the CPU in float32, takes about a second and reads no weights of the real model. It does
not check these: the real weights are the business of whoever loads them.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from handlers.pipeline import surgery
from handlers.pipeline.partition import Cut
from handlers.pipeline.stage import Stage
from handlers.pipeline.step import BLOCK, Row, Step
from handlers.pipeline.thin_config import LENGTH_DEPENDENT, ropes
from handlers.pipeline.thin_model import NotThin, brief, write_thin

logger = logging.getLogger(__name__)

#: What can be done about a refusal; the end of each message.
ADVICE: Final = "set engine: transformers, which runs it as one stage"
#: Largest difference of two logits, as a share of their spread. Float32 stays below a
#: hundredth of it; a layer that is told something wrong changes logits by their spread.
TOLERANCE: Final = 2e-3
#: Kinds of layers whose masks and memory a stage knows.
LAYER_TYPES: Final = ("full_attention", "sliding_attention")

_SLOTS: Final = 3
_CONTEXT: Final = 2 * BLOCK
_CHUNK: Final = 32
#: Lengths of the sequences; the first does not fit one block, nor any sliding window.
_LENGTHS: Final = (BLOCK + 10, 21, 4)
_NUM_DECODED: Final = 4


def check(model_dir: Path, cuts: Sequence[Cut], max_context: int) -> None:
    """Return when the stages ``cuts`` answer as the whole model does.

    ``max_context``: the most positions a sequence will have.

    Raises:
        ValueError: they do not, or it cannot be told; says why and what to do.
    """
    config = AutoConfig.from_pretrained(model_dir)
    _refuse_by_config(config, max_context)
    text: Any = config.get_text_config(decoder=True)
    if len(cuts) > 1 and getattr(text, "num_kv_shared_layers", None):
        raise _refusal(config, "its later layers look at the keys and values of earlier ones")
    with tempfile.TemporaryDirectory(prefix="plait-family-") as folder:
        try:
            expected = write_thin(config, AutoModelForCausalLM, Path(folder), _run_whole)
        except NotThin as error:
            raise _refusal(config, f"no small copy can be made to try it with ({error})") from error
        try:
            given = _run_stages(Path(folder), cuts)
        except Exception as error:
            logger.info("family_refused", exc_info=True)
            reason = (
                "given positions, masks and keys and values as stages keep them, it fails "
                f"({brief(error)})"
            )
            raise _refusal(config, reason) from error
    for place, logits in given.items():
        difference = float((logits - expected[place]).abs().max() / expected[place].std())
        if not difference < TOLERANCE:
            raise _refusal(
                config,
                "cut into stages that keep keys and values per layer, a small copy of it "
                f"answers differently from the whole (token {place[1]} of a sequence is "
                f"{difference:.1e} off)",
            )


def _refuse_by_config(config: Any, max_context: int) -> None:
    """Refuse what a short run cannot show, or what can be said in clearer words."""
    text = config.get_text_config(decoder=True)
    if config.is_encoder_decoder:
        raise _refusal(config, "it has an encoder whose states every decoder layer looks at")
    if not isinstance(getattr(text, "num_hidden_layers", None), int):
        raise _refusal(config, "its configuration does not say how many decoder layers it has")
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise _refusal(config, "transformers has no class that generates text with it")
    model_class: Any = AutoModelForCausalLM._model_mapping[type(config)]
    if model_class._is_stateful:
        raise _refusal(config, "it keeps a running state, which no block of positions can hold")
    if others := set(getattr(text, "layer_types", None) or ()) - set(LAYER_TYPES):
        kinds = ", ".join(sorted(others))
        raise _refusal(config, f"it has layers whose masks or memory stages do not know ({kinds})")
    for rope in ropes(text):
        kind = str(rope.get("rope_type", "default"))
        original = rope.get("original_max_position_embeddings") or getattr(
            text, "original_max_position_embeddings", text.max_position_embeddings
        )
        if any(name in kind for name in LENGTH_DEPENDENT) and max_context > original:
            raise _refusal(
                config,
                f"its {kind} positions depend on the longest sequence of a step beyond {original} "
                f"tokens, so one request would change another's answer; max_context is "
                f"{max_context}, allowed are {original}",
            )


def _refusal(config: Any, reason: str) -> ValueError:
    return ValueError(f"{config.model_type} models cannot be cut into stages: {reason}; {ADVICE}")


def _sequences() -> list[list[int]]:
    generator = torch.Generator().manual_seed(2)
    lengths = [length + _NUM_DECODED for length in _LENGTHS]
    return [torch.randint(5, 200, (n,), generator=generator).tolist() for n in lengths]


@torch.inference_mode()
def _run_whole(model: Any) -> dict[tuple[int, int], Tensor]:
    found: dict[tuple[int, int], Tensor] = {}
    for slot, token_ids in enumerate(_sequences()):
        logits = model(input_ids=torch.tensor([token_ids]), use_cache=False).logits[0].float()
        if logits.shape[0] != len(token_ids) or not torch.isfinite(logits).all():
            raise ValueError("its logits are not one finite row for each token")
        found |= {(slot, place): row for place, row in enumerate(logits)}
    return found


def _run_stages(folder: Path, cuts: Sequence[Cut]) -> dict[tuple[int, int], Tensor]:
    stages = [_stage(folder, cut) for cut in cuts]
    found: dict[tuple[int, int], Tensor] = {}
    for step in _steps(_sequences()):
        hidden = torch.tensor(step.token_ids)
        for stage in stages:
            hidden = stage.forward(step, hidden)
        for row, logits in zip(step.rows, hidden.float(), strict=True):
            if row.is_drawn:
                found[row.slot, row.start + row.num_tokens - 1] = logits
    return found


def _stage(folder: Path, cut: Cut) -> Stage:
    stage = Stage(surgery.build(folder, cut, torch.float32), _SLOTS, _CONTEXT)
    stage.allocate(_SLOTS * _CONTEXT // BLOCK)
    return stage


def _steps(sequences: Sequence[Sequence[int]]) -> Iterator[Step]:
    """Prompts in chunks beside others' single tokens, then all of them token by token."""
    number = 0
    done = [0] * len(sequences)
    joined = 1
    while any(at < len(tokens) for at, tokens in zip(done, sequences, strict=True)):
        counts = [0] * len(sequences)
        for slot in range(joined):
            prompt = _LENGTHS[slot] - done[slot]
            left = len(sequences[slot]) - done[slot]
            counts[slot] = min(_CHUNK, prompt) if prompt > 0 else min(1, left)
        yield _step(number, sequences, done, counts)
        done = [at + count for at, count in zip(done, counts, strict=True)]
        joined = min(joined + 1, len(sequences))
        number += 1


def _step(
    number: int, sequences: Sequence[Sequence[int]], done: list[int], counts: list[int]
) -> Step:
    width = max(counts)
    end = max(at + count for at, count in zip(done, counts, strict=True))
    rows, token_ids = [], []
    for slot, (at, count) in enumerate(zip(done, counts, strict=True)):
        rows.append(Row(slot, at, count, is_drawn=count > 0))
        tokens = list(sequences[slot][at : at + count])
        token_ids.append((*tokens, *[0] * (width - count)))
    return Step(number, width, -(-end // BLOCK) * BLOCK, tuple(rows), tuple(token_ids))
