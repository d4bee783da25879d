"""What a fault cost is counted for the tasks that it hit."""

from __future__ import annotations

from scheduler.testing.chaos.history import (
    Accepted,
    Broke,
    Computed,
    Fault,
    History,
    Read,
    Seen,
    Sent,
)
from scheduler.testing.chaos.recovery import figures, hits, middle_and_tail


def story(*faults: Fault) -> History:
    """A task that loses its attempt on node-1 at 2.5 s and goes on, on node-2, at 4 s."""
    history = History(0.0, nodes={"r1": "node-1", "r2": "node-2"})
    history.records = [
        Sent(0.0, "k", "ann", {"seed": 7, "max_new_tokens": 3}),
        Accepted(0.1, "k", "t"),
        Seen(1.0, "k", "t", "leased", 1, "r1", False),
        Computed(1.4, "node-1", 7, 0),
        Read(1.5, "k", "t", 1, (5,), "a"),
        Computed(1.9, "node-1", 7, 1),
        Seen(2.5, "k", "t", "queued", 1, None, False),
        Seen(3.0, "k", "t", "leased", 2, "r2", False),
        Computed(3.9, "node-2", 7, 1),
        Read(4.0, "k", "t", 2, (6,), "b"),
        Broke(4.5, "k", "t"),
        Read(5.0, "k", "t", 3, (7,), "c"),
        Seen(5.5, "k", "t", "succeeded", 2, None, True),
        *faults,
    ]
    return history


def test_a_fault_of_a_node_hits_what_runs_there() -> None:
    [hit] = hits(story(Fault(2.0, 3.0, "runner killed", "node-1")))

    assert (hit.detection_s, hit.next_token_s, hit.after_end_s) == (0.5, 2.0, 1.0)
    assert hit.num_recomputed == 1


def test_a_fault_of_another_node_hits_nobody() -> None:
    assert hits(story(Fault(2.0, 3.0, "runner killed", "node-2"))) == []


def test_a_fault_of_the_control_plane_is_noticed_by_the_stream_that_breaks() -> None:
    [hit] = hits(story(Fault(4.25, 4.25, "control plane killed", "control")))

    assert (hit.detection_s, hit.next_token_s) == (0.25, 0.75)


def test_the_end_of_a_task_is_no_detection() -> None:
    [hit] = hits(story(Fault(5.25, 5.25, "runner killed", "node-2")))

    assert hit.detection_s is None
    assert hit.next_token_s is None


def test_tokens_are_counted_to_the_last_fault_before_they_were_computed_again() -> None:
    early = Fault(1.2, 1.2, "first", "node-1")
    late = Fault(2.0, 2.0, "second", "node-1")

    assert [(hit.kind, hit.num_recomputed) for hit in hits(story(early, late))] == [
        ("first", 0),
        ("second", 1),
    ]


def test_figures_are_by_kind_and_name_what_hit_nothing() -> None:
    faults = [Fault(2.0, 3.0, "b", "node-1"), Fault(2.0, 2.0, "a", "node-2")]

    none, some = figures(story(*faults))

    assert (none.kind, none.num_faults, none.num_hits, none.next_token_s) == ("a", 1, 0, None)
    assert (some.kind, some.num_hits, some.detection_s) == ("b", 1, (0.5, 0.5))


def test_middle_and_tail_are_values_that_were_there() -> None:
    assert middle_and_tail([float(n) for n in range(1, 101)]) == (50.0, 99.0)
    assert middle_and_tail([3.0, None, 1.0]) == (1.0, 3.0)
    assert middle_and_tail([None]) is None
