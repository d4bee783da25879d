"""Whether there is room, and who makes it."""

from __future__ import annotations

from scheduler.downloader.cache import Kept
from scheduler.downloader.room import Room, to_evict


def kept(name: str, used_at: float, *, is_in_use: bool = False, **blobs: int) -> Kept:
    return Kept(name, used_at, is_in_use, blobs)


def test_what_others_were_promised_and_what_stays_free_is_not_there() -> None:
    room = Room(free=100, reserve=20, held=0, limit=0, promised=30)

    assert (room.shortage(50), room.shortage(51)) == (0, 1)


def test_the_cache_s_own_limit_counts_as_well() -> None:
    room = Room(free=10_000, reserve=0, held=60, limit=100)

    assert (room.shortage(40), room.shortage(45)) == (0, 5)


def test_the_model_used_longest_ago_goes_first_and_no_more_than_needed() -> None:
    models = [kept("new", 3, a=10), kept("old", 1, b=10), kept("older", 0, c=5)]

    assert to_evict(models, 12) == ["older", "old"]


def test_a_model_in_use_or_wanted_never_goes() -> None:
    models = [kept("used", 0, is_in_use=True, a=10), kept("wanted", 1, b=10), kept("other", 2, c=1)]

    assert to_evict(models, 100, keep={"wanted"}) == ["other"]


def test_a_file_is_freed_with_the_last_model_that_holds_it() -> None:
    models = [kept("one", 0, shared=10), kept("two", 1, shared=10), kept("three", 2, c=10)]

    assert to_evict(models, 10) == ["one", "two"]
