"""Where the rows of a step lie: homes, tables that change, and what is wiped when."""

from __future__ import annotations

import pytest

from handlers.pipeline.step import BLOCK, Row, Step
from handlers.pipeline.tables import Spread, Tables

Change = tuple[int, int, int]


def step(*rows: Row, tables: tuple[Change, ...] = ()) -> Step:
    end = max(row.start + row.num_tokens for row in rows)
    return Step(0, max(r.num_tokens for r in rows), -(-end // BLOCK) * BLOCK, rows, tables=tables)


def at_home() -> Tables:
    """Four slots of three blocks each."""
    return Tables(4, 3 * BLOCK, 12)


def test_slots_at_equal_distances_are_read_in_place() -> None:
    tables = at_home()

    assert tables.place(step(Row(1, 0, 1), Row(2, 0, 1))).spread == Spread(3, 3)
    assert tables.place(step(Row(0, 0, 1), Row(2, 0, 1))).spread == Spread(0, 6)
    assert tables.place(step(Row(3, 0, 1))).spread == Spread(9, 0)


def test_other_slots_are_gathered() -> None:
    tables = at_home()

    placement = tables.place(step(Row(0, 0, 1), Row(1, 0, 1), Row(3, BLOCK, 1)))

    assert placement.spread is None
    assert placement.blocks.tolist() == [0, 1, 3, 4, 9, 10]


def test_tokens_are_written_where_the_table_says_and_padding_to_scratch() -> None:
    tables = at_home()

    placement = tables.place(step(Row(1, BLOCK - 1, 2), Row(0, 5, 1)))

    scratch = 12 * BLOCK
    assert placement.writes.tolist() == [3 * BLOCK + 63, 4 * BLOCK, 5, scratch + 6]
    assert placement.last.tolist() == [1, 0]


def test_a_row_without_tokens_writes_to_scratch() -> None:
    placement = at_home().place(step(Row(0, 0, 1), Row(1, 0, 0)))

    assert placement.writes.tolist() == [0, 12 * BLOCK]
    assert placement.spread == Spread(0, 3)


def test_positions_of_padding_stay_in_the_context() -> None:
    tables = Tables(2, 70, 4)

    placement = tables.place(step(Row(0, 0, 4), Row(1, 69, 1)))

    assert placement.positions.tolist() == [[0, 1, 2, 3], [69, 69, 69, 69]]


def test_a_step_may_name_a_block_for_two_slots() -> None:
    tables = Tables(2, 3 * BLOCK, 5)
    tables.change([(0, 0, 4), (1, 0, 4), (0, 1, 2), (1, 1, 0)])

    placement = tables.place(step(Row(0, BLOCK, 1), Row(1, BLOCK, 1)))

    assert placement.blocks.tolist() == [4, 2, 4, 0]
    assert placement.wiped.tolist() == [2, 0]


def test_blocks_that_a_row_has_not_reached_are_void() -> None:
    tables = Tables(2, 3 * BLOCK, 5)
    tables.change([(0, 0, 4), (0, 1, 3), (1, 0, 2)])

    placement = tables.place(step(Row(0, 2 * BLOCK - 1, 1), Row(1, 3, 1)))

    assert placement.blocks.tolist() == [4, 3, 2, tables.void]


def test_what_a_new_sequence_reaches_is_wiped_once() -> None:
    tables = at_home()
    tables.place(step(Row(1, 0, BLOCK + 9)))

    again = [tables.place(step(Row(1, start, 9))).wiped.tolist() for start in (0, 9, 60, 69)]

    assert again == [[3], [], [4], []]


def test_what_a_neighbour_makes_a_row_look_at_is_wiped_too() -> None:
    tables = at_home()

    placement = tables.place(step(Row(0, 0, 3), Row(1, 0, BLOCK + 1)))

    assert placement.wiped.tolist() == [0, 1, 3, 4]


def test_shared_blocks_before_the_start_are_never_wiped() -> None:
    tables = Tables(2, 3 * BLOCK, 5)
    tables.change([(0, 0, 4), (0, 1, 3), (0, 2, 1)])
    tables.place(step(Row(0, 0, 5)))

    placement = tables.place(step(Row(0, BLOCK + 7, 2 * BLOCK - 7)))

    assert placement.wiped.tolist() == [1]


def test_a_write_without_a_block_is_refused() -> None:
    tables = Tables(2, 3 * BLOCK, 5)
    tables.change([(1, 0, 4)])

    with pytest.raises(ValueError, match="slot 1 has no block"):
        tables.place(step(Row(1, BLOCK - 1, 2)))


def test_a_block_outside_the_pool_is_refused() -> None:
    with pytest.raises(ValueError, match="no block 5: the pool has 5"):
        Tables(2, 3 * BLOCK, 5).change([(0, 0, 5)])
