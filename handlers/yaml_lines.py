"""Reads a YAML file so that each value still knows its line.

A message about a setting is only useful with the line it stands on, and the ordinary loader forgets
it. A key given twice is an error here, where YAML libraries silently keep the last one.

It knows nothing about models or TorchServe.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

#: Keys and list positions from the top of the file to a value.
KeyPath = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a file."""

    #: Empty: the file as a whole.
    path: KeyPath
    message: str
    #: Where to look, from 1; None: the line of ``path``.
    line: int | None = None

    @property
    def key(self) -> str:
        """The path as people write it: ``torchrun.nproc-per-node``, ``deviceIds[1]``."""
        text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in self.path)
        return text.removeprefix(".")


class UnreadableYaml(ValueError):
    """The text is no YAML document, or has a key twice."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(problem.message for problem in problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Document:
    """The values of a file and the lines they stand on."""

    value: Any
    lines: dict[KeyPath, int]

    def line(self, path: KeyPath) -> int:
        """The line of ``path``, or of what encloses it when it is absent."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)


def read(text: str) -> Document:
    """The one document in ``text``; None when it is empty.

    Raises:
        UnreadableYaml: not YAML, more than one document, or a key that is given twice.
    """
    loader = None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return Document(None, {})
        lines: dict[KeyPath, int] = {}
        problems = list(_walk(node, (), lines, set()))
        if problems:
            raise UnreadableYaml(problems)
        return Document(loader.construct_document(node), lines)
    except yaml.YAMLError as error:
        raise UnreadableYaml([_syntax_problem(error)]) from None
    except UnreadableYaml:
        raise
    except ValueError as error:
        # A value that looks like a date or a number and is none, such as 2026-13-45.
        raise UnreadableYaml([Problem((), f"holds a value that is none: {error}", 1)]) from None
    except RecursionError:
        raise UnreadableYaml([Problem((), "is nested too deeply", 1)]) from None
    finally:
        if loader is not None:
            loader.dispose()


def _walk(
    node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int], seen: set[int]
) -> Iterator[Problem]:
    """Notes the line of every value below ``node``, and yields the keys that come twice."""
    lines.setdefault(path, node.start_mark.line + 1)
    # An anchor may be used again, even inside itself.
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            yield from _walk(item, (*path, i), lines, seen)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = (*path, str(key.value))
            line = key.start_mark.line + 1
            if inner in lines:
                yield Problem(inner, f"is given twice, first in line {lines[inner]}", line)
            else:
                lines[inner] = line
            yield from _walk(value, inner, lines, seen)


def _syntax_problem(error: yaml.YAMLError) -> Problem:
    mark = getattr(error, "problem_mark", None)
    what = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    return Problem((), f"is not YAML: {what}", mark.line + 1 if mark else 1)
