"""Decides which files of a source a model needs.

Pickled weights, other libraries' formats and second copies of the weights stay where they are. Of
the safetensors files those count that the index names, or else ``model.safetensors``, or else all
in the source's root. Pure: a listing in, files out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import PurePosixPath
from typing import Any, Final

from scheduler.sources.base import Listing, Refused, RemoteFile

CONFIG_FILE: Final = "config.json"
INDEX_FILE: Final = "model.safetensors.index.json"
SINGLE_FILE: Final = "model.safetensors"
#: Beside the weights: configuration, tokenizer, chat templates, code excepted.
SMALL_PATTERNS: Final = ("*.json", "*.model", "*.txt", "*.jinja")
#: Larger ones are no configuration.
MAX_SMALL_BYTES: Final = 256 * 1024 * 1024


def small_files(listing: Listing) -> list[RemoteFile]:
    """What to fetch first: all but the weights.

    Raises:
        Refused: there is no configuration, so it is no model.
    """
    found = [file for file in listing.files if _is_small(file)]
    if not any(file.path == CONFIG_FILE for file in found):
        raise Refused(f"it holds no {CONFIG_FILE}; plait.source must lead to a model's files")
    return found


def weight_files(listing: Listing, index: Mapping[str, Any] | None) -> list[RemoteFile]:
    """The safetensors files that make up the model; ``index`` is what the index file says.

    Raises:
        Refused: there are none, or one that the index names is missing.
    """
    there = {f.path: f for f in listing.files if f.path.endswith(".safetensors")}
    if index is not None:
        names = sorted(set(index.values()))
        if missing := [name for name in names if name not in there]:
            raise Refused(f"it lacks {missing[0]}, which {INDEX_FILE} names")
        return [there[name] for name in names]
    if SINGLE_FILE in there:
        return [there[SINGLE_FILE]]
    in_root = [file for path, file in sorted(there.items()) if "/" not in path]
    if not in_root:
        raise Refused("it holds no safetensors file; convert the model's weights first")
    return in_root


def parse_index(text: bytes) -> dict[str, str]:
    """File by tensor, from an index.

    Raises:
        Refused: it is none.
    """
    try:
        return {str(name): str(file) for name, file in json.loads(text)["weight_map"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Refused(f"{INDEX_FILE} is no index of safetensors files") from None


def _is_small(file: RemoteFile) -> bool:
    path = PurePosixPath(file.path)
    # What lies deeper is another library's, but for templates.
    is_ours = len(path.parts) == 1 or path.parts[0] == "additional_chat_templates"
    is_known = any(fnmatch(path.name, pattern) for pattern in SMALL_PATTERNS)
    return is_ours and is_known and file.size_bytes <= MAX_SMALL_BYTES
