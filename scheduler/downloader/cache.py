"""The folder that fetched files are kept in, shared by all processes of a machine.

    blobs/<digest>             a file whole, named by its content; read-only
    parts/<key>.part, …        files in progress
    models/<name>/             a model's files: links to blobs, and what they are in ``.plait.json``
    names/<key>                which blob a file without a known digest became
    refs/<key>.json            which of these a source had when it was last asked
    staging/<key>/             links to the blobs of a model that is not complete yet
    uses/<name>/<user>         somebody runs a model from that folder

A blob has as many links as models hold it, so two models with the same file hold one, and one that
no model holds is known by its count. A model's folder is built aside and renamed: it is there whole
or not at all. A use is a file, because replicas outlive the runner that made them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from handlers.model_config import Source as Origin
from scheduler.downloader.locks import locked, try_lock, unlock
from scheduler.downloader.part import DATA_SUFFIX, JOURNAL_SUFFIX, Part, sync_folder
from scheduler.sources.base import SHA256

RECORD_FILE: Final = ".plait.json"
#: Seconds after which a use that nobody renewed is nobody's, and a part that nobody went on with.
ABANDONED_S: Final = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Kept:
    """A model's folder in the cache, as eviction sees it."""

    name: str
    #: Moment it was last fetched, asked for or in use.
    used_at: float
    is_in_use: bool
    #: Size by blob.
    blobs: Mapping[str, int]


class Cache:
    """One cache folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.parts = folder / "parts"
        self._blobs, self._models = folder / "blobs", folder / "models"
        self._refs, self._uses = folder / "refs", folder / "uses"
        self._staging, self._names = folder / "staging", folder / "names"

    def __repr__(self) -> str:
        return f"<Cache {self.folder}>"

    def open(self) -> None:
        """Make the folders."""
        own = (self._blobs, self._models, self._staging, self._names, self._refs, self._uses)
        for each in (self.parts, *own):
            each.mkdir(parents=True, exist_ok=True)

    # -- files

    def blob(self, name: str) -> Path:
        """Where the file with this digest is, or would be."""
        return self._blobs / name

    def recall(self, key: str) -> str | None:
        """The blob that a file became, by the key it is fetched under; None: it is not here."""
        name = key
        with contextlib.suppress(FileNotFoundError):
            name = (self._names / key).read_text("ascii")
        return name if self.blob(name).is_file() else None

    def remember(self, key: str, blob: str) -> None:
        """Note which blob a file became."""
        if key != blob:
            beside = self._names / f"{key}.new"
            beside.write_text(blob, "ascii")
            os.replace(beside, self._names / key)

    def put(self, staging: str, body: bytes) -> str:
        """Make a blob of a few bytes for a model that is being fetched; its name."""
        name = f"{SHA256}-{hashlib.sha256(body).hexdigest()}"
        with locked(self.folder / "lock"):
            if not self.blob(name).is_file():
                with tempfile.NamedTemporaryFile(dir=self.parts, delete=False) as file:
                    file.write(body)
                    os.fchmod(file.fileno(), 0o444)
                    os.fsync(file.fileno())
                os.replace(file.name, self.blob(name))
            self._link(staging, name)
        return name

    def stage(self, staging: str, blob: str, part: Part | None = None) -> bool:
        """Hold a blob for a model that is being fetched; it is made of ``part`` if that is given.

        False: there is no such blob, and no part to make it of.
        """
        with locked(self.folder / "lock"):
            if part is not None:
                part.finish(self.blob(blob))
            try:
                self._link(staging, blob)
            except FileNotFoundError:
                return False
        return True

    def _link(self, staging: str, blob: str) -> None:
        place = self._staging / staging
        place.mkdir(exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.link(self.blob(blob), place / blob)

    def part_bytes(self, key: str) -> int:
        """Bytes on disk of a file in progress."""
        with contextlib.suppress(FileNotFoundError):
            return (self.parts / f"{key}{DATA_SUFFIX}").stat().st_blocks * 512
        return 0

    def free_bytes(self) -> int:
        """What the file system has left for us."""
        status = os.statvfs(self.folder)
        return status.f_bavail * status.f_frsize

    def lock(self, key: str) -> int | None:
        """The lock of a file in progress; None: another process is at it."""
        return try_lock(self.parts / f"{key}.lock")

    def unlock(self, descriptor: int, key: str) -> None:
        unlock(descriptor, self.parts / f"{key}.lock")

    # -- models

    def find(self, origin: Origin, need: str) -> Path | None:
        """The folder that a source had when it was last asked; None: never, or it is gone."""
        ref = self._read_json(self._ref(origin, need))
        name = ref.get("name") if ref else None
        folder = self._models / name if isinstance(name, str) and name else None
        return folder if folder is not None and (folder / RECORD_FILE).is_file() else None

    def size_of(self, folder: Path) -> int:
        """Bytes of a model's folder."""
        return sum(self._record(folder).values())

    def keep(self, origin: Origin, need: str, revision: str, blobs: Mapping[str, str]) -> Path:
        """Make the folder of a model out of blobs, by path; returns where it is."""
        name = _name(origin, need, revision, blobs)
        target = self._models / name
        with locked(self.folder / "lock"):
            if not (target / RECORD_FILE).is_file():
                self._build(target, origin, need, revision, blobs)
            os.utime(target)
            self._write_json(self._ref(origin, need), {"name": name, "source": origin.location})
            shutil.rmtree(self._staging / staging_key(origin, need, revision), ignore_errors=True)
        return target

    def _build(
        self, target: Path, origin: Origin, need: str, revision: str, blobs: Mapping[str, str]
    ) -> None:
        shutil.rmtree(target, ignore_errors=True)
        with tempfile.TemporaryDirectory(
            prefix=".building-", dir=self._models, ignore_cleanup_errors=True
        ) as aside:
            building = Path(aside) / "model"
            building.mkdir()
            for path, blob in blobs.items():
                place = building / path
                place.parent.mkdir(parents=True, exist_ok=True)
                os.link(self.blob(blob), place)
            sizes = {blob: self.blob(blob).stat().st_size for blob in blobs.values()}
            record = {
                "source": {"kind": origin.kind, "location": origin.location},
                "revision": revision,
                "need": need,
                "files": dict(blobs),
                "blobs": sizes,
            }
            self._write_json(building / RECORD_FILE, record)
            sync_folder(building)
            building.rename(target)
        sync_folder(self._models)

    # -- what is in use, and what may go

    def use(self, folder: Path, user: str) -> None:
        """Note, or note again, that somebody runs a model from a folder.

        Raises:
            FileNotFoundError: the folder has gone.
        """
        with locked(self.folder / "lock"):
            if not folder.is_dir():
                raise FileNotFoundError(str(folder))
            place = self._uses / folder.name
            place.mkdir(exist_ok=True)
            (place / user).touch()
            os.utime(folder)

    def renew(self, name: str, user: str) -> None:
        """Note a use again; nothing happens when it was taken back."""
        with contextlib.suppress(FileNotFoundError):
            os.utime(self._uses / name / user)

    def uses(self, user: str) -> list[str]:
        """Names of the folders that somebody noted."""
        return [place.name for place in self._uses.iterdir() if (place / user).exists()]

    def unuse(self, name: str, user: str) -> None:
        """Take a note back."""
        (self._uses / name / user).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            (self._uses / name).rmdir()

    def models(self, now: float) -> list[Kept]:
        """Every model kept."""
        found = []
        for folder in self._models.iterdir():
            if folder.name.startswith("."):
                continue
            marks = self._uses / folder.name
            times = [m.stat().st_mtime for m in marks.iterdir()] if marks.is_dir() else []
            is_used = any(now - at < ABANDONED_S for at in times)
            used_at = max([folder.stat().st_mtime, *times])
            found.append(Kept(folder.name, used_at, is_used, self._record(folder)))
        return found

    def evict(self, names: Iterable[str], now: float) -> int:
        """Take models away, those excepted that somebody has come to use; bytes that are free."""
        with locked(self.folder / "lock"):
            in_use = {kept.name for kept in self.models(now) if kept.is_in_use}
            for name in set(names) - in_use:
                # Renamed first: half a folder must not look like a whole one.
                aside = self._models / f".going-{name}"
                shutil.rmtree(aside, ignore_errors=True)
                with contextlib.suppress(FileNotFoundError):
                    (self._models / name).rename(aside)
                shutil.rmtree(aside, ignore_errors=True)
            return self._drop_unlinked()

    def sweep(self, now: float) -> int:
        """Take away what nothing points to: builds, parts and blobs that were left; bytes freed."""
        with locked(self.folder / "lock"):
            for folder in self._models.glob(".*"):
                shutil.rmtree(folder, ignore_errors=True)
            for folder in self._staging.iterdir():
                if now - folder.stat().st_mtime >= ABANDONED_S:
                    shutil.rmtree(folder, ignore_errors=True)
            freed = sum(self._drop_part(path, now) for path in self.parts.glob(f"*{DATA_SUFFIX}"))
            return freed + self._drop_unlinked()

    def _drop_part(self, path: Path, now: float) -> int:
        key = path.name.removesuffix(DATA_SUFFIX)
        status = path.stat()
        if now - status.st_mtime < ABANDONED_S or (held := self.lock(key)) is None:
            return 0
        try:
            (self.parts / f"{key}{JOURNAL_SUFFIX}").unlink(missing_ok=True)
            path.unlink(missing_ok=True)
        finally:
            self.unlock(held, key)
        return status.st_blocks * 512

    def _drop_unlinked(self) -> int:
        freed = 0
        for blob in self._blobs.iterdir():
            status = blob.stat()
            if status.st_nlink == 1:
                blob.unlink()
                freed += status.st_size
        return freed

    def held_bytes(self) -> int:
        """Bytes of all blobs, and of parts as far as they are written."""
        blobs = sum(blob.stat().st_size for blob in self._blobs.iterdir())
        return blobs + sum(
            path.stat().st_blocks * 512 for path in self.parts.glob(f"*{DATA_SUFFIX}")
        )

    def _record(self, folder: Path) -> dict[str, int]:
        record = self._read_json(folder / RECORD_FILE)
        return dict(record["blobs"]) if record else {}

    def _ref(self, origin: Origin, need: str) -> Path:
        return self._refs / f"{_key(origin, need)}.json"

    @staticmethod
    def _read_json(path: Path) -> dict[str, Any] | None:
        try:
            document = json.loads(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None
        return document if isinstance(document, dict) else None

    @staticmethod
    def _write_json(path: Path, document: Mapping[str, Any]) -> None:
        beside = path.with_suffix(".new")
        with beside.open("w", encoding="utf-8") as file:
            json.dump(document, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)


def _key(origin: Origin, need: str) -> str:
    """Names what is asked of a source."""
    words = (origin.kind, origin.location, origin.revision or "", origin.manifest_sha256, need)
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:24]


def staging_key(origin: Origin, need: str, revision: str) -> str:
    """Names a model of one revision before all of its files are known."""
    return f"{_key(origin, need)}-{hashlib.sha256(revision.encode()).hexdigest()[:12]}"


def _name(origin: Origin, need: str, revision: str, blobs: Mapping[str, str]) -> str:
    """A folder name that says to a person what it holds, and differs whenever a byte does."""
    last = origin.location.rstrip("/").rpartition("/")[2]
    readable = re.sub(r"[^A-Za-z0-9_.-]", "_", last).strip(".")[:60] or "model"
    text = json.dumps([origin.kind, origin.location, need, revision, sorted(blobs.items())])
    return f"{readable}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
