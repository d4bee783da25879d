"""The text of an answer depends on its tokens only, wherever an earlier attempt was cut off."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from handlers.pipeline.detokenizer import Detokenizer
from handlers.pipeline.generation import Generation, Limits
from handlers.wire import GenerationRequest

#: Tokens that split characters and stop strings in all sorts of places.
PIECES = ("a", "b", "ab", "ba", " ", "€", "é", "END", "E", "ND", "EN", "D", "\ufffd")
BYTES = [piece.encode() for piece in PIECES]
BYTES += [byte.to_bytes() for byte in sorted(set("€é".encode()))] + [b"\xff", b""]
EOS = len(BYTES)

tokens = st.lists(st.integers(0, EOS - 1), min_size=1, max_size=40)
stops = st.lists(st.sampled_from(["END", "ab", "ba ", "€", "aab", "\ufffd"]), max_size=2)


def decode(token_ids: Sequence[int]) -> str:
    return b"".join(BYTES[t] for t in token_ids if t < EOS).decode(errors="replace")


def text_of(token_ids: list[int], stop: list[str]) -> tuple[str, int]:
    """The whole text, and how many tokens it took."""
    detokenizer, text = Detokenizer(decode, [], stop), ""
    for index, token_id in enumerate(token_ids):
        text += detokenizer.add(token_id, is_last=index == len(token_ids) - 1)
        if detokenizer.is_stopped:
            return text, index + 1
    return text, len(token_ids)


@given(st.text(alphabet="aé€😀 \n", max_size=30))
def test_valid_text_comes_out_as_it_is(text: str) -> None:
    data = text.encode()
    detokenizer = Detokenizer(lambda ids: bytes(ids).decode(errors="replace"), [])

    assert "".join(detokenizer.add(byte) for byte in data) == text


@given(tokens, stops)
def test_no_stop_string_is_ever_emitted(token_ids: list[int], stop: list[str]) -> None:
    text, _ = text_of(token_ids, stop)

    assert not any(each in text for each in stop)


@given(tokens, stops)
def test_held_text_is_a_possible_beginning_and_nothing_else(
    token_ids: list[int], stop: list[str]
) -> None:
    with_stop, _ = text_of(token_ids, stop)
    without, _ = text_of(token_ids, [])

    assert without.startswith(with_stop)
    assert with_stop == without or any(each in without for each in stop)


@given(tokens, stops, st.integers(1, 40), st.booleans(), st.data())
def test_resuming_anywhere_gives_the_same_chunks(
    token_ids: list[int], stop: list[str], max_new: int, ends: bool, data: st.DataObject
) -> None:
    token_ids = [*token_ids, EOS] if ends else token_ids
    whole = chunks(token_ids, (), tuple(stop), max_new)
    cut = data.draw(st.integers(0, len(whole)))
    done = tuple(token_ids[:cut])

    assert chunks(token_ids[cut:], done, tuple(stop), max_new) == whole[cut:]


def chunks(
    token_ids: list[int], generated: tuple[int, ...], stop: tuple[str, ...], max_new: int
) -> list[object]:
    """What an attempt sends that finds ``generated`` done and then draws ``token_ids``."""
    request = GenerationRequest("p", max_new_tokens=max_new, stop=stop, generated=generated)
    limits = Limits(64, EOS + 1, frozenset([EOS]))
    generation = Generation(request, [0], limits, decode)
    sent: list[object] = []
    for token_id in token_ids:
        if generation.finish is not None:
            break
        sent.append((generation.add(token_id), generation.finish))
    return sent
