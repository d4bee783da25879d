"""What control planes tell each other through PostgreSQL: small enough, and understood."""

from __future__ import annotations

import pytest

from scheduler.stores._postgres_news import MAX_BYTES, decode, encode, merged
from scheduler.stores.base import News

LEASE = ("t1", 3, "runner-1")


@pytest.mark.parametrize(
    "news",
    [
        News(()),
        News(("t1", "t2"), ("demo", "mödel"), (LEASE,), has_desired=True),
        News(None, ("demo",)),
    ],
)
def test_news_survive_a_notification(news: News) -> None:
    assert decode(encode("me", news)) == ("me", news)


def test_a_batch_is_told_as_one_piece_of_news() -> None:
    first = News(("t1", "t2"), ("demo",), (LEASE,))
    second = News(("t2", "t3"), ("demo", "other"), has_desired=True)

    assert merged([first, second]) == News(
        ("t1", "t2", "t3"), ("demo", "other"), (LEASE,), has_desired=True
    )


def test_tasks_too_many_to_name_stay_unnamed_in_a_batch() -> None:
    assert merged([News(("t1",)), News(None)]).task_ids is None


def test_where_names_do_not_fit_only_leases_and_models_are_told() -> None:
    many = News(tuple(f"{n:026}" for n in range(400)), ("demo",), (LEASE,))
    text = encode("me", many)

    assert len(text) <= MAX_BYTES
    assert decode(text) == ("me", News(None, ("demo",), (LEASE,)))


def test_where_nothing_fits_others_look_for_themselves() -> None:
    many = News((), (), tuple((f"{n:026}", n, "runner") for n in range(400)))
    text = encode("me", many)

    assert len(text) <= MAX_BYTES
    assert decode(text) == ("me", None)


@pytest.mark.parametrize("text", ["", "hello", "[]", "{}", "7", '{"s":"x","l":[1]}', '{"t":[]}'])
def test_what_another_program_sent_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="no news of a control plane"):
        decode(text)
