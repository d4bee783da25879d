"""What an engine gives back for a request."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Logprob:
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None
    logprobs: list[dict[int, Logprob]] | None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass
class RequestOutput:
    request_id: str
    prompt: str | None
    prompt_token_ids: list[int] | None
    outputs: list[CompletionOutput]
    finished: bool

    def add(self, following: RequestOutput) -> None:
        """Take a further delta in, as the package does when its consumer is slow."""
        mine, its = self.outputs[0], following.outputs[0]
        mine.token_ids = [*mine.token_ids, *its.token_ids]
        if mine.logprobs is not None and its.logprobs is not None:
            mine.logprobs += its.logprobs
        mine.finish_reason, mine.stop_reason = its.finish_reason, its.stop_reason
        self.finished |= following.finished
