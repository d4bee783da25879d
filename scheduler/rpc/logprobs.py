"""Log probabilities as messages, which runners and clients get alike, and back as values."""

from __future__ import annotations

from collections.abc import Iterable

from handlers.wire import TokenLogprob
from scheduler.rpc import plait_pb2 as pb


def to_messages(logprobs: Iterable[TokenLogprob]) -> list[pb.TokenLogprob]:
    """One message a token."""
    return [
        pb.TokenLogprob(
            logprob=given.logprob,
            top_token_ids=[token for token, _ in given.top],
            top_logprobs=[logprob for _, logprob in given.top],
        )
        for given in logprobs
    ]


def from_messages(messages: Iterable[pb.TokenLogprob]) -> tuple[TokenLogprob, ...]:
    """What :func:`to_messages` made."""
    return tuple(
        TokenLogprob(each.logprob, tuple(zip(each.top_token_ids, each.top_logprobs, strict=True)))
        for each in messages
    )
