"""Builds what TorchServe loads: a folder per replica, and a ``.mar`` to ship.

Each replica is a TorchServe model of its own with exactly one worker, because TorchServe stalls a
continuously batched model that has two, and puts two workers on the same devices. So each gets a
folder in the model store, named ``<model>__r<index>``, with its own ``deviceIds``. The folder is
self-contained: the entry file, the ``handlers`` package and the settings; only the weights are
where they were.

torch-model-archiver does the packing, in a process of its own: it empties ``<TMPDIR>/<name>``,
whoever owns that, so it is given a TMPDIR to itself. What it makes is built beside its place and
renamed into it, so a crash leaves the old or the new or none, and never a half. What would not
change is not touched.

It does not know which devices are free, nor talk to TorchServe.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import yaml

import handlers
from handlers.model_config import (
    DEFAULT_GAP_FACTOR,
    REPLICA_MARK,
    ModelConfig,
    is_model_name,
)
from handlers.sources import HUB_PATTERNS, resolve_source

CONFIG_FILE: Final = "model-config.yaml"
#: What a replica's engine tells of itself, in the replica's folder.
STATUS_FILE: Final = "engine_status.json"
MANIFEST_FILE: Final = "MAR-INF/MANIFEST.json"
#: Where a ``.mar`` keeps weights it takes along.
WEIGHTS_FOLDER: Final = "weights"
VERSION: Final = "1.0"

#: Seconds from a worker's first death in which TorchServe restarts it, unless the YAML says more;
#: afterwards it gives up for ever, and the sidecar must register the replica again.
MIN_RETRY_WINDOW_S: Final = 300

_REPLICA_NAME: Final = re.compile(rf"(?P<model>.+){REPLICA_MARK}(?P<index>0|[1-9][0-9]*)")


class ArchiveError(RuntimeError):
    """A replica folder or a ``.mar`` could not be built."""


def replica_name(model: str, index: int) -> str:
    """The TorchServe model name of a model's replica."""
    return f"{model}{REPLICA_MARK}{index}"


def parse_replica_name(name: str) -> tuple[str, int] | None:
    """Model and index of a replica's name, or None when the name is not one of ours."""
    match = _REPLICA_NAME.fullmatch(name)
    if match is None or not is_model_name(match["model"]):
        return None
    return match["model"], int(match["index"])


def build_replica(config: ModelConfig, store: Path, index: int, device_ids: Sequence[int]) -> Path:
    """The folder of one replica in the model store, made or brought up to date.

    ``device_ids`` are the devices of its ranks; none on CPUs. A folder that already has the right
    content is not written to, so a worker that runs from it is not disturbed.

    Raises:
        ArchiveError: the number of devices is wrong, or torch-model-archiver failed.
    """
    name = replica_name(config.name, index)
    settings = replica_settings(config, device_ids)
    files = _package_files(config) | {CONFIG_FILE: _settings_text(settings)}
    store.mkdir(parents=True, exist_ok=True)
    target = store / name
    _remove_leftovers(store, name)
    if not _is_current(target, name, config, files):
        with _scratch(store, name) as scratch:
            _pack(scratch, name, config, files, "no-archive")
            _replace_folder(scratch / "out" / name, target, scratch / "old")
    return target


def build_archive(config: ModelConfig, output: Path, with_weights: bool = False) -> Path:
    """A ``.mar`` of the model for other machines; ``output`` is the file, or a folder for it.

    Without weights it refers to them as the YAML does: a hub id and a package mean the same
    anywhere, a folder must exist under the same path there.

    Raises:
        ArchiveError: torch-model-archiver failed.
        SourceNotFound: the weights to include are not to be had here.
    """
    target = output if output.suffix == ".mar" else output / f"{config.name}.mar"
    settings = replica_settings(config, ())
    weights: dict[str, Path] = {}
    if with_weights:
        settings["plait"]["source"] = {"folder": WEIGHTS_FOLDER}
        weights = _weight_files(resolve_source(config))
    files = _package_files(config) | {CONFIG_FILE: _settings_text(settings)}
    target.parent.mkdir(parents=True, exist_ok=True)
    if not _is_current_archive(target, config, files, weights):
        with _scratch(target.parent, config.name) as scratch:
            _link_weights(scratch / "extra" / WEIGHTS_FOLDER, weights)
            # Weights do not compress; packing them plainly is many times faster.
            _pack(scratch, config.name, config, files, "zip-store" if weights else "default")
            os.replace(scratch / "out" / f"{config.name}.mar", target)
    return target


def replica_settings(config: ModelConfig, device_ids: Sequence[int]) -> dict[str, Any]:
    """What a replica's model-config.yaml says: the model's own, with nothing left implicit.

    TorchServe's built-in default beats the server's settings for whatever is absent from the file.
    """
    if device_ids and len(device_ids) != config.num_stages:
        raise ArchiveError(
            f"model {config.name}: a replica has {config.num_stages} ranks and needs as many "
            f"devices; given were {list(device_ids)}"
        )
    if device_ids and config.device_type != "gpu":
        raise ArchiveError(f"model {config.name}: runs on {config.device_type}; give no devices")
    settings = {key: value for key, value in config.torchserve.items() if key != "deviceIds"}
    settings |= {"minWorkers": 1, "maxWorkers": 1}
    settings |= {
        "responseTimeout": config.response_timeout_s,
        "startupTimeout": config.startup_timeout_s,
    }
    retry_window_s = max(MIN_RETRY_WINDOW_S, config.startup_timeout_s)
    settings.setdefault("maxRetryTimeoutInSec", retry_window_s)
    # The fair queue holds what waits; a little room here hides the way between the two.
    settings.setdefault("jobQueueSize", 2 * config.max_batch)
    if device_ids:
        settings["deviceIds"] = list(device_ids)
    settings["plait"] = _plait_settings(config)
    return settings


def _plait_settings(config: ModelConfig) -> dict[str, Any]:
    source = {config.source.kind: config.source.location}
    if config.source.revision:
        source["revision"] = config.source.revision
    if config.source.subfolder:
        source["subfolder"] = config.source.subfolder
    settings: dict[str, Any] = {
        "name": config.name,
        "task": config.task,
        "source": source,
        "engine": config.engine,
        "dtype": config.dtype,
        "partition": _partition(config),
        "lanes": "auto" if config.num_lanes is None else config.num_lanes,
        "max_context": config.max_context,
        "replicas": 1,
    }
    if config.task == "generate":
        settings["prefill_chunk"] = config.prefill_chunk
    return settings | _engine_settings(config)


def _partition(config: ModelConfig) -> str | list[int]:
    if config.partition is not None:
        return list(config.partition)
    return "estimated" if config.partition_by == "estimated" else "auto"


def _engine_settings(config: ModelConfig) -> dict[str, Any]:
    """What counts with some engines only and is refused with others: what is not the default."""
    kv_memory_bytes = config.kv_memory_bytes
    given = {
        "repartition": (config.repartitions, config.partition is None),
        "gap_factor": (config.gap_factor, DEFAULT_GAP_FACTOR),
        "prefix_cache": (config.prefix_cache, True),
        "kv_memory": ("auto" if kv_memory_bytes is None else f"{kv_memory_bytes}B", "auto"),
        "kernels": (config.kernels, "auto"),
        "compile": (config.compiles, False),
        "quantize": (config.quantize, "none"),
        "resume": (config.resume, "fast"),
        "engine_options": (config.engine_options, {}),
    }
    return {key: value for key, (value, default) in given.items() if value != default}


def _settings_text(settings: Mapping[str, Any]) -> bytes:
    note = "# Generated; change the file in model_configs instead.\n"
    return (note + yaml.safe_dump(dict(settings), sort_keys=False)).encode()


def _package_files(config: ModelConfig) -> dict[str, bytes]:
    """The code a worker needs, by its path in the folder."""
    package = Path(handlers.__file__).parent
    entry = package / f"{config.handler}.py"
    if not entry.is_file():
        raise ArchiveError(f"model {config.name}: there is no entry file {entry}")
    files = {entry.name: entry.read_bytes()}
    for path in sorted(package.rglob("*.py")):
        inside = path.relative_to(package)
        # Entry files lie flat beside the package, where TorchServe imports them by bare name.
        if not inside.name.endswith("_handler.py") and inside.parts[0] != "testing":
            files[f"handlers/{inside.as_posix()}"] = path.read_bytes()
    return files


def _weight_files(source: Path) -> dict[str, Path]:
    """The model's files, by their path in the source."""
    found = {path for pattern in HUB_PATTERNS for path in source.rglob(pattern) if path.is_file()}
    inside = {path.relative_to(source): path.resolve() for path in sorted(found)}
    # The archiver leaves hidden folders out; what a download kept there is no part of a model.
    return {
        name.as_posix(): path
        for name, path in inside.items()
        if not any(part.startswith(".") for part in name.parts)
    }


def _link_weights(folder: Path, weights: Mapping[str, Path]) -> None:
    """Shows the archiver the weights without a copy of our own."""
    for name, path in weights.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(path)


@contextmanager
def _scratch(beside: Path, name: str) -> Iterator[Path]:
    """A folder to build in, on the same file system so that the result can be renamed."""
    # A worker may still write bytecode into the folder that was replaced: leave what stays busy.
    with tempfile.TemporaryDirectory(
        prefix=f".building-{name}-", dir=beside, ignore_cleanup_errors=True
    ) as folder:
        yield Path(folder).resolve()


def _remove_leftovers(store: Path, name: str) -> None:
    """Takes away what a build that was killed left; a name is built by one process at a time."""
    for folder in store.iterdir():
        if re.fullmatch(rf"\.building-{re.escape(name)}-[a-z0-9_]+", folder.name):
            shutil.rmtree(folder, ignore_errors=True)


def _pack(
    scratch: Path, name: str, config: ModelConfig, files: Mapping[str, bytes], form: str
) -> None:
    """Runs torch-model-archiver over ``files`` and what lies in ``extra``; result in ``out``.

    It copies the *contents* of an extra folder, so what must land in ``handlers/`` lies one deeper.
    """
    entry = f"{config.handler}.py"
    for path, content in files.items():
        place = scratch / (path if path in (entry, CONFIG_FILE) else f"extra/{path}")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    for folder in ("out", "tmp"):
        (scratch / folder).mkdir()
    # Relative names: the archiver reads commas, wildcards and colons in paths as syntax.
    command = [sys.executable, "-P", "-m", "model_archiver.model_packaging"]
    command += ["--model-name", name, "--version", VERSION, "--handler", entry]
    command += ["--config-file", CONFIG_FILE, "--extra-files", "extra", "--export-path", "out"]
    command += ["--archive-format", form, "--runtime", "python"]
    environment = os.environ | {"TMPDIR": str(scratch / "tmp")}
    done = subprocess.run(
        command, cwd=scratch, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = done.stderr.strip().rpartition("\n")[2] or f"exit status {done.returncode}"
        advice = "; pip install 'plait[serve]'" if "No module named" in said else ""
        raise ArchiveError(f"model {config.name}: torch-model-archiver failed: {said}{advice}")


def _replace_folder(new: Path, target: Path, old: Path) -> None:
    """Two renames; killed between them, the folder is absent and the next build makes it."""
    if target.exists():
        target.rename(old)
    new.rename(target)


def _is_current(target: Path, name: str, config: ModelConfig, files: Mapping[str, bytes]) -> bool:
    if not target.is_dir():
        return False
    there = {
        path.relative_to(target).as_posix(): path
        for path in target.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not _is_status(path)
    }
    manifest = there.pop(MANIFEST_FILE, None)
    if manifest is None or not _is_our_manifest(manifest.read_bytes(), name, config):
        return False
    return there.keys() == files.keys() and all(
        path.read_bytes() == files[key] for key, path in there.items()
    )


def _is_status(path: Path) -> bool:
    """Whether a worker wrote it while it ran; one that was killed may leave half of it aside."""
    return path.name.lstrip(".").startswith(STATUS_FILE)


def _is_current_archive(
    target: Path, config: ModelConfig, files: Mapping[str, bytes], weights: Mapping[str, Path]
) -> bool:
    """Whether the file holds this code and settings, and weights of these sizes, not older."""
    if not target.is_file():
        return False
    sizes = {f"{WEIGHTS_FOLDER}/{name}": path.stat().st_size for name, path in weights.items()}
    built_at = target.stat().st_mtime
    if any(path.stat().st_mtime > built_at for path in weights.values()):
        return False
    try:
        with zipfile.ZipFile(target) as archive:
            infos = {info.filename: info for info in archive.infolist()}
            if infos.keys() != files.keys() | sizes.keys() | {MANIFEST_FILE}:
                return False
            return (
                _is_our_manifest(archive.read(MANIFEST_FILE), config.name, config)
                and all(infos[name].file_size == size for name, size in sizes.items())
                and all(archive.read(name) == content for name, content in files.items())
            )
    except zipfile.BadZipFile:
        return False


def _is_our_manifest(content: bytes, name: str, config: ModelConfig) -> bool:
    """Whether the manifest is the one that would be written, but for its date."""
    try:
        model = json.loads(content)["model"]
    except (ValueError, KeyError, TypeError):
        return False
    expected = {
        "modelName": name,
        "handler": f"{config.handler}.py",
        "modelVersion": VERSION,
        "configFile": CONFIG_FILE,
    }
    return bool(model == expected)
