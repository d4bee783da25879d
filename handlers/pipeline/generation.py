"""Decides what a request's next token means: text to send, and whether it is the last one.

The answer to (prompt, generated tokens) is the same whether the tokens come from the pipeline or
from an earlier attempt's journal; resuming is replaying them and saying nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from handlers.pipeline.detokenizer import Decode, Detokenizer
from handlers.wire import BadRequest, Chunk, Finish, GenerationRequest


@dataclass(frozen=True, slots=True)
class Limits:
    """What a model allows and where it ends."""

    #: Prompt and answer together, in tokens.
    max_context: int
    vocabulary_size: int
    eos_token_ids: frozenset[int]


class Generation:
    """One request on its way from prompt to finish."""

    def __init__(
        self,
        request: GenerationRequest,
        prompt_token_ids: Sequence[int],
        limits: Limits,
        decode: Decode,
    ) -> None:
        """Replays what ``request.generated`` holds.

        Raises:
            BadRequest: the tokens do not fit the model.
        """
        _refuse_unfit(prompt_token_ids, request.generated, limits)
        self._eos: Collection[int] = () if request.ignore_eos else limits.eos_token_ids
        self._detokenizer = Detokenizer(decode, prompt_token_ids, request.stop)
        self._num_prompt = len(prompt_token_ids)
        self._most = min(request.max_new_tokens, limits.max_context - self._num_prompt)
        self._count = 0
        #: Set by the token that ends the answer.
        self.finish: Finish | None = None
        for token_id in request.generated:
            if self.finish is not None:
                raise BadRequest("generated", f"goes on after token {self._count}, which ended it")
            self.add(token_id)

    def add(self, token_id: int) -> Chunk:
        """Take the next token; sets ``finish`` when it is the last one."""
        self._count += 1
        reason = None
        if token_id in self._eos:
            reason = "eos"
        elif self._count >= self._most:
            reason = "length"
        text = self._detokenizer.add(token_id, is_last=reason is not None)
        if self._detokenizer.is_stopped:
            reason = "stop"
        if reason is not None:
            self.finish = Finish(reason, self._num_prompt, self._count)
        return Chunk((token_id,), text)


def _refuse_unfit(prompt: Sequence[int], generated: Sequence[int], limits: Limits) -> None:
    if not prompt:
        raise BadRequest("prompt", "gives no tokens")
    for name, token_ids in (("prompt_token_ids", prompt), ("generated", generated)):
        for index, token_id in enumerate(token_ids):
            if not 0 <= token_id < limits.vocabulary_size:
                raise BadRequest(
                    f"{name}[{index}]",
                    f"is {token_id}; the vocabulary has 0 to {limits.vocabulary_size - 1}",
                )
    room = limits.max_context - len(generated)
    if len(prompt) + 1 > room + bool(generated):
        raise BadRequest(
            "prompt",
            f"is {len(prompt)} tokens long; with {len(generated)} generated and one more "
            f"it does not fit the context of {limits.max_context}",
        )
