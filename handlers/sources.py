"""Finds the folder that holds a model's files.

A *source* is a local folder, a repository of the Hugging Face hub, or an importable package that
ships weights. Whatever it is, the answer is a folder on this machine with ``config.json``,
safetensors and tokenizer files in it. A package is located without importing it. Of a hub
repository only those files are fetched, into the hub's own cache, so that a second start needs no
network; ``HF_TOKEN`` and ``HF_HUB_OFFLINE`` count as everywhere.

It does not look inside the files.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Final

from handlers.model_config import ModelConfig, Source

#: What a model needs from a hub repository, and no pickled weights.
HUB_PATTERNS: Final = (
    "*.safetensors",
    "*.safetensors.index.json",
    "*.json",
    "*.model",
    "*.txt",
    "*.jinja",
)


class SourceNotFound(RuntimeError):
    """A model's files are not where its YAML says; the text says what to do."""

    def __init__(self, model: str, message: str) -> None:
        super().__init__(f"model {model}: {message}")
        self.model = model


def resolve_source(config: ModelConfig) -> Path:
    """The folder with the model's files, fetched first if it is on the hub.

    Raises:
        SourceNotFound: there is no such folder, package or repository, or it cannot be fetched.
    """
    find = {
        "folder": _find_folder,
        "package": _find_package,
        "hub": _find_hub,
        "http": _find_nowhere,
        "s3": _find_nowhere,
    }
    folder = find[config.source.kind](config.name, config.source)
    if not (folder / "config.json").is_file():
        raise SourceNotFound(
            config.name, f"{folder} holds no config.json; plait.source must lead to a model's files"
        )
    return folder


def _find_folder(model: str, source: Source) -> Path:
    folder = Path(source.location)
    if not folder.is_dir():
        raise SourceNotFound(
            model, f"there is no folder {folder}; put the model there or change plait.source.folder"
        )
    return folder


def _find_package(model: str, source: Source) -> Path:
    name = source.location
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        # A parent of a dotted name is missing, or the name is none.
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise SourceNotFound(
            model,
            f"the package {name!r} is not installed here; install the distribution that holds it "
            "(README: extras), or change plait.source.package",
        )
    folders = [Path(place) / source.subfolder for place in spec.submodule_search_locations]
    found = next((folder for folder in folders if folder.is_dir()), None)
    if found is None:
        raise SourceNotFound(model, f"the package {name!r} has no folder {source.subfolder!r}")
    return found


def _find_nowhere(model: str, source: Source) -> Path:
    raise SourceNotFound(
        model,
        f"{source.location} is fetched by Plait before a worker starts: serve the model with "
        "`plait up` or `plait node`, or fetch it with `plait download` and give its folder",
    )


def _find_hub(model: str, source: Source) -> Path:
    # Only this kind needs the hub's client, which costs a second to import.
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise SourceNotFound(
            model, "its source is the hub; install the client: pip install 'plait[serve]'"
        ) from None
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(
            source.location, revision=source.revision, allow_patterns=list(HUB_PATTERNS)
        )
    except HFValidationError as error:
        raise SourceNotFound(model, f"{source.location!r} is no hub id: {error}") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise SourceNotFound(model, _hub_advice(source, error)) from error
    return Path(folder)


def _hub_advice(source: Source, error: Exception) -> str:
    """What to do about a repository that could not be fetched."""
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where = f"the hub repository {source.location}"
    if isinstance(error, GatedRepoError):
        return f"{where} is gated; accept its licence on the hub and set HF_TOKEN"
    if isinstance(error, RepositoryNotFoundError):
        return f"{where} does not exist, or needs HF_TOKEN to be seen"
    if isinstance(error, RevisionNotFoundError):
        return f"{where} has no revision {source.revision!r}"
    if isinstance(error, LocalEntryNotFoundError):
        return (
            f"{where} is not in this machine's cache and cannot be reached; fetch it once with "
            "network access (HF_HUB_OFFLINE unset), or give plait.source.folder"
        )
    return f"{where} cannot be fetched: {error}"
