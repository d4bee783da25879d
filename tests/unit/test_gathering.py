"""How output is gathered before it is sent, where the grant says so."""

from __future__ import annotations

import pytest

from handlers.wire import Chunk, Finish, TokenLogprob
from scheduler.rpc import plait_pb2 as pb
from scheduler.runner.core import RunnerCore, Step

KEY = ("a", 1)
END = Finish("length", 1, 3)


@pytest.fixture
def core() -> RunnerCore:
    """Connected, with a lease that gathers, whose first chunk has come."""
    core = RunnerCore()
    core.welcomed([])
    core.granted(
        pb.Grant(
            task_id="a",
            fence=1,
            replica="demo__r0",
            document_json='{"prompt":"def","n":2}',
            journal_interval_s=0.1,
        )
    )
    return core


def sent(*steps: Step) -> list[tuple[int, tuple[int, ...], str]]:
    progress = [m.progress for step in steps for m in step.send if m.HasField("progress")]
    return [(each.seq, tuple(each.token_ids), each.text) for each in progress]


def test_the_first_chunk_of_an_attempt_does_not_wait(core: RunnerCore) -> None:
    assert sent(core.produced(*KEY, Chunk((1,), "a "))) == [(0, (1,), "a ")]


def test_what_comes_within_the_interval_is_one_chunk(core: RunnerCore) -> None:
    core.produced(*KEY, Chunk((1,), "a "))

    second = core.produced(*KEY, Chunk((2,), "b "))
    third = core.produced(*KEY, Chunk((3,), "c "))

    assert (second.gathers, third.gathers) == (((KEY, 0.1),), ())
    assert sent(second, third, core.flush(*KEY)) == [(1, (2, 3), "b c ")]


def test_flushing_nothing_sends_nothing(core: RunnerCore) -> None:
    core.produced(*KEY, Chunk((1,), "a "))

    assert core.flush(*KEY) == core.flush("b", 1) == Step()


def test_the_end_takes_what_was_gathered_with_it(core: RunnerCore) -> None:
    core.produced(*KEY, Chunk((1,), "a "))
    core.produced(*KEY, Chunk((2,), "b "))

    end = core.finished(*KEY, END)

    assert [message.WhichOneof("body") for message in end.send] == ["progress", "finish"]
    assert sent(end) == [(1, (2,), "b ")]


def test_an_attempt_that_is_lost_gives_back_what_was_gathered(core: RunnerCore) -> None:
    core.produced(*KEY, Chunk((1,), "a "))
    core.produced(*KEY, Chunk((2,), "b "))

    lost = core.lost(*KEY, "it died")

    assert [message.WhichOneof("body") for message in lost.send] == ["progress", "release"]


def test_another_answer_is_not_mixed_in(core: RunnerCore) -> None:
    core.produced(*KEY, Chunk((1,), "a "))
    core.produced(*KEY, Chunk((2,), "b ", 0))

    other = core.produced(*KEY, Chunk((7,), "x ", 1))

    assert sent(other, core.flush(*KEY)) == [(1, (2,), "b "), (2, (7,), "x ")]


def test_log_probabilities_stay_with_their_tokens(core: RunnerCore) -> None:
    likely = (TokenLogprob(-0.5, ()),)
    core.produced(*KEY, Chunk((1,), "a ", 0, likely))
    core.produced(*KEY, Chunk((2,), "b ", 0, likely))
    core.produced(*KEY, Chunk((3,), "c ", 0, likely))

    [message] = core.flush(*KEY).send

    assert len(message.progress.logprobs) == len(message.progress.token_ids) == 2


def test_text_without_tokens_comes_after_what_was_gathered_before_it(core: RunnerCore) -> None:
    core.produced(*KEY, Chunk((1,), "a "))
    core.produced(*KEY, Chunk((2,), "b "))

    tail = core.produced(*KEY, Chunk((), "tail"))

    assert sent(tail, core.finished(*KEY, END)) == [(1, (2,), "b "), (2, (), "tail")]


def test_what_was_gathered_while_cut_off_follows_what_the_journal_lacks(core: RunnerCore) -> None:
    core.produced(*KEY, Chunk((1,), "a "))
    core.disconnected()
    core.produced(*KEY, Chunk((2,), "b "))
    core.flush(*KEY)

    welcome = core.welcomed([pb.Ack(task_id="a", fence=1, next_seq=0)])

    assert sent(welcome) == [(0, (1,), "a "), (1, (2,), "b ")]
