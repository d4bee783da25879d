"""Who is blamed when the engine dies under several sequences."""

from __future__ import annotations

import pytest

from handlers.pipeline.faults import Docket
from handlers.pipeline.sequence import Sequence


@pytest.fixture
def docket() -> Docket:
    return Docket()


def sequences(count: int) -> list[Sequence]:
    return [Sequence(f"r{index}", 0, [1, 2, 3], 3) for index in range(count)]


def grow(docket: Docket, *grown: Sequence) -> None:
    for sequence in grown:
        sequence.token_ids.append(4)
        docket.grew(sequence)


def test_one_death_makes_nobody_guilty_and_nobody_a_suspect(docket: Docket) -> None:
    several = sequences(3)

    assert docket.blame(several) == []
    assert not any(sequence.is_suspect for sequence in several)


def test_a_second_death_under_one_sequence_that_did_not_move_on_is_its_own(docket: Docket) -> None:
    poison, *others = sequences(3)
    docket.blame([poison, *others])
    grow(docket, *others)

    assert docket.blame([poison, *others]) == [poison]


def test_a_sequence_that_moved_on_between_two_deaths_is_not_guilty(docket: Docket) -> None:
    (unlucky,) = sequences(1)
    docket.blame([unlucky])
    grow(docket, unlucky)

    assert docket.blame([unlucky]) == []
    assert not unlucky.is_suspect


def test_several_that_met_two_deaths_become_suspects(docket: Docket) -> None:
    both = sequences(2)
    docket.blame(both)

    assert docket.blame(both) == []
    assert all(sequence.is_suspect for sequence in both)


def test_a_suspect_that_dies_alone_is_guilty(docket: Docket) -> None:
    both = sequences(2)
    docket.blame(both)
    docket.blame(both)

    assert docket.blame(both[:1]) == both[:1]


def test_a_suspect_that_moves_on_is_cleared(docket: Docket) -> None:
    both = sequences(2)
    docket.blame(both)
    docket.blame(both)

    grow(docket, both[1])

    assert not both[1].is_suspect
    assert docket.blame([both[1]]) == []


def test_nobody_is_blamed_for_a_death_while_nothing_was_in_flight(docket: Docket) -> None:
    assert docket.blame([]) == []


def test_a_fault_of_its_own_is_forgiven_once(docket: Docket) -> None:
    (sequence,) = sequences(1)

    assert not docket.blame_one(sequence)
    assert docket.blame_one(sequence)


def test_what_is_forgotten_is_not_held_against_a_successor(docket: Docket) -> None:
    (sequence,) = sequences(1)
    docket.blame([sequence])

    docket.forget(sequence)

    assert docket.blame([sequence]) == []
