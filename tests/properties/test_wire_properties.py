"""What crosses a process boundary as JSON is the same on the other side, whatever it holds."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from handlers.wire import (
    Chunk,
    Finish,
    GenerationRequest,
    TokenLogprob,
    decode_frame,
    encode_frame,
    join,
    parse_generation,
)
from scheduler.rpc import plait_pb2 as pb
from scheduler.rpc.logprobs import from_messages, to_messages

TOKENS = st.integers(0, 2**31 - 1)
TOKEN_LISTS = st.lists(TOKENS, max_size=4).map(tuple)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
LOGPROBS = st.floats(-9999, 0)
BIASES = st.dictionaries(TOKENS, st.floats(-100, 100), max_size=5)
SCHEMAS = st.dictionaries(
    TEXTS, st.none() | st.booleans() | TEXTS | st.floats(-1e9, 1e9), max_size=3
)
REASONS = st.sampled_from(["eos", "stop", "length"])


@st.composite
def requests(draw: st.DrawFn) -> GenerationRequest:
    n = draw(st.integers(1, 16))
    answers = draw(st.lists(TOKEN_LISTS, min_size=n, max_size=n))
    grammar = draw(st.sampled_from(["none", "json_schema", "regex"]))
    schema = json.dumps(draw(SCHEMAS), ensure_ascii=False, separators=(",", ":"))
    return GenerationRequest(
        prompt=draw(TEXTS),
        max_new_tokens=draw(st.integers(4, 10**6)),
        temperature=draw(st.floats(0, 10)),
        seed=draw(st.none() | st.integers(0, 2**63 - 1)),
        stop=tuple(draw(st.lists(TEXTS, max_size=3))),
        ignore_eos=grammar == "none" and draw(st.booleans()),
        generated=answers[0],
        min_p=draw(st.floats(0, 1)),
        repetition_penalty=draw(st.floats(0, 10, exclude_min=True)),
        presence_penalty=draw(st.floats(-2, 2)),
        frequency_penalty=draw(st.floats(-2, 2)),
        logit_bias=tuple(sorted(draw(BIASES).items())),
        logprobs=draw(st.none() | st.integers(0, 20)),
        n=n,
        json_schema=schema if grammar == "json_schema" else None,
        regex=draw(TEXTS) if grammar == "regex" else None,
        other_generated=tuple(answers[1:]) if any(answers) else (),
    )


@st.composite
def chunks(draw: st.DrawFn) -> Chunk:
    token_ids = draw(TOKEN_LISTS)
    tops = st.lists(st.tuples(TOKENS, LOGPROBS), max_size=2).map(tuple)
    each = st.builds(TokenLogprob, LOGPROBS, tops)
    logprobs = tuple(draw(each) for _ in token_ids) if draw(st.booleans()) else ()
    return Chunk(token_ids, draw(TEXTS | st.just("")), draw(st.integers(0, 15)), logprobs)


@given(request=requests())
def test_a_request_is_the_same_after_json_and_its_document_too(request: GenerationRequest) -> None:
    document = json.loads(json.dumps(request.to_document()))
    again = parse_generation(document)

    assert again == request
    assert json.loads(json.dumps(again.to_document())) == document


@given(chunk=chunks())
def test_a_chunk_is_the_same_after_its_line(chunk: Chunk) -> None:
    assert decode_frame(encode_frame(chunk)) == chunk


@given(
    reason=REASONS,
    counts=st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)),
    reasons=st.lists(REASONS, max_size=16).map(tuple),
)
def test_a_finish_is_the_same_after_its_line(
    reason: str, counts: tuple[int, int], reasons: tuple[str, ...]
) -> None:
    finish = Finish(reason, *counts, reasons)

    assert decode_frame(encode_frame(finish)) == finish


@given(chunk=chunks())
def test_log_probabilities_are_the_same_after_their_messages(chunk: Chunk) -> None:
    sent = [message.SerializeToString() for message in to_messages(chunk.logprobs)]

    assert from_messages(map(pb.TokenLogprob.FromString, sent)) == chunk.logprobs


@given(first=chunks(), then=chunks())
def test_joining_loses_and_reorders_nothing(first: Chunk, then: Chunk) -> None:
    joined = join(first, then)

    assert joined.token_ids == first.token_ids + then.token_ids
    assert joined.text == first.text + then.text
    assert joined.logprobs == first.logprobs + then.logprobs
