"""The commands about models' files: download, downloads, manifest."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from handlers.model_config import ModelConfig
from scheduler import tables
from scheduler.clock import SystemClock
from scheduler.console import ERR, OPERATE_PANEL, AddressOption, JsonOption, client, show, told
from scheduler.downloader.fetcher import Fetcher, State, need_of
from scheduler.downloader.model import Need
from scheduler.errors import InvalidRequest, StartupError
from scheduler.settings import load

_LOOK_S: Final = 0.2


def add_to(app: typer.Typer) -> None:
    """Make these commands part of ``plait``."""
    for command in (download, downloads, manifest):
        app.command(rich_help_panel=OPERATE_PANEL)(command)


def download(
    models: Annotated[list[str], typer.Argument(help="Names of files in the model configs.")],
    layers: Annotated[
        str, typer.Option(help="Decoder layers to fetch, such as 0-15; without it: all.")
    ] = "",
    model_configs: Annotated[
        Path | None, typer.Option(help="Folder with one YAML file per model.")
    ] = None,
) -> None:
    """Fetch models' files to this machine and print their folders; goes on where it was stopped."""
    with told():
        settings = load({"model_configs": model_configs})
        from scheduler import app as application
        from scheduler.telemetry import logs

        logs.configure("error")
        configs = application.load_models(settings.model_copy(update={"models": tuple(models)}))
        needs = {n: need_of(c, _layers(layers)) for n, c in configs.items() if c.source.is_remote}
        for name in configs.keys() - needs.keys():
            ERR.print(f"{name}: its files are where its YAML says; there is nothing to fetch")
        fetcher = Fetcher(
            application.open_cache(settings), SystemClock(), application.limits(settings)
        )
        folders = asyncio.run(_fetch(fetcher, {n: configs[n] for n in needs}, needs))
    for folder in folders:
        print(folder)


async def _fetch(
    fetcher: Fetcher, configs: dict[str, ModelConfig], needs: dict[str, Need]
) -> list[Path]:
    """Show how far the models are until all are here.

    Raises:
        StartupError: one cannot be fetched; says why.
    """
    working = asyncio.create_task(fetcher.run(), name="downloads")
    columns = (
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True),
        TransferSpeedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[detail]}"),
    )  # fmt: skip
    folders: dict[str, Path] = {}
    try:
        with Progress(*columns, console=ERR, transient=True) as progress:
            lines = {name: progress.add_task(name, total=None, detail="") for name in configs}
            while len(folders) < len(configs):
                for name, config in configs.items():
                    status = fetcher.want(config, needs[name], is_needed=True)
                    if status.state is State.FAILED:
                        raise StartupError(f"model {name}: {status.detail}")
                    if status.folder is not None:
                        folders[name] = status.folder
                    progress.update(
                        lines[name], completed=status.held_bytes, total=status.total_bytes,
                        detail=status.detail,
                    )  # fmt: skip
                await asyncio.sleep(_LOOK_S)
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
    return [folders[name] for name in configs]


def _layers(text: str) -> frozenset[int] | None:
    """Layers from text such as ``0-15`` or ``0-3,8``; None: all."""
    if not text:
        return None
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if not first.isdecimal() or not (last or first).isdecimal():
            raise InvalidRequest(f"layers: {text!r} is no list of layers; give such as 0-15")
        found |= set(range(int(first), int(last or first) + 1))
    return frozenset(found)


def downloads(as_json: JsonOption = False, address: AddressOption = None) -> None:
    """List what each node has of the models that have to be fetched."""
    with told():
        show(client(address).nodes(), as_json, tables.download_table)


def manifest(
    folder: Annotated[Path, typer.Argument(help="Folder with a model's files.")],
) -> None:
    """Write the list of a folder's files with their digests, for servers that have none."""
    from scheduler.sources import _manifest as manifests

    with told():
        if not folder.is_dir():
            raise InvalidRequest(f"folder: there is no folder {folder}")
        written = manifests.write(folder, manifests.files_below(folder))
    ERR.print(f"sha256 {manifests.digest_of(written)}", highlight=False)
    print(written)
