"""How a body of inputs is cut into lines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.gateway.bulk_intake import Line, lines


async def pieces(*given: bytes) -> AsyncIterator[bytes]:
    for piece in given:
        yield piece


async def cut(*given: bytes, max_bytes: int = 100) -> list[Line]:
    return [line async for line in lines(pieces(*given), max_bytes)]


@given(st.lists(st.binary(min_size=1, max_size=12), max_size=8), st.integers(1, 7))
def test_however_a_body_arrives_its_lines_are_the_same(body: list[bytes], size: int) -> None:
    whole = b"\n".join(part.replace(b"\n", b"") for part in body)
    parts = [whole[at : at + size] for at in range(0, len(whole), size)]

    found = asyncio.run(cut(*parts))

    expected = [
        Line(number, text) for number, text in enumerate(whole.split(b"\n"), 1) if text.strip()
    ]
    assert found == expected


@pytest.mark.parametrize("parts", [(b"12345\n6",), (b"12", b"345", b"6\n7")])
async def test_a_line_that_is_too_long_is_the_last_and_is_cut(parts: tuple[bytes, ...]) -> None:
    found = await cut(b"a\n\n", *parts, max_bytes=4)

    assert [line.number for line in found] == [1, 3]
    assert found[1].text == b"12345"


async def test_a_line_that_never_ends_is_not_collected() -> None:
    taken = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield b"x" * 10

    found = [line async for line in lines(endless(), 35)]

    assert (len(found), taken) == (1, 4)
