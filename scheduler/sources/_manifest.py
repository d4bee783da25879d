"""The list of a folder's files with their digests, for places that can neither list nor vouch.

``plait manifest <folder>`` writes it beside the files as ``plait-manifest.json``. It has SHA-256 of
each file and of each piece of it, so that any part of a file can be checked by itself. Whoever pins
the manifest's own digest in a model's YAML has pinned every byte.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path, PurePosixPath
from typing import Any, Final

from scheduler.sources.base import SHA256, ChunkDigests, Digest, Refused

MANIFEST_FILE: Final = "plait-manifest.json"
FORMAT: Final = 1
CHUNK_BYTES: Final = 16 * 1024 * 1024
#: Largest manifest that is read: a million chunks.
MAX_BYTES: Final = 80 * 1024 * 1024

_SHA256: Final = re.compile(r"[0-9a-f]{64}")


class Manifest:
    """What a manifest says, by path."""

    def __init__(self, sizes: dict[str, int], digests: dict[str, Digest],
                 chunks: dict[str, ChunkDigests]) -> None:  # fmt: skip
        self.sizes, self.digests, self.chunks = sizes, digests, chunks


def write(folder: Path, paths: list[str], chunk_bytes: int = CHUNK_BYTES) -> Path:
    """Write the manifest of these files of a folder; returns where it is."""
    files = {path: _describe(folder / path, chunk_bytes) for path in sorted(paths)}
    document = {"format": FORMAT, "chunk_bytes": chunk_bytes, "files": files}
    target = folder / MANIFEST_FILE
    beside = target.with_suffix(".tmp")
    beside.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    beside.replace(target)
    return target


def files_below(folder: Path) -> list[str]:
    """The files that a manifest of the folder names."""
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return [
        p for p in found if p != MANIFEST_FILE and not any(w.startswith(".") for w in p.split("/"))
    ]


def digest_of(path: Path) -> str:
    """The SHA-256 of a file, such as a manifest that is to be pinned."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _describe(path: Path, chunk_bytes: int) -> dict[str, Any]:
    whole, pieces, size = hashlib.sha256(), [], 0
    with path.open("rb") as file:
        while block := file.read(chunk_bytes):
            whole.update(block)
            pieces.append(hashlib.sha256(block).hexdigest())
            size += len(block)
    return {"bytes": size, "sha256": whole.hexdigest(), "chunks": pieces}


def parse(body: bytes, where: str, pinned: str = "") -> Manifest:
    """The manifest in ``body``; ``pinned`` is what its SHA-256 must be, empty: anything.

    Raises:
        Refused: it is not the pinned one, or no manifest.
    """
    found = hashlib.sha256(body).hexdigest()
    if pinned and found != pinned:
        raise Refused(
            f"{where} is not the manifest that the model's YAML names: its sha256 is {found}, and "
            f"manifest_sha256 is {pinned}"
        )
    try:
        document = json.loads(body)
        if document["format"] != FORMAT:
            raise ValueError(f"its format is {document['format']}; known is {FORMAT}")
        return _read(document)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Refused(f"{where} is no manifest of ours: {error!r}") from None


def _read(document: Any) -> Manifest:
    chunk_bytes = int(document["chunk_bytes"])
    if chunk_bytes < 1:
        raise ValueError("chunk_bytes must be 1 or more")
    sizes, digests, chunks = {}, {}, {}
    for path, entry in document["files"].items():
        if not is_inside(path):
            raise ValueError(f"{path!r} leads out of the folder")
        size, values = int(entry["bytes"]), tuple(entry["chunks"])
        if len(values) != -(-size // chunk_bytes):
            raise ValueError(f"{path} has {len(values)} chunks, which do not fit its size")
        if not all(_SHA256.fullmatch(value) for value in (entry["sha256"], *values)):
            raise ValueError(f"{path} has a digest that is no sha256")
        sizes[path] = size
        digests[path] = Digest(SHA256, entry["sha256"])
        chunks[path] = ChunkDigests(chunk_bytes, values)
    return Manifest(sizes, digests, chunks)


def is_inside(path: str) -> bool:
    """Whether a path of a source stays below the folder it is put into."""
    parts = PurePosixPath(path).parts
    return bool(parts) and not path.startswith("/") and ".." not in parts and "\0" not in path
