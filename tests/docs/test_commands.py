"""What the pages tell a reader to type exists: commands, options, make targets, variables."""

from __future__ import annotations

import re
import shlex

import pytest
import typer
from typer.core import TyperGroup

from scheduler.cli import app
from scheduler.settings import PREFIX, Settings
from tests.docs.pages import PAGES, ROOT, blocks, code_spans, rows, section, text_of

GROUP = typer.main.get_command(app)
assert isinstance(GROUP, TyperGroup)
COMMANDS = GROUP.commands
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))

#: Everything a reader may type: lines of shell code, and code in the prose.
TYPED = [
    *(line for block in blocks("sh") for line in re.sub(r"\\\n", " ", block.code).splitlines()),
    *(span for page in PAGES for span in code_spans(page)),
]


def calls() -> list[list[str]]:
    """Every ``plait <command> ...`` in the pages, as words from the command on."""
    found = []
    for line in TYPED:
        for call in re.findall(r"(?:^|[\s/])plait ([a-z]+\b[^|&;>]*)", line):
            found.append(shlex.split(call, comments=True))
    return found


def test_the_pages_have_commands_to_look_at() -> None:
    assert len(calls()) > 20


@pytest.mark.parametrize("words", calls(), ids=" ".join)
def test_every_command_and_option_exists(words: list[str]) -> None:
    assert words[0] in COMMANDS

    command, given = COMMANDS[words[0]], words[1:]
    while isinstance(command, TyperGroup) and given and not given[0].startswith("-"):
        assert given[0] in command.commands
        command, given = command.commands[given[0]], given[1:]
    known = {option for p in command.params for option in p.opts}
    assert {w.split("=")[0] for w in given if re.match(r"--?[a-z]", w)} <= known | {"--help"}


def test_every_command_has_a_row() -> None:
    table = rows(section(text_of("operating.md"), "## Start").split("\n### ")[0])
    listed = {name for row in table for name in re.findall(r"`plait (\w+)`", row[0])}

    assert listed == set(COMMANDS)


def test_every_make_target_exists() -> None:
    named = {t for line in TYPED for t in re.findall(r"(?:^|\s)make ([a-z-]+)", line)}

    assert named
    assert named <= TARGETS


def test_every_variable_is_a_setting() -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    named = {v for line in TYPED for v in re.findall(rf"\b{PREFIX}[A-Z_]+\b", line)}

    assert named <= known
