"""A step survives the way through a header."""

from __future__ import annotations

from handlers.pipeline.step import Operation, Row, Sampling, Step, decode, encode, header_size


def test_a_decoded_header_is_the_step_that_was_encoded() -> None:
    how = Sampling(temperature=0.1 + 0.2, top_k=50, top_p=1 / 3, seed=2**63 - 1)
    step = Step(Operation.FORWARD, 16, 128, (Row(0, 100, 16, how), Row(3, 0, 0)))

    assert decode(encode(step, max_rows=4)) == step


def test_every_header_has_the_same_size() -> None:
    full = Step(Operation.FORWARD, 1, 64, tuple(Row(slot, 0, 1) for slot in range(4)))

    assert len(encode(full, 4)) == len(encode(Step(Operation.BEAT), 4)) == header_size(4)
