"""Decides what a request's next token means: text to send, and whether it is the last one.

The answer to (prompt, generated tokens) is the same whether the tokens come from the pipeline or
from an earlier attempt's journal; resuming is replaying them and saying nothing.

A :class:`Generation` is one answer. A request may ask for several; :class:`Completion` holds them
all and makes one end of their ends.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from handlers.pipeline.detokenizer import Decode, Detokenizer
from handlers.pipeline.step import Draw
from handlers.wire import BadRequest, Chunk, Finish, GenerationRequest, TokenLogprob


@dataclass(frozen=True, slots=True)
class Limits:
    """What a model allows and where it ends."""

    #: Prompt and answer together, in tokens.
    max_context: int
    vocabulary_size: int
    eos_token_ids: frozenset[int]


class Generation:
    """One answer on its way from prompt to finish."""

    def __init__(
        self,
        request: GenerationRequest,
        prompt_token_ids: Sequence[int],
        limits: Limits,
        decode: Decode,
        index: int = 0,
    ) -> None:
        """Replays what earlier attempts produced of the answer ``index``.

        Raises:
            BadRequest: the tokens do not fit the model.
        """
        generated = request.generated_of(index)
        _refuse_unfit(prompt_token_ids, generated, limits)
        _refuse_unknown_biases(request, limits)
        self._index = index
        self._eos: Collection[int] = () if request.ignore_eos else limits.eos_token_ids
        self._detokenizer = Detokenizer(decode, prompt_token_ids, request.stop)
        self._num_prompt = len(prompt_token_ids)
        self._most = min(request.max_new_tokens, limits.max_context - self._num_prompt)
        self._count = 0
        #: Set by the token that ends the answer.
        self.finish: Finish | None = None
        for token_id in generated:
            if self.finish is not None:
                raise BadRequest("generated", f"goes on after token {self._count}, which ended it")
            self.add(token_id)

    def add(self, token_id: int, logprob: TokenLogprob | None = None) -> Chunk:
        """Take the next token; sets ``finish`` when it is the last one.

        ``logprob`` goes into the chunk beside the token; None when it was not asked for.
        """
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
        return Chunk((token_id,), text, self._index, () if logprob is None else (logprob,))


class Completion:
    """All answers to one request."""

    def __init__(
        self,
        request: GenerationRequest,
        prompt_token_ids: Sequence[int],
        limits: Limits,
        decode: Decode,
    ) -> None:
        """Replays what earlier attempts produced of each answer.

        Raises:
            BadRequest: the tokens do not fit the model.
        """
        self._answers = tuple(
            Generation(request, prompt_token_ids, limits, decode, index)
            for index in range(request.n)
        )

    def __repr__(self) -> str:
        num_open = sum(answer.finish is None for answer in self._answers)
        return f"<Completion open={num_open}/{len(self._answers)}>"

    def add(self, index: int, draw: Draw) -> list[Chunk | Finish]:
        """The answer ``index`` goes on with what was drawn, which has no fault.

        Returns:
            What to send: a chunk, and the request's finish after it when this ends the last
            answer that was open.
        """
        logprob = None if draw.logprob is None else TokenLogprob(draw.logprob, draw.top)
        chunk = self._answers[index].add(draw.token_id, logprob)
        finish = self.finish
        return [chunk] if finish is None else [chunk, finish]

    def has_ended(self, index: int) -> bool:
        """Whether the answer ``index`` takes no further token."""
        return self._answers[index].finish is not None

    @property
    def finish(self) -> Finish | None:
        """The end of the request: None while an answer is open."""
        ends = [answer.finish for answer in self._answers if answer.finish is not None]
        if len(ends) < len(self._answers):
            return None
        first = ends[0]
        if len(ends) == 1:
            return first
        num_output = sum(end.num_output_tokens for end in ends)
        reasons = tuple(end.reason for end in ends)
        return Finish(first.reason, first.num_prompt_tokens, num_output, reasons)


def _refuse_unfit(prompt: Sequence[int], generated: Sequence[int], limits: Limits) -> None:
    if not prompt:
        raise BadRequest("prompt", "gives no tokens")
    _refuse_unknown_tokens("prompt_token_ids", prompt, limits)
    _refuse_unknown_tokens("generated", generated, limits)
    room = limits.max_context - len(generated)
    if len(prompt) + 1 > room + bool(generated):
        raise BadRequest(
            "prompt",
            f"is {len(prompt)} tokens long; with {len(generated)} generated and one more "
            f"it does not fit the context of {limits.max_context}",
        )


def _refuse_unknown_tokens(name: str, token_ids: Sequence[int], limits: Limits) -> None:
    for index, token_id in enumerate(token_ids):
        if not 0 <= token_id < limits.vocabulary_size:
            raise BadRequest(
                f"{name}[{index}]",
                f"is {token_id}; the vocabulary has 0 to {limits.vocabulary_size - 1}",
            )


def _refuse_unknown_biases(request: GenerationRequest, limits: Limits) -> None:
    for token_id, _ in request.logit_bias:
        if not 0 <= token_id < limits.vocabulary_size:
            raise BadRequest(
                f"logit_bias[{token_id}]",
                f"names no token; the vocabulary has 0 to {limits.vocabulary_size - 1}",
            )
