"""A step survives the way to a stage, which is told what its place needs and no more."""

from __future__ import annotations

import json

from handlers.pipeline.step import Open, Row, Sampling, Step, decode, encode

HOW = Sampling(
    temperature=0.1 + 0.2, top_k=50, top_p=1 / 3, seed=2**63 - 1, index=3,
    logit_bias=((7, -1.5), (9, 100.0)), logprobs=2, json_schema='{"type": "object"}',
)  # fmt: skip
STEP = Step(
    12, 2, 128, (Row(0, 100, 2, is_drawn=True), Row(3, 0, 0)), ((5, 6), (0, 0)),
    (Open(0, HOW, (1, 2, 3), (4,)),), ((0, 1, 17),), ((3, 4),),
)  # fmt: skip


def told(*, is_first: bool, is_last: bool) -> Step:
    return decode(json.loads(json.dumps(encode(STEP, is_first=is_first, is_last=is_last))))


def test_the_only_stage_is_told_the_whole_step() -> None:
    assert told(is_first=True, is_last=True) == STEP


def test_stages_that_do_not_draw_are_not_told_how_to() -> None:
    first = told(is_first=True, is_last=False)

    assert (first.token_ids, first.opens) == (STEP.token_ids, ())


def test_stages_behind_the_first_are_not_told_the_tokens() -> None:
    last = told(is_first=False, is_last=True)

    assert (last.token_ids, last.opens) == ((), STEP.opens)


def test_every_stage_is_told_where_keys_and_values_lie() -> None:
    middle = told(is_first=False, is_last=False)

    assert (middle.tables, middle.copies, middle.rows) == (STEP.tables, STEP.copies, STEP.rows)
