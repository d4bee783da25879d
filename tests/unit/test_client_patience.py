"""How long a client tries, and what it makes of a stream that breaks."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from scheduler.client.patience import LONGEST_PAUSE_S, Patience
from scheduler.client.problems import ApiError
from scheduler.client.streaming import Chunk, State, _refuse_gap, _unless_final
from scheduler.clock import ManualClock


class Waiter:
    """A patience whose pauses turn a manual clock."""

    def __init__(self, total_s: float, draw: float = 0.5) -> None:
        self.clock = ManualClock()
        self.pauses: list[float] = []
        self.told: list[str] = []
        self.patience = Patience(total_s, self.told.append, self.clock, self._sleep, lambda: draw)

    def _sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.clock.advance(seconds)


def test_pauses_grow_up_to_the_longest() -> None:
    waiter = Waiter(60)

    for _ in range(8):
        assert waiter.patience.pause()

    assert waiter.pauses[:4] == [0.1, 0.2, 0.4, 0.8]
    assert waiter.pauses[-1] == LONGEST_PAUSE_S


def test_a_person_is_told_once_a_silence() -> None:
    waiter = Waiter(60)
    waiter.patience.pause("nobody answers")
    waiter.patience.pause("nobody answers")
    waiter.patience.renew()

    waiter.patience.pause("the stream broke")

    assert waiter.told == [
        "nobody answers; trying again for 60 s",
        "the stream broke; trying again for 60 s",
    ]


def test_who_is_told_when_to_come_back_comes_back_then() -> None:
    waiter = Waiter(60)

    assert waiter.patience.pause("full", at_least_s=5.0)

    assert waiter.pauses == [pytest.approx(5.1)]


def test_who_would_have_to_wait_too_long_gives_up_at_once() -> None:
    waiter = Waiter(60)

    assert not waiter.patience.pause("full", at_least_s=61.0)

    assert waiter.pauses == []


@pytest.mark.parametrize(("draw", "first"), [(0.0, 0.05), (1.0, 0.15)])
def test_jitter_spreads_the_tries(draw: float, first: float) -> None:
    waiter = Waiter(60, draw)
    waiter.patience.pause()

    assert waiter.pauses == [pytest.approx(first)]


def test_patience_runs_out_at_its_total() -> None:
    waiter = Waiter(2)

    while waiter.patience.pause():
        pass

    assert sum(waiter.pauses) == pytest.approx(2)


def test_progress_makes_patient_anew() -> None:
    waiter = Waiter(1)
    while waiter.patience.pause():
        pass

    waiter.patience.renew()

    assert waiter.patience.pause()
    assert waiter.pauses[-1] == 0.1


class Broken(grpc.RpcError):
    """A call that ended with a status."""

    def __init__(self, status: grpc.StatusCode, **trailers: str) -> None:
        self._code = status
        self._trailers = tuple((f"x-plait-{k}", v) for k, v in trailers.items())

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return "because"

    def trailing_metadata(self) -> Any:
        return self._trailers


@pytest.mark.parametrize(
    "error",
    [
        Broken(grpc.StatusCode.UNAVAILABLE),
        Broken(grpc.StatusCode.UNAVAILABLE, type="GatewayClosing", code="503", field=""),
        Broken(grpc.StatusCode.CANCELLED),
        Broken(grpc.StatusCode.INTERNAL),
        Broken(grpc.StatusCode.UNKNOWN),
    ],
    ids=str,
)
def test_a_stream_cut_by_the_transport_is_taken_up_again(error: Broken) -> None:
    assert isinstance(_unless_final(error), ConnectionError)


def test_a_refusal_by_the_gateway_is_final() -> None:
    error = Broken(grpc.StatusCode.INVALID_ARGUMENT, type="InvalidRequest", code="422", field="f")

    with pytest.raises(ApiError, match="because") as caught:
        _unless_final(error)

    assert (caught.value.status, caught.value.field) == (422, "f")


def test_a_server_of_another_kind_is_final() -> None:
    with pytest.raises(ApiError, match="does not speak"):
        _unless_final(Broken(grpc.StatusCode.UNIMPLEMENTED))


def test_a_gap_in_a_stream_is_an_error() -> None:
    _refuse_gap("t", Chunk(3, (1,), "x"), 2)
    with pytest.raises(ApiError, match="missing"):
        _refuse_gap("t", Chunk(4, (1,), "x"), 2)
    with pytest.raises(ApiError, match="missing"):
        _refuse_gap("t", State(3, {}), 2)
