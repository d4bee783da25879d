"""Finds out whether an encoder can be cut into stages, by doing it to a thin copy of it.

As ``family_check`` does for decoders: the copy is run whole, text by text, and as the stages that
are planned, padded into one batch. If what comes out differs, the model is refused: an encoder
whose later layers look at earlier ones, that changes hidden states before its first layer, or
whose answer depends on how far a text is padded.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from handlers.pipeline.encoder_stage import EncoderStage, read_config
from handlers.pipeline.encoder_surgery import AUTO_CLASSES
from handlers.pipeline.partition import Cut
from handlers.pipeline.thin_model import NotThin, brief, write_thin

#: Largest difference of two numbers, as a share of the whole model's spread.
TOLERANCE: Final = 2e-3

_LENGTHS: Final = (40, 1, 17)


def check(folder: Path, cuts: Sequence[Cut], task: str) -> None:
    """Return when the stages ``cuts`` answer as the whole model does.

    ``task``: "embed" or "classify".

    Raises:
        ValueError: they do not, or it cannot be told; says why.
    """
    config = read_config(folder)
    with tempfile.TemporaryDirectory(prefix="plait-encoder-") as thin:
        try:
            expected = write_thin(config, AUTO_CLASSES[task], Path(thin), _run_whole)
            given = _run_stages(Path(thin), cuts, task)
        except NotThin as error:
            raise _refusal(config, task, f"it cannot be tried ({error})") from error
        except Exception as error:
            raise _refusal(config, task, f"its stages fail ({brief(error)})") from error
    difference = float((given - expected).abs().max() / expected.std())
    if not difference < TOLERANCE:
        reason = f"a small copy of it answers differently from the whole, by {difference:.1e}"
        raise _refusal(config, task, reason)


def _refusal(config: Any, task: str, reason: str) -> ValueError:
    return ValueError(
        f"the encoder engine cannot split {config.model_type} models to {task}: {reason}"
    )


def _texts() -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(5, 200, (length,), generator=generator) for length in _LENGTHS]


@torch.inference_mode()
def _run_whole(model: Any) -> Tensor:
    answers = []
    for text in _texts():
        answer = model(input_ids=text[None], attention_mask=torch.ones(1, len(text)))
        is_head = hasattr(answer, "logits")
        answers.append(answer.logits[0] if is_head else answer.last_hidden_state[0].mean(0))
    found = torch.stack(answers).float()
    if not torch.isfinite(found).all() or found.std() == 0:
        raise ValueError("its answers are not finite, or all the same")
    return found


@torch.inference_mode()
def _run_stages(folder: Path, cuts: Sequence[Cut], task: str) -> Tensor:
    x = torch.zeros(len(_LENGTHS), max(_LENGTHS), dtype=torch.long)
    for row, text in zip(x, _texts(), strict=True):
        row[: len(text)] = text
    mask = torch.arange(x.shape[1])[None] < torch.tensor(_LENGTHS)[:, None]
    cpu = torch.device("cpu")
    for cut in cuts:
        x = EncoderStage(folder, cut, torch.float32, cpu, task)(x, attention_mask=mask)
    return x
