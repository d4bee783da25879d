from __future__ import annotations

import json
from typing import Any

import pytest

from handlers.wire import Chunk, Failure, Finish, TokenLogprob
from scheduler.rpc import plait_pb2 as pb
from scheduler.rpc.logprobs import from_messages
from scheduler.runner.core import RunnerCore, Step


@pytest.fixture
def core() -> RunnerCore:
    """Connected and welcome, with nothing to do."""
    core = RunnerCore()
    core.welcomed([])
    return core


def grant(task_id: str = "a", fence: int = 1, **changes: Any) -> pb.Grant:
    values: dict[str, Any] = {
        "model": "demo",
        "replica": "demo__r0",
        "document_json": '{"prompt":"def"}',
        "next_seq": 0,
    }
    return pb.Grant(task_id=task_id, fence=fence, **{**values, **changes})


def ack(next_seq: int = 0, *, task_id: str = "a", fence: int = 1, is_final: bool = False) -> pb.Ack:
    return pb.Ack(task_id=task_id, fence=fence, next_seq=next_seq, is_final=is_final)


def kinds(step: Step) -> list[str]:
    return [str(message.WhichOneof("body")) for message in step.send]


def seqs(step: Step) -> list[int]:
    return [message.progress.seq for message in step.send if message.HasField("progress")]


def keys(core: RunnerCore) -> list[tuple[str, int]]:
    return [(lease.task_id, lease.fence) for lease in core.held()]


def test_a_grant_starts_work_on_its_document(core: RunnerCore) -> None:
    [lease] = core.granted(grant()).start

    assert (lease.replica, lease.document) == ("demo__r0", {"prompt": "def"})


def test_a_grant_hands_over_what_earlier_attempts_generated(core: RunnerCore) -> None:
    [lease] = core.granted(grant(generated=[5, 6], next_seq=2)).start

    assert lease.document["generated"] == [5, 6]


def test_a_grant_hands_over_what_each_answer_has(core: RunnerCore) -> None:
    several = {"document_json": '{"prompt":"def","n":3}', "next_seq": 2}
    others = [pb.TokenIds(token_ids=[7])]

    [lease] = core.granted(grant(generated=[5], other_generated=others, **several)).start
    [begun] = core.granted(grant("b", other_generated=others, **several)).start

    assert lease.document["generated"] == [[5], [7], []]
    assert begun.document["generated"] == [[], [7], []]


def test_a_grant_without_earlier_tokens_does_not_mention_them(core: RunnerCore) -> None:
    [lease] = core.granted(grant()).start

    assert "generated" not in lease.document


def test_a_repeated_grant_changes_nothing(core: RunnerCore) -> None:
    core.granted(grant())

    assert core.granted(grant()) == Step()


def test_an_older_grant_changes_nothing(core: RunnerCore) -> None:
    core.granted(grant(fence=2))

    assert core.granted(grant(fence=1)) == Step()
    assert keys(core) == [("a", 2)]


def test_a_newer_grant_of_the_same_task_ends_the_older(core: RunnerCore) -> None:
    core.granted(grant(fence=1))

    step = core.granted(grant(fence=2))

    assert step.stop == (("a", 1),)
    assert keys(core) == [("a", 2)]


def test_chunks_are_numbered_on_from_the_grant(core: RunnerCore) -> None:
    core.granted(grant(next_seq=7))

    sent = [seqs(core.produced("a", 1, Chunk((n,), "x"))) for n in range(2)]

    assert sent == [[7], [8]]


def test_a_chunk_of_an_older_lease_is_dropped(core: RunnerCore) -> None:
    core.granted(grant(fence=2))

    assert core.produced("a", 1, Chunk((1,), "x")) == Step()


def test_an_empty_chunk_is_not_sent(core: RunnerCore) -> None:
    core.granted(grant())

    assert core.produced("a", 1, Chunk((), "")) == Step()
    assert kinds(core.finished("a", 1, Finish("length", 1, 0))) == ["finish"]


def test_text_without_tokens_is_sent_with_the_tokens_that_follow(core: RunnerCore) -> None:
    core.granted(grant())

    assert core.produced("a", 1, Chunk((), "ab")) == Step()
    [message] = core.produced("a", 1, Chunk((1,), "c")).send

    assert (message.progress.seq, message.progress.text) == (0, "abc")


def test_text_held_at_the_end_is_sent_before_the_finish(core: RunnerCore) -> None:
    core.granted(grant())
    core.produced("a", 1, Chunk((), "tail"))

    step = core.finished("a", 1, Finish("eos", 1, 0))

    assert kinds(step) == ["progress", "finish"]
    assert step.send[0].progress.text == "tail"


def test_text_of_one_answer_is_not_sent_with_another(core: RunnerCore) -> None:
    core.granted(grant(document_json='{"prompt":"def","n":2}'))
    core.produced("a", 1, Chunk((), "ab", 1))

    [first] = core.produced("a", 1, Chunk((1,), "x", 0)).send
    [second] = core.produced("a", 1, Chunk((2,), "c", 1)).send

    assert (first.progress.index, first.progress.text) == (0, "x")
    assert (second.progress.index, second.progress.text) == (1, "abc")


def test_text_held_at_the_end_is_sent_for_each_answer(core: RunnerCore) -> None:
    core.granted(grant(document_json='{"prompt":"def","n":2}'))
    for index in (1, 0):
        core.produced("a", 1, Chunk((), f"tail {index}", index))

    step = core.finished("a", 1, Finish("eos", 1, 0, ("eos", "length")))

    assert [(m.progress.index, m.progress.text) for m in step.send[:2]] == [
        (0, "tail 0"),
        (1, "tail 1"),
    ]
    assert json.loads(step.send[2].finish.result_json)["finish_reasons"] == ["eos", "length"]


def test_an_answer_nobody_asked_for_loses_the_attempt(core: RunnerCore) -> None:
    core.granted(grant())

    [message] = core.produced("a", 1, Chunk((1,), "x", 1)).send

    assert message.release.reason == "its handler spoke of answer 1; there are 1, from 0"


def test_log_probabilities_are_sent_with_their_tokens(core: RunnerCore) -> None:
    core.granted(grant())
    likely = (TokenLogprob(-0.25, ((4, -0.25), (9, -3.5))), TokenLogprob(-1.0))

    [message] = core.produced("a", 1, Chunk((4, 5), "x", 0, likely)).send

    assert from_messages(message.progress.logprobs) == likely


def test_text_held_when_the_worker_is_lost_is_not_written_down(core: RunnerCore) -> None:
    core.granted(grant())
    core.produced("a", 1, Chunk((), "tail"))

    assert kinds(core.lost("a", 1, "worker died")) == ["release"]


def test_a_finish_tells_how_it_ended(core: RunnerCore) -> None:
    core.granted(grant())

    [message] = core.finished("a", 1, Finish("stop", 3, 4)).send

    assert json.loads(message.finish.result_json) == {
        "finish_reason": "stop",
        "num_prompt_tokens": 3,
        "num_output_tokens": 4,
    }


def test_a_failure_is_sent_with_its_status_and_field(core: RunnerCore) -> None:
    core.granted(grant())

    [message] = core.refused("a", 1, Failure(422, "too long", "prompt")).send

    error = message.finish.error
    assert (error.status, error.message, error.field) == (422, "too long", "prompt")


def test_only_the_first_outcome_counts(core: RunnerCore) -> None:
    core.granted(grant())
    core.finished("a", 1, Finish("eos", 1, 1))

    assert core.lost("a", 1, "late") == Step()
    assert core.produced("a", 1, Chunk((1,), "x")) == Step()


def test_a_lease_is_held_until_its_outcome_is_on_disk(core: RunnerCore) -> None:
    core.granted(grant())
    core.finished("a", 1, Finish("eos", 1, 1))
    assert keys(core) == [("a", 1)]

    core.acknowledged(ack(is_final=True))

    assert keys(core) == []


def test_an_acknowledgement_of_chunks_does_not_end_the_lease(core: RunnerCore) -> None:
    core.granted(grant())
    core.produced("a", 1, Chunk((1,), "x"))

    core.acknowledged(ack(1))

    assert keys(core) == [("a", 1)]


def test_an_acknowledgement_of_another_lease_is_ignored(core: RunnerCore) -> None:
    core.granted(grant(fence=2))

    core.acknowledged(ack(fence=1, is_final=True))

    assert keys(core) == [("a", 2)]


def test_a_cancelled_lease_is_stopped_and_forgotten(core: RunnerCore) -> None:
    core.granted(grant())

    assert core.cancelled("a", 1).stop == (("a", 1),)
    assert keys(core) == []


def test_cancelling_an_older_lease_does_not_stop_the_newer(core: RunnerCore) -> None:
    core.granted(grant(fence=2))

    assert core.cancelled("a", 1) == Step()


def test_nothing_is_said_about_a_cancelled_lease(core: RunnerCore) -> None:
    core.granted(grant())
    core.cancelled("a", 1)

    assert core.produced("a", 1, Chunk((1,), "x")) == Step()
    assert core.lost("a", 1, "closed") == Step()


def test_nothing_is_sent_while_disconnected(core: RunnerCore) -> None:
    core.granted(grant())
    core.disconnected()

    assert core.produced("a", 1, Chunk((1,), "x")) == Step()
    assert core.finished("a", 1, Finish("eos", 1, 1)) == Step()


def test_a_welcome_sends_what_the_journal_lacks(core: RunnerCore) -> None:
    core.granted(grant())
    for n in range(4):
        core.produced("a", 1, Chunk((n,), "x"))
    core.disconnected()

    step = core.welcomed([ack(2)])

    assert seqs(step) == [2, 3]


def test_a_welcome_sends_an_outcome_after_its_chunks(core: RunnerCore) -> None:
    core.granted(grant())
    core.disconnected()
    core.produced("a", 1, Chunk((1,), "x"))
    core.finished("a", 1, Finish("eos", 1, 1))

    assert kinds(core.welcomed([ack(0)])) == ["progress", "finish"]


def test_a_welcome_does_not_send_what_was_acknowledged_before(core: RunnerCore) -> None:
    core.granted(grant())
    for n in range(3):
        core.produced("a", 1, Chunk((n,), "x"))
    core.acknowledged(ack(2))
    core.disconnected()

    assert seqs(core.welcomed([ack(2)])) == [2]


def test_a_lease_the_welcome_does_not_name_is_dropped(core: RunnerCore) -> None:
    core.granted(grant("a"))
    core.granted(grant("b"))
    core.disconnected()

    step = core.welcomed([ack(task_id="b")])

    assert step.stop == (("a", 1),)
    assert keys(core) == [("b", 1)]


def test_a_welcome_with_another_fence_drops_the_lease(core: RunnerCore) -> None:
    core.granted(grant(fence=1))
    core.disconnected()

    assert core.welcomed([ack(fence=2)]).stop == (("a", 1),)


def test_in_flight_counts_what_is_worked_on(core: RunnerCore) -> None:
    core.granted(grant("a"))
    core.granted(grant("b"))
    core.granted(grant("c", replica="demo__r1"))
    core.finished("b", 1, Finish("eos", 1, 1))

    assert core.in_flight() == {"demo__r0": 1, "demo__r1": 1}
    assert core.working_on("demo__r0") == [("a", 1)]


def test_a_lease_whose_acknowledged_chunks_are_gone_from_the_journal_is_given_back(
    core: RunnerCore,
) -> None:
    core.granted(grant())
    for token in range(3):
        core.produced("a", 1, Chunk((token,), "x"))
    core.acknowledged(ack(2))
    core.finished("a", 1, Finish("length", 1, 3))

    step = core.welcomed([ack(1)])

    assert kinds(step) == ["release"]
    assert step.stop == (("a", 1),)


def test_an_answer_that_no_message_can_hold_fails_the_task(
    core: RunnerCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scheduler.runner.core.MAX_RESULT_BYTES", 100)
    core.granted(grant())

    [message] = core.answered("a", 1, {"embeddings": [[0.5] * 50]}).send

    assert message.finish.error.status == 500
    assert "at most 100 can be kept" in message.finish.error.message
