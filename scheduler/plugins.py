"""Finds a member of a family by its file's name.

A family is a folder whose public files, ``base`` excepted, are its alternatives; adding a file adds
one, and edits nothing. It does not know what the members are.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType

from scheduler.errors import StartupError


def names(family: ModuleType) -> list[str]:
    """The members of a family (a package), in order."""
    found = (module.name for module in iter_modules(family.__path__))
    return sorted(name for name in found if name != "base" and not name.startswith("_"))


def find(family: ModuleType, name: str) -> ModuleType:
    """The member of that name.

    Raises:
        StartupError: there is none; names those there are.
    """
    known = names(family)
    if name not in known:
        word = family.__name__.rpartition(".")[2]
        raise StartupError(f"{name!r} is none of the {word} there are: {', '.join(known)}")
    return import_module(f"{family.__name__}.{name}")
