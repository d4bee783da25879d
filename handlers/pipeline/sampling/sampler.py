"""What the last stage asks for tokens: keeps what each slot's draws depend on, and draws.

A slot's state is a function of what opened it and of the tokens drawn since, so nothing of it is
ever saved. A row's token is the same to the bit whichever rows are beside it: sums are exact
(:mod:`handlers.pipeline.sampling.weights`) and all else is elementwise or compares.

The rows of a step are worked on together, on the device of the logits, and what was drawn comes
back in one transfer. Steps of greedy rows cost one ``argmax``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from handlers.pipeline.sampling import adjustments, choice, grammar, logprobs, noise
from handlers.pipeline.sampling.adjustments import Adjustments
from handlers.pipeline.sampling.filters import Shapes
from handlers.pipeline.sampling.grammar import Grammars, Matcher
from handlers.pipeline.step import Draw, Open, Row, Sampling

logger = logging.getLogger(__name__)

NOT_FINITE: Final = "the model's logits are not finite"
NONE_LEFT: Final = "no token is left: all that are allowed have no likelihood"

#: Columns of what comes back before the log probabilities: token, peak, adjusted peak.
_FIXED: Final = 3


@dataclass(frozen=True, slots=True)
class _Slot:
    """What the draws of one sequence depend on, besides its logits."""

    how: Sampling
    adjustments: Adjustments | None
    matcher: Matcher | None
    #: Why there is no token, whatever the logits.
    fault: str = ""

    @property
    def is_plain(self) -> bool:
        """Whether the likeliest token is the one."""
        return self.how.temperature == 0 and not self.changes_logits

    @property
    def changes_logits(self) -> bool:
        return self.adjustments is not None or self.matcher is not None

    def add(self, token_id: int) -> None:
        if self.adjustments is not None:
            self.adjustments.add(token_id)
        if self.matcher is not None:
            self.matcher.add(token_id)


class Sampler:
    """Draws the tokens of one model's slots."""

    def __init__(
        self,
        vocabulary_size: int,
        device: torch.device | str,
        tokenizer: Callable[[], Any] | None = None,
        eos_token_ids: Collection[int] = (),
    ) -> None:
        """Nothing is loaded yet.

        Args:
            vocabulary_size: how many logits a row has.
            tokenizer: loads the fast tokenizer; called when the first grammar comes. None: a
                sequence with a grammar gets a fault.
            eos_token_ids: what ends a constrained answer; empty for the tokenizer's own.
        """
        self._device = _with_float64(torch.device(device))
        self._slots: dict[int, _Slot] = {}
        self._grammars = tokenizer and Grammars(tokenizer, vocabulary_size, eos_token_ids)

    def __repr__(self) -> str:
        return f"<Sampler slots={len(self._slots)} {self._grammars!r}>"

    def prepare(self) -> None:
        """Load what the first grammar would wait for, and every other row of its step with it."""
        if self._grammars:
            self._grammars.prepare()

    def open(self, opened: Open) -> None:
        """A sequence takes a slot; what the slot held before is forgotten."""
        how = opened.sampling
        adjusted = Adjustments(opened) if adjustments.needed(how) else None
        try:
            self._slots[opened.slot] = _Slot(how, adjusted, self._matcher(opened))
        except grammar.GrammarFault as error:
            self._slots[opened.slot] = _Slot(how, adjusted, None, f"the grammar {error}")

    @torch.inference_mode()
    def draw(self, logits: Tensor, rows: Sequence[Row]) -> list[Draw | None]:
        """The token after each row, which its slot's state then holds.

        Args:
            logits: [rows, vocabulary] of any float type; not changed.

        Returns:
            None for rows after which nothing is drawn. A row whose logits are not finite, or
            whose grammar cannot be followed, has a draw with a fault and leaves its slot as it
            was; the other rows are not affected.

        Raises:
            KeyError: a row is drawn whose slot no sequence has taken.
        """
        wanted = [index for index, row in enumerate(rows) if row.is_drawn]
        if not wanted:
            return [None] * len(rows)
        slots = {index: self._slot(rows[index].slot) for index in wanted}
        found = self._draw(logits, rows, slots)
        return [
            _advanced(slots[index], found[index]) if index in slots else None
            for index in range(len(rows))
        ]

    def _slot(self, number: int) -> _Slot:
        if number not in self._slots:
            raise KeyError(f"slot {number} draws a token and no sequence has taken it")
        return self._slots[number]

    def _matcher(self, opened: Open) -> Matcher | None:
        how = opened.sampling
        if how.json_schema is None and how.regex is None:
            return None
        if not self._grammars:
            raise grammar.GrammarFault("cannot be used: this model has no tokenizer")
        return self._grammars.open(how, opened.generated)

    def _draw(
        self, logits: Tensor, rows: Sequence[Row], slots: dict[int, _Slot]
    ) -> dict[int, Draw]:
        logits = logits.to(self._device)
        # Half-width floats are slow to compare on a CPU, and exact in single width.
        logits = logits.float() if logits.device.type == "cpu" else logits
        tokens = logits.argmax(dim=-1)
        peaks = logits.gather(1, tokens[:, None])[:, 0].to(torch.float64)
        lefts = peaks.clone()
        shaped = [index for index, slot in slots.items() if not slot.is_plain]
        faults: dict[int, str] = {index: slot.fault for index, slot in slots.items() if slot.fault}
        if shaped:
            chosen = torch.tensor(shaped, device=logits.device)
            own = choice.rows(logits, shaped).float()
            is_shared = own.data_ptr() == logits.data_ptr()
            changes = any(slots[i].changes_logits for i in shaped)
            part = _Part(own.clone() if is_shared and changes else own, [slots[i] for i in shaped])
            positions = [rows[i].start + rows[i].num_tokens for i in shaped]
            tokens[chosen], lefts[chosen] = part.draw(positions)
            faults |= {shaped[i]: fault for i, fault in part.faults.items()}
        columns = [tokens.to(torch.float64)[:, None], peaks[:, None], lefts[:, None]]
        columns += _logprobs(logits, tokens, slots)
        table = torch.cat(columns, dim=1).cpu().numpy()
        return {
            index: _result(table[index], slot.how, faults.get(index, ""))
            for index, slot in slots.items()
        }


class _Part:
    """The rows of a step that are not plain."""

    def __init__(self, logits: Tensor, slots: Sequence[_Slot]) -> None:
        """``logits`` are float32 [rows, vocabulary] and are changed where a slot has it so."""
        self._logits, self._slots = logits, slots
        #: Why a row has no token, by its index in here.
        self.faults: dict[int, str] = {}

    def draw(self, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Each row's token (int64) and the highest logit it had left (float64)."""
        self._adjust()
        self._constrain()
        tokens = self._logits.argmax(dim=-1)
        peaks = self._logits.gather(1, tokens[:, None])[:, 0].to(torch.float64)
        warm = [i for i, slot in enumerate(self._slots) if slot.how.temperature > 0]
        if warm:
            chosen = torch.tensor(warm, device=tokens.device)
            tokens[chosen] = self._draw_warm(warm, peaks[chosen], positions)
        return tokens, peaks

    def _adjust(self) -> None:
        found = [(i, slot.adjustments) for i, slot in enumerate(self._slots)]
        kept = [(i, each) for i, each in found if each is not None]
        adjustments.apply(self._logits, [i for i, _ in kept], [each for _, each in kept])

    def _constrain(self) -> None:
        found = [(i, slot.matcher) for i, slot in enumerate(self._slots)]
        kept = [(i, matcher) for i, matcher in found if matcher is not None]
        if not kept:
            return
        masks = grammar.masks_of([matcher for _, matcher in kept])
        for i, matcher in kept:
            if matcher.fault:
                self.faults[i] = f"the grammar cannot be followed: {matcher.fault}"
        grammar.forbid(self._logits, [i for i, _ in kept], masks)

    def _draw_warm(self, warm: Sequence[int], peaks: Tensor, positions: Sequence[int]) -> Tensor:
        hows = [self._slots[i].how for i in warm]
        keys = [
            noise.key(how.seed, how.index, positions[i]) for i, how in zip(warm, hows, strict=True)
        ]
        logits = choice.rows(self._logits, warm)
        return choice.draw(logits, Shapes.of(hows, logits.shape[-1], peaks, keys))


def _with_float64(device: torch.device) -> torch.device:
    """The device, or the CPU in place of one that cannot compute in double width."""
    try:
        torch.ones(1, dtype=torch.float64, device=device).exp().item()
    except (RuntimeError, TypeError):
        logger.info("sampling_on_cpu device=%s reason=no_float64", device)
        return torch.device("cpu")
    return device


def _logprobs(logits: Tensor, tokens: Tensor, slots: dict[int, _Slot]) -> list[Tensor]:
    """The columns of log probabilities, when any row asks for them."""
    asking = [index for index, slot in slots.items() if slot.how.logprobs is not None]
    if not asking:
        return []
    most = max(slots[index].how.logprobs or 0 for index in asking)
    chosen = torch.tensor(asking, device=logits.device)
    found = logprobs.of_tokens(
        choice.rows(logits, asking).float(), tokens[chosen], min(most, logits.shape[-1])
    )
    columns = torch.zeros(len(logits), found.shape[1], dtype=torch.float64, device=logits.device)
    columns[chosen] = found
    return [columns]


def _result(row: NDArray[np.float64], how: Sampling, fault: str) -> Draw:
    token_id, peak, left = row[:_FIXED]
    if not np.isfinite(peak):
        return Draw(-1, fault=NOT_FINITE)
    if fault:
        return Draw(-1, fault=fault)
    if not np.isfinite(left):
        return Draw(-1, fault=NONE_LEFT)
    if how.logprobs is None:
        return Draw(int(token_id))
    most = (len(row) - _FIXED - 1) // 2
    ids, values = row[_FIXED + 1 :][:most], row[_FIXED + 1 + most :]
    top = zip(map(int, ids[: how.logprobs]), map(float, values), strict=False)
    return Draw(int(token_id), float(row[_FIXED]), tuple(top))


def _advanced(slot: _Slot, draw: Draw) -> Draw:
    if not draw.fault:
        slot.add(draw.token_id)
    return draw
