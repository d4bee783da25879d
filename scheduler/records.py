"""Records that are changed by writing a new one: frozen, compared by value, and quick to copy.

A move of a task writes several records anew, one of forty fields. The standard library's frozen
dataclasses set each field through a Python call, which was half the time of a move; msgspec's
structs do it in C.
"""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import asdict, astuple, replace

__all__ = ["Record", "asdict", "astuple", "changed"]

#: The record with some fields set otherwise. Raises TypeError: it has no such field.
changed = replace


# Not tracked by the garbage collector: what a record refers to never refers back to it.
class Record(Struct, frozen=True, gc=False):
    """A frozen record. Subclasses repeat ``frozen=True`` for the type checker."""
