"""Fetches one model: what it consists of, which files of it, and of those which bytes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from handlers.model_config import Source as Origin
from scheduler.downloader import selection, tensors
from scheduler.downloader.cache import Cache, staging_key
from scheduler.downloader.files import Files, Wanted
from scheduler.downloader.layout import Content, whole
from scheduler.downloader.transfer import Urgency
from scheduler.sources.base import Busy, Listing, Refused, RemoteFile, Source, patiently

#: Files of one model that are fetched at once; connections are limited elsewhere.
_FILES_AT_ONCE: Final = 16


@dataclass(frozen=True, slots=True)
class Need:
    """What of a model a machine needs."""

    #: Whether only its decoder is run, so that what else its files hold may stay away.
    is_decoder_only: bool = False
    #: Decoder layers its stages run; None: all.
    layers: frozenset[int] | None = None

    def __str__(self) -> str:
        if not self.is_decoder_only:
            return "whole"
        if self.layers is None:
            return "decoder"
        return f"decoder layers {','.join(map(str, sorted(self.layers)))}"


@dataclass(slots=True)
class Progress:
    """How far a model is."""

    #: Bytes of everything it needs; None: not known yet.
    total_bytes: int | None = None
    #: Those of files that are whole.
    whole_bytes: int = 0
    under_way: list[Wanted] = field(default_factory=list)


class ModelFetch:
    """One model on its way into the cache."""

    def __init__(
        self,
        origin: Origin,
        need: Need,
        source: Source,
        cache: Cache,
        files: Files,
        urgency: Callable[[], Urgency],
        make_room: Callable[[int], Any],
    ) -> None:
        """``make_room`` is awaited with the bytes that are about to come; it may refuse."""
        self._origin, self._need, self._source = origin, need, source
        self._cache, self._files, self._urgency = cache, files, urgency
        self._make_room = make_room
        self.progress = Progress()

    def held_bytes(self) -> int:
        """Bytes that are here."""
        coming = sum(self._files.held_bytes(wanted) for wanted in self.progress.under_way)
        return self.progress.whole_bytes + coming

    def is_elsewhere(self) -> bool:
        """Whether another process fetches what is still missing."""
        coming = self.progress.under_way
        return bool(coming) and all(self._files.is_elsewhere(wanted) for wanted in coming)

    async def run(self) -> Path:
        """Fetch what is missing; the folder with the model's files.

        Raises:
            Refused, Busy, Changed: as the source does.
            NoRoom, OSError: the disk is too small, or does not take it.
        """
        listing = await patiently(self._source.list_files)
        staging = staging_key(self._origin, str(self._need), listing.revision)
        small = [self._whole(listing, file) for file in selection.small_files(listing)]
        blobs = await self._bring_all(small, staging)
        weights, changed = await self._weights(listing, blobs)
        for path, body in changed.items():
            blobs[path] = await asyncio.to_thread(self._cache.put, staging, body)
        blobs |= await self._bring_all(weights, staging)
        return await asyncio.to_thread(
            self._cache.keep, self._origin, str(self._need), listing.revision, blobs
        )

    async def _bring_all(self, wanted: list[Wanted], staging: str) -> dict[str, str]:
        """Have these files; blob by path."""
        self.progress.total_bytes = self.progress.total_bytes or 0
        self.progress.total_bytes += sum(each.content.size_bytes for each in wanted)
        await self._make_room(await asyncio.to_thread(self._missing_bytes, wanted))
        at_once = asyncio.Semaphore(_FILES_AT_ONCE)

        async def bring(each: Wanted) -> tuple[str, str]:
            async with at_once:
                self.progress.under_way.append(each)
                try:
                    blob = await self._files.bring(each, staging, self, self._urgency)
                finally:
                    self.progress.under_way.remove(each)
                self.progress.whole_bytes += each.content.size_bytes
                return each.file.path, blob

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(bring(each)) for each in wanted]
        except BaseExceptionGroup as errors:
            raise _first(errors) from None
        return dict(task.result() for task in tasks)

    def _missing_bytes(self, wanted: list[Wanted]) -> int:
        """What is not on disk yet; a file that several want counts for each."""
        missing = [each for each in wanted if self._cache.recall(each.key) is None]
        return sum(
            max(0, each.content.size_bytes - self._cache.part_bytes(each.key)) for each in missing
        )

    def _whole(self, listing: Listing, file: RemoteFile) -> Wanted:
        content = whole(file.size_bytes)
        digests = listing.chunk_digests.get(file.path)
        return Wanted(self._origin, self._source, file, content, digests)

    # -- which bytes of the weights

    async def _weights(
        self, listing: Listing, blobs: Mapping[str, str]
    ) -> tuple[list[Wanted], dict[str, bytes]]:
        """What to fetch of the weights, and small files that are to be others than the source's."""
        index_blob = blobs.get(selection.INDEX_FILE)
        index = None
        if index_blob is not None:
            index = selection.parse_index(await asyncio.to_thread(self._read, index_blob))
        files = selection.weight_files(listing, index)
        if not self._need.is_decoder_only:
            return [self._whole(listing, file) for file in files], {}
        config = json.loads(await asyncio.to_thread(self._read, blobs[selection.CONFIG_FILE]))
        headers: dict[str, tuple[dict[str, Any], int]] = {}
        if index is None:
            headers = {file.path: await self._header(file) for file in files}
            names = [n for header, _ in headers.values() for n in header if n != "__metadata__"]
        else:
            names = list(index)
        is_needed = self._needs(names, config)
        wanted = []
        for file in files:
            own = (
                [n for n, path in index.items() if path == file.path]
                if index is not None
                else [n for n in headers[file.path][0] if n != "__metadata__"]
            )
            if all(map(is_needed, own)) or self._is_here_whole(file):
                wanted.append(self._whole(listing, file))
            elif any(map(is_needed, own)) or index is None:
                content = await self._part(file, headers.get(file.path), is_needed)
                digests = listing.chunk_digests.get(file.path)
                wanted.append(Wanted(self._origin, self._source, file, content, digests))
        if index is None or all(map(is_needed, names)):
            return wanted, {}
        there = {each.file.path for each in wanted}
        kept = {n: path for n, path in index.items() if is_needed(n) and path in there}
        body = json.dumps({"metadata": {}, "weight_map": kept}, indent=1).encode()
        return wanted, {selection.INDEX_FILE: body}

    def _needs(self, names: list[str], config: Mapping[str, Any]) -> tensors.Needs:
        count = tensors.num_layers(config)
        layers = self._need.layers
        if count is not None and layers is not None and (out := sorted(layers - set(range(count)))):
            raise Refused(f"it has {count} layers, from 0; there is no layer {out[0]}")
        if layers is None:
            layers = frozenset(range(count or 0))
        # What a configuration leaves out is the library's to say; the weight is kept then.
        is_tied = bool(config.get("tie_word_embeddings", True))
        return tensors.needs(names, layers, count, is_tied)

    async def _part(
        self, file: RemoteFile, known: tuple[dict[str, Any], int] | None, needs: tensors.Needs
    ) -> Content:
        header, length = known or await self._header(file)
        return tensors.part(header, length, needs)

    async def _header(self, file: RemoteFile) -> tuple[dict[str, Any], int]:
        """What the header of a safetensors file says, and its length."""
        try:
            first = await self._some(file, 0, tensors.LENGTH_BYTES)
            length = tensors.header_length(first, file.size_bytes)
            text = await self._some(file, tensors.LENGTH_BYTES, tensors.LENGTH_BYTES + length)
            return tensors.parse_header(text), length
        except tensors.NoSafetensors as error:
            raise Refused(f"{file.path} {error}") from None

    async def _some(self, file: RemoteFile, start: int, end: int) -> bytes:
        """A few bytes of a file."""

        async def ask() -> bytes:
            body = b"".join([block async for block in self._source.read(file, start, end)])
            if len(body) != end - start:
                raise Busy(f"{file.path}: bytes {start} to {end} did not come whole")
            return body

        return await patiently(ask)

    def _is_here_whole(self, file: RemoteFile) -> bool:
        return file.digest is not None and self._cache.recall(file.digest.name) is not None

    def _read(self, blob: str) -> bytes:
        return self._cache.blob(blob).read_bytes()


def _first(errors: BaseExceptionGroup[Any]) -> BaseException:
    """One of several errors; those that say more than "not now" before the others."""
    flat = list(errors.exceptions)
    while any(isinstance(error, BaseExceptionGroup) for error in flat):
        flat = [
            e for g in flat for e in (g.exceptions if isinstance(g, BaseExceptionGroup) else [g])
        ]
    return min(flat, key=lambda error: isinstance(error, Busy))
