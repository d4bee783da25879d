"""Reads the documents: their files, tables, code and links."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
DOCS: Final = ROOT / "docs"
#: What is written for users, in one piece each.
PAGES: Final = tuple(
    sorted([*DOCS.glob("**/*.md"), *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING"))])
)
_FENCE: Final = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced piece of code."""

    page: Path
    language: str
    code: str
    #: Of its first line in the page, from 1.
    line: int

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def text_of(name: str) -> str:
    """A page of docs/."""
    return (DOCS / name).read_text("utf-8")


def prose(text: str) -> str:
    """A page without its fenced code."""
    return _FENCE.sub("", text)


def blocks(*languages: str) -> list[Block]:
    """The fenced pieces of code in these languages, of every page."""
    return [block for page in PAGES for block in _blocks(page) if block.language in languages]


def _blocks(page: Path) -> Iterator[Block]:
    text = page.read_text("utf-8")
    for match in _FENCE.finditer(text):
        yield Block(page, match[1], match[2], text.count("\n", 0, match.start(2)) + 1)


def code_spans(page: Path) -> list[str]:
    """What stands between backticks in the prose."""
    return re.findall(r"`([^`\n]+)`", prose(page.read_text("utf-8")))


def section(text: str, heading: str) -> str:
    """What stands under a heading, up to the next of its level or above."""
    level = len(heading) - len(heading.lstrip("#"))
    after = text.split(f"\n{heading}\n", 1)[1]
    return re.split(rf"^#{{1,{level}}} ", after, maxsplit=1, flags=re.MULTILINE)[0]


def rows(text: str) -> list[list[str]]:
    """The cells of every table row, headings and rules left out."""
    lines = text.splitlines()
    found = []
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        is_head = following.startswith("|--") or line.startswith("|--")
        if line.startswith("|") and not is_head:
            found.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return found


def names(cell: str) -> list[str]:
    """The names in backticks of a cell."""
    return re.findall(r"`([^`]+)`", cell)


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.strip().lower()).replace(" ", "-") for h in headings}
