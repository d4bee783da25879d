"""What every source of models' files promises: one suite over every file of scheduler/sources.

A file that is added is found here by its folder; one that no place is made for below fails.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from handlers.model_config import Source as Origin
from scheduler import plugins, sources
from scheduler.sources import _manifest
from scheduler.sources.base import Changed, Refused, RemoteFile, Source, hasher
from scheduler.testing.file_server import FileServer

FILES = {
    "config.json": b'{"num_hidden_layers": 2}',
    "model.safetensors": bytes(range(256)) * 40,
    "tokenizer.json": b"{}",
}


@dataclass
class Place:
    """Where the files are, and how one changes there."""

    origin: Origin
    change: Callable[[str, bytes], None]
    nowhere: Origin


def write(folder: Path) -> Callable[[str, bytes], None]:
    def change(name: str, body: bytes) -> None:
        (folder / name).write_bytes(body)

    for name, body in FILES.items():
        change(name, body)
    return change


@asynccontextmanager
async def folder(root: Path, _: Any) -> AsyncIterator[Place]:
    origin = Origin("folder", str(root), is_copied=True)
    yield Place(origin, write(root), Origin("folder", str(root / "gone"), is_copied=True))


@asynccontextmanager
async def http(root: Path, _: Any) -> AsyncIterator[Place]:
    server, change = FileServer(root), write(root)
    await server.start()
    yield Place(Origin("http", server.url), change, Origin("http", f"{server.url}/gone"))
    await server.stop()


@asynccontextmanager
async def hub(root: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Place]:
    server, change = FileServer(root), write(root)
    server.serve_hub("me/model")
    await server.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.port}")
    yield Place(Origin("hub", "me/model"), change, Origin("hub", "me/gone"))
    await server.stop()


@asynccontextmanager
async def s3(root: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Place]:
    import boto3

    for name, value in {
        "AWS_ENDPOINT_URL": _moto_url(),
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    bucket = f"models-{uuid.uuid4().hex}"
    client.create_bucket(Bucket=bucket)

    def change(name: str, body: bytes) -> None:
        client.put_object(Bucket=bucket, Key=f"one/{name}", Body=body, ChecksumAlgorithm="SHA256")

    for name, body in FILES.items():
        change(name, body)
    yield Place(Origin("s3", f"s3://{bucket}/one"), change, Origin("s3", "s3://gone/one"))
    client.close()


@functools.cache
def _moto_url() -> str:
    """A double of S3, which takes a second to start and ends with the process."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    atexit.register(server.stop)
    host, port = server.get_host_and_port()
    return f"http://{host}:{port}"


PLACES: dict[str, Any] = {"folder": folder, "http": http, "hub": hub, "s3": s3}
#: Sources whose files cannot change once they are listed.
PINNED = {"hub"}


@pytest_asyncio.fixture(params=plugins.names(sources))
async def place(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Place]:
    async with PLACES[request.param](tmp_path, monkeypatch) as place:
        yield place


@asynccontextmanager
async def opened(origin: Origin) -> AsyncIterator[Source]:
    source: Source = plugins.find(sources, origin.kind).Source(origin)
    try:
        yield source
    finally:
        await source.close()


async def read(source: Source, file: RemoteFile, start: int, end: int) -> bytes:
    return b"".join([block async for block in source.read(file, start, end)])


async def test_it_lists_every_file_with_its_size(place: Place) -> None:
    async with opened(place.origin) as source:
        listing = await source.list_files()

    assert {file.path: file.size_bytes for file in listing.files} == {
        name: len(body) for name, body in FILES.items()
    }


async def test_a_digest_that_it_tells_is_that_of_the_bytes(place: Place) -> None:
    async with opened(place.origin) as source:
        listing = await source.list_files()

    for file in listing.files:
        if file.digest is not None:
            whole = hasher(file.digest.algorithm, file.size_bytes)
            whole.update(FILES[file.path])
            assert whole.hexdigest() == file.digest.value
    if place.origin.kind in ("hub", "s3"):
        assert all(file.digest for file in listing.files)


@pytest.mark.parametrize(("start", "end"), [(0, 1), (0, 10240), (1000, 5001), (10239, 10240)])
async def test_any_range_is_read_as_it_is(place: Place, start: int, end: int) -> None:
    async with opened(place.origin) as source:
        listing = await source.list_files()
        file = next(each for each in listing.files if each.path == "model.safetensors")

        assert await read(source, file, start, end) == FILES["model.safetensors"][start:end]


async def test_the_same_files_have_the_same_revision(place: Place) -> None:
    async with opened(place.origin) as one, opened(place.origin) as two:
        assert (await one.list_files()).revision == (await two.list_files()).revision


async def test_a_file_that_has_changed_is_not_read_as_the_one_listed(place: Place) -> None:
    async with opened(place.origin) as source:
        before = await source.list_files()
        file = next(each for each in before.files if each.path == "model.safetensors")
        place.change("model.safetensors", b"another")

        if place.origin.kind in PINNED:
            assert file.version == before.revision
            return
        with pytest.raises(Changed):
            await read(source, file, 0, 100)
        after = await source.list_files()
    assert after.revision != before.revision


async def test_a_place_that_is_not_there_is_refused(place: Place) -> None:
    async with opened(place.nowhere) as source:
        with pytest.raises(Refused):
            await source.list_files()


@pytest.fixture
def manifest(place: Place, tmp_path: Path) -> bytes:
    """The manifest of the files, put beside them."""
    aside = tmp_path / ".aside"
    aside.mkdir()
    for name, body in FILES.items():
        (aside / name).write_bytes(body)
    body = _manifest.write(aside, list(FILES), chunk_bytes=4096).read_bytes()
    place.change(_manifest.MANIFEST_FILE, body)
    return body


async def test_a_manifest_tells_the_digests_of_files_and_of_their_parts(
    place: Place, manifest: bytes
) -> None:
    if place.origin.kind == "hub":
        return  # it tells digests itself
    async with opened(place.origin) as source:
        listing = await source.list_files()

    file = next(each for each in listing.files if each.path == "model.safetensors")
    parts = listing.chunk_digests["model.safetensors"]
    assert file.digest is not None
    assert file.digest.value == hashlib.sha256(FILES["model.safetensors"]).hexdigest()
    assert parts.values[1] == hashlib.sha256(FILES["model.safetensors"][4096:8192]).hexdigest()


async def test_another_manifest_than_the_pinned_one_is_refused(
    place: Place, manifest: bytes
) -> None:
    if place.origin.kind == "hub":
        return  # a revision pins it
    pinned = hashlib.sha256(manifest).hexdigest()
    kind, location = place.origin.kind, place.origin.location
    async with opened(Origin(kind, location, manifest_sha256=pinned)) as source:
        assert await source.list_files()
    async with opened(Origin(kind, location, manifest_sha256="0" * 64)) as source:
        with pytest.raises(Refused, match="is not the manifest"):
            await source.list_files()
