"""Decides which tensors of a safetensors file a machine needs, and what its own file looks like.

The own file is a whole safetensors file with fewer tensors: their bytes are moved together and the
header is written anew. A file with the first header and holes would keep its offsets, but whoever
read a tensor from a hole would get zeros and no error; this way a tensor that is not here is
missing, which every reader says. It is also as large as it looks, on any file system, and has a
digest of its own.

Of a decoder's layers those in use are needed. Beside them: the embedding for the first stage, and
for the last one when the output head shares its weights; what follows the last layer for the last
stage. Whatever cannot be told apart by its name is needed.

Pure: names, headers and numbers in, contents out.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Final

from scheduler.downloader.layout import Content, Segment

#: Largest header that is read; the library's own limit.
MAX_HEADER_BYTES: Final = 100_000_000
LENGTH_BYTES: Final = 8

_NUMBERED: Final = re.compile(r"(?P<list>.*?\b(?:layers|h|blocks|layer))\.(?P<index>\d+)\.")
#: Parts of a model that read images or sound have layers of their own.
_OTHER_KINDS: Final = ("vision", "visual", "audio", "image", "video", "speech")
_EMBEDDINGS: Final = ("embed_tokens", "wte", "word_embeddings", "embed_in")
_HEADS: Final = ("lm_head", "embed_out")
_LAYER_COUNTS: Final = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")

Needs = Callable[[str], bool]


class NoSafetensors(ValueError):
    """The bytes are no header of a safetensors file."""


def num_layers(config: Mapping[str, Any]) -> int | None:
    """Decoder layers of a model, by its config.json; None when that does not say."""
    places = [
        config,
        *(v for k in ("text_config", "llm_config") if isinstance(v := config.get(k), dict)),
    ]
    for place in reversed(places):
        for key in _LAYER_COUNTS:
            if isinstance(count := place.get(key), int) and count > 0:
                return count
    return None


def needs(
    names: Collection[str], layers: Collection[int], count: int | None, is_tied: bool
) -> Needs:
    """Whether a tensor is needed by a machine that runs these of ``count`` decoder layers.

    ``names`` are those of all tensors of the model. ``is_tied``: whether the head may share the
    embedding's weights.
    """
    prefix = None if count is None else _decoder_layers(names, count)
    if prefix is None or count is None:
        return lambda _: True
    is_first, is_last = 0 in layers, count - 1 in layers

    def is_needed(name: str) -> bool:
        match = _NUMBERED.match(name)
        if match is not None and match["list"] == prefix:
            return int(match["index"]) in layers
        parts = name.split(".")
        if any(part in _EMBEDDINGS for part in parts):
            return is_first or (is_last and is_tied)
        if any(part in _HEADS for part in parts):
            return is_last
        return True

    return is_needed


def _decoder_layers(names: Iterable[str], count: int) -> str | None:
    """What the names of the decoder's layers begin with; None when that is not clear."""
    lists: dict[str, set[int]] = {}
    for name in names:
        match = _NUMBERED.match(name)
        if match is not None and not any(kind in match["list"] for kind in _OTHER_KINDS):
            lists.setdefault(match["list"], set()).add(int(match["index"]))
    fit = [prefix for prefix, found in lists.items() if found >= set(range(count))]
    return fit[0] if len(fit) == 1 else None


def header_length(first: bytes, file_bytes: int) -> int:
    """Bytes of the header, by the first eight of the file.

    Raises:
        NoSafetensors: they do not begin a safetensors file of that size.
    """
    if len(first) != LENGTH_BYTES:
        raise NoSafetensors(f"has {len(first)} bytes, which is no safetensors file")
    length = int(struct.unpack("<Q", first)[0])
    if not 2 <= length <= min(MAX_HEADER_BYTES, file_bytes - LENGTH_BYTES):
        raise NoSafetensors(f"says that its header has {length} bytes, of {file_bytes} in all")
    return length


def parse_header(text: bytes) -> dict[str, Any]:
    """What a header says: ``dtype``, ``shape`` and ``data_offsets`` by tensor; ``__metadata__``.

    Raises:
        NoSafetensors: it is no header.
    """
    try:
        header = json.loads(text)
        for name, entry in header.items():
            if name != "__metadata__":
                start, end = entry["data_offsets"]
                if not 0 <= start <= end:
                    raise ValueError(f"{name} has offsets {start} to {end}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise NoSafetensors(f"has a header that cannot be read: {error!r}") from None
    return dict(header)


def part(header: Mapping[str, Any], header_bytes: int, is_needed: Needs) -> Content:
    """The content of a file with only the tensors that are needed.

    ``header_bytes`` is the length of the source's header. A file of which nothing is needed has
    no tensors and is still one.
    """
    tensors = {n: e for n, e in header.items() if n != "__metadata__" and is_needed(n)}
    ordered = sorted(tensors.items(), key=lambda item: item[1]["data_offsets"][0])
    new: dict[str, Any] = {}
    if "__metadata__" in header:
        new["__metadata__"] = header["__metadata__"]
    segments: list[Segment] = []
    at, base = 0, LENGTH_BYTES + header_bytes
    for name, entry in ordered:
        start, end = entry["data_offsets"]
        new[name] = {**entry, "data_offsets": [at, at + end - start]}
        if segments and segments[-1].source_start + segments[-1].size_bytes == base + start:
            last = segments.pop()
            segments.append(
                Segment(last.source_start, last.size_bytes + end - start, last.target_start)
            )
        elif end > start:
            segments.append(Segment(base + start, end - start, at))
        at += end - start
    text = json.dumps(new, separators=(",", ":")).encode()
    # The data begin at a multiple of eight, for readers that map them.
    text += b" " * (-len(text) % 8)
    head = struct.pack("<Q", len(text)) + text
    moved = (Segment(s.source_start, s.size_bytes, s.target_start + len(head)) for s in segments)
    return Content(head, tuple(moved))
