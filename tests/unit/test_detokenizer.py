"""Text from tokens as they come, and the end at a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from handlers.pipeline.detokenizer import Detokenizer

SPECIAL = 256


def decode(token_ids: Sequence[int]) -> str:
    """A token is a byte; from 256 on it is special and gives no text."""
    return bytes(t for t in token_ids if t < SPECIAL).decode("utf-8", errors="replace")


def pieces(detokenizer: Detokenizer, data: bytes, is_last: bool = True) -> list[str]:
    return [
        detokenizer.add(byte, is_last=is_last and index == len(data) - 1)
        for index, byte in enumerate(data)
    ]


def test_each_token_gives_its_text_at_once() -> None:
    assert pieces(Detokenizer(decode, []), b"abc") == ["a", "b", "c"]


def test_half_a_character_is_held_back() -> None:
    assert pieces(Detokenizer(decode, []), "a€b".encode()) == ["a", "", "", "€", "b"]


def test_half_a_character_comes_out_with_the_last_token() -> None:
    assert pieces(Detokenizer(decode, []), "a€".encode()[:-1]) == ["a", "", "\ufffd"]


def test_a_character_that_begins_in_the_prompt_belongs_to_the_answer() -> None:
    start, end = "é".encode()

    assert Detokenizer(decode, [65, start]).add(end) == "é"


def test_bytes_that_are_no_character_are_not_waited_for_for_ever() -> None:
    text = "".join(pieces(Detokenizer(decode, []), b"\xff" * 40, is_last=False))

    assert len(text) >= 16


def test_special_tokens_give_no_text_and_do_not_pile_up() -> None:
    longest = 0

    def watching(token_ids: Sequence[int]) -> str:
        nonlocal longest
        longest = max(longest, len(token_ids))
        return decode(token_ids)

    detokenizer = Detokenizer(watching, [65])
    assert [detokenizer.add(SPECIAL) for _ in range(100)] == [""] * 100
    assert detokenizer.add(66) == "B"
    assert longest < 10


def test_text_ends_before_a_stop_string() -> None:
    detokenizer = Detokenizer(decode, [], ["END"])

    assert "".join(pieces(detokenizer, b"some END more")) == "some "
    assert detokenizer.is_stopped


def test_what_may_begin_a_stop_string_is_held_back() -> None:
    assert pieces(Detokenizer(decode, [], ["END"]), b"xENx") == ["x", "", "", "ENx"]


def test_a_beginning_that_is_never_completed_comes_out_with_the_last_token() -> None:
    assert pieces(Detokenizer(decode, [], ["END"]), b"xEN") == ["x", "", "EN"]


def test_a_beginning_within_a_beginning_is_found() -> None:
    detokenizer = Detokenizer(decode, [], ["aab"])

    assert "".join(pieces(detokenizer, b"aaaab")) == "aa"
    assert detokenizer.is_stopped


def test_the_stop_string_that_starts_first_counts() -> None:
    def words(token_ids: Sequence[int]) -> str:
        return "".join(["one two three", "!"][token_id] for token_id in token_ids)

    assert Detokenizer(words, [], ["two", "one t"]).add(0) == ""


def test_a_stop_string_in_the_prompt_does_not_count() -> None:
    detokenizer = Detokenizer(decode, list(b"EN"), ["END"])

    assert "".join(pieces(detokenizer, b"D.")) == "D."
    assert not detokenizer.is_stopped


def test_a_leading_space_is_kept_when_the_decoder_drops_it_from_the_first_token() -> None:
    def stripping(token_ids: Sequence[int]) -> str:
        return decode(token_ids).removeprefix(" ")

    assert Detokenizer(stripping, list(b"word")).add(ord(" ")) == " "
