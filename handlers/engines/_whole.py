"""A whole causal language model, and sequences it reads piece by piece.

What a model keeps between two calls has many forms (keys and values, a recurrent state, nothing
at all), and whether it can go on with several tokens at once differs as well. So a model is asked
when it is loaded: it reads a few tokens in one piece and in several, and what gives the same
logits is what is used. It knows neither requests nor how tokens are drawn.
"""

from __future__ import annotations

import inspect
import itertools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

logger = logging.getLogger(__name__)

#: What a model calls its memory, in its output and in the arguments of its next call.
_MEMORY_NAMES: Final = ("past_key_values", "cache_params", "state")
#: How the tokens of the trial are cut: into some that go on with many, and with one.
_IN_CHUNKS: Final = (5, 3, 8)
_IN_STEPS: Final = (13, 1, 1, 1)
#: How far off the logits of pieces may be, as a share of how far off they are when all pieces but
#: the last were never read. In a small model what is forgotten may matter as little as rounding
#: does in another, so there is no fixed number for it.
_TOLERANCE: Final = 0.1
#: What is no error in any case, as a share of the logits' spread.
_ROUNDING: Final = 1e-5


class WholeModel:
    """A model on one device."""

    def __init__(self, model: Any, device: torch.device) -> None:
        """Tries out what the model can do."""
        self.device = device
        self._model = model
        self._options: dict[str, Any] = {"use_cache": True, "return_dict": True}
        if "logits_to_keep" in inspect.signature(model.forward).parameters:
            self._options["logits_to_keep"] = 1
        #: Whether it need not read everything again for each token.
        self.remembers = True
        self.remembers = self._reads_alike(_IN_STEPS)
        # What it would keep is of no use; some models keep it inside themselves.
        self._options["use_cache"] = self.remembers
        #: Whether a prompt may be read in several pieces.
        self.takes_chunks = self.remembers and self._reads_alike(_IN_CHUNKS)

    def __repr__(self) -> str:
        memory = "kept" if self.remembers else "none"
        prompts = "chunks" if self.takes_chunks else "whole"
        name = type(self._model).__name__
        return f"<WholeModel {name} device={self.device} memory={memory} prompts={prompts}>"

    @classmethod
    def load(cls, model_dir: Path, dtype: torch.dtype, device: str) -> WholeModel:
        """The model in a folder.

        Raises:
            ValueError: transformers has no causal language model of this kind, or the files lack
                weights of it.
        """
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers has no types here
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            model_dir, dtype=dtype, output_loading_info=True
        )
        model, info = loaded
        if lacking := sorted(info["missing_keys"]) + sorted(map(str, info["mismatched_keys"])):
            raise ValueError(f"the weights in {model_dir} lack or misfit {lacking[:4]}")
        return cls(model.to(device).eval(), torch.device(device))

    def begin(self) -> Reading:
        """A sequence of which nothing is read yet."""
        return Reading(self)

    @torch.inference_mode()
    def forward(self, token_ids: Sequence[int], memory: dict[str, Any]) -> Any:
        """The model's output for one row of tokens that follow what ``memory`` holds."""
        row = torch.tensor([list(token_ids)], device=self.device)
        return self._model(input_ids=row, **memory, **self._options)

    def _reads_alike(self, lengths: Sequence[int]) -> bool:
        """Whether tokens read in pieces of these lengths give the logits of the whole."""
        size = self._model.get_input_embeddings().num_embeddings
        token_ids = [7919 * (place + 1) % size for place in range(sum(lengths))]
        whole = self._read([token_ids])
        try:
            pieced = self._read(_cut(token_ids, lengths))
        except Exception as error:  # noqa: BLE001  # a model that cannot says so in any words
            logger.info("pieces_refused lengths=%s error=%r", lengths, error)
            return False
        forgotten = self._read([token_ids[-lengths[-1] :]])
        allowed = _TOLERANCE * (forgotten - whole).norm()
        rounding = _ROUNDING * (whole - whole.mean()).norm()
        return bool((pieced - whole).norm() <= max(allowed, rounding))

    def _read(self, pieces: Sequence[Sequence[int]]) -> Tensor:
        """The logits (float64) after the last of some pieces."""
        reading = self.begin()
        return [reading.read(piece) for piece in pieces][-1].double()


class Reading:
    """A sequence as far as the model has read it."""

    def __init__(self, model: WholeModel) -> None:
        self._model = model
        self._memory: dict[str, Any] = {}
        #: Everything read so far, where the model remembers nothing.
        self._token_ids: list[int] = []

    def read(self, token_ids: Sequence[int]) -> Tensor:
        """Read the next tokens; returns the logits after the last one, [vocabulary]."""
        if not self._model.remembers:
            self._token_ids += token_ids
            token_ids = self._token_ids
        output = self._model.forward(token_ids, self._memory)
        if self._model.remembers:
            self._memory = _memory_of(output)
        logits: Tensor = output.logits[0, -1]
        return logits


def _memory_of(output: Any) -> dict[str, Any]:
    for name in _MEMORY_NAMES:
        if output.get(name) is not None:
            return {name: output[name]}
    return {}


def _cut(token_ids: Sequence[int], lengths: Sequence[int]) -> list[Sequence[int]]:
    starts = itertools.accumulate(lengths, initial=0)
    return [token_ids[start : start + n] for start, n in zip(starts, lengths, strict=False)]
