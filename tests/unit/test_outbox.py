"""Answers wait for the handler under the id of their request."""

from __future__ import annotations

import threading

from handlers.outbox import Outbox
from handlers.wire import Chunk, Finish, TokenLogprob

FINISH = Finish("eos", 1, 1)


def opened(*request_ids: str) -> Outbox:
    outbox = Outbox()
    for request_id in request_ids:
        outbox.open(request_id)
    return outbox


def test_answers_are_taken_once_and_in_order() -> None:
    outbox = opened("a")
    outbox.put("a", [Chunk((1,), "x"), FINISH])

    assert outbox.take("a") == [Chunk((1,), "x"), FINISH]
    assert outbox.take("a") == []


def test_what_comes_late_for_a_dropped_request_is_not_given_to_the_next_of_its_id() -> None:
    outbox = Outbox()
    first = outbox.open("a")
    outbox.drop("a")
    second = outbox.open("a")

    outbox.put("a", [Chunk((1,), "late")], first)
    outbox.put("a", [Chunk((2,), "own")], second)

    assert outbox.take("a") == [Chunk((2,), "own")]


def test_adjacent_chunks_become_one() -> None:
    outbox = opened("a")
    outbox.put("a", [Chunk((1,), "x")])
    outbox.put("a", [Chunk((2, 3), "y")])

    assert outbox.take("a") == [Chunk((1, 2, 3), "xy")]


def test_chunks_of_several_answers_become_one_each() -> None:
    outbox = opened("a")
    for token in (1, 2):
        outbox.put("a", [Chunk((token,), "x"), Chunk((token + 5,), "y", 1)])

    assert outbox.take("a") == [Chunk((1, 2), "xx"), Chunk((6, 7), "yy", 1)]


def test_chunks_become_one_with_those_of_their_own_answer() -> None:
    outbox = opened("a")
    outbox.put("a", [Chunk((1,), "x"), Chunk((2,), "y", 1), Chunk((3,), "z")])
    outbox.put("a", [Chunk((4,), "w", 1), FINISH])

    assert outbox.take("a") == [Chunk((1, 3), "xz"), Chunk((2, 4), "yw", 1), FINISH]


def test_chunks_that_become_one_keep_a_log_probability_for_each_token() -> None:
    outbox = opened("a")
    likelihoods = [TokenLogprob(-float(i), ((i, -float(i)),)) for i in range(2)]
    outbox.put("a", [Chunk((i,), "x", 0, (likelihoods[i],)) for i in range(2)])

    assert outbox.take("a") == [Chunk((0, 1), "xx", 0, tuple(likelihoods))]


def test_answers_for_a_request_that_is_not_open_are_thrown_away() -> None:
    outbox = opened("a")
    outbox.drop("a")

    outbox.put("a", [FINISH])

    assert outbox.take("a") == []
    assert not outbox.wait(0)


def test_taking_the_final_answer_closes_the_request() -> None:
    outbox = opened("a")
    outbox.put("a", [FINISH])
    outbox.take("a")

    outbox.put("a", [Chunk((1,), "late")])

    assert outbox.take("a") == []


def test_wait_returns_at_once_when_something_is_there() -> None:
    outbox = opened("a", "b")
    outbox.put("b", [FINISH])

    assert outbox.wait(10)


def test_wait_returns_when_something_comes() -> None:
    outbox = opened("a")
    producer = threading.Timer(0.01, outbox.put, args=("a", [FINISH]))
    producer.start()

    assert outbox.wait(10)
    producer.join()


def test_wait_returns_false_when_nothing_comes() -> None:
    assert not opened("a").wait(0.001)
