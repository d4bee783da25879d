"""The commands that run something: up, control, runner, node, archive.

An option that is a setting takes its help and default from :mod:`scheduler.settings`, where it is
declared once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from scheduler.errors import StartupError
from scheduler.settings import Settings, load

_PANEL = "Serve"
_err = Console(stderr=True, soft_wrap=True)


def _setting(name: str, *flags: str) -> Any:
    field = Settings.model_fields[name]
    default = field.default
    shown = ",".join(default) if isinstance(default, tuple) else str(default)
    return typer.Option(*flags, help=field.description, show_default=shown or False)


HttpPort = Annotated[int | None, _setting("http_port")]
GrpcPort = Annotated[int | None, _setting("grpc_port")]
Host = Annotated[str | None, _setting("host")]
State = Annotated[Path | None, _setting("state")]
Models = Annotated[str | None, _setting("models", "--model", "-m")]
ModelConfigs = Annotated[Path | None, _setting("model_configs")]
ModelStore = Annotated[Path | None, _setting("model_store")]
TorchserveConfig = Annotated[Path | None, _setting("torchserve_config")]
LogLevel = Annotated[str | None, _setting("log_level")]
Policy = Annotated[str | None, _setting("policy")]
ControlAddress = Annotated[str | None, _setting("control_address")]
NodeName = Annotated[str | None, _setting("node", "--name")]


def add_to(app: typer.Typer) -> None:
    """Make these commands part of ``plait``."""
    for command in (up, control, runner, archive):
        app.command(rich_help_panel=_PANEL)(command)
    app.command("node", rich_help_panel=_PANEL)(work_for)


def up(
    http_port: HttpPort = None,
    grpc_port: GrpcPort = None,
    host: Host = None,
    state: State = None,
    models: Models = None,
    model_configs: ModelConfigs = None,
    model_store: ModelStore = None,
    torchserve_config: TorchserveConfig = None,
    policy: Policy = None,
    log_level: LogLevel = None,
) -> None:
    """Start everything on this machine: TorchServe, control plane and runner."""
    settings = load(locals())
    from scheduler import app as application

    application.run_up(settings, _err)


def control(
    http_port: HttpPort = None,
    grpc_port: GrpcPort = None,
    host: Host = None,
    state: State = None,
    models: Models = None,
    model_configs: ModelConfigs = None,
    policy: Policy = None,
    log_level: LogLevel = None,
) -> None:
    """Run the control plane alone: gateway, dispatcher and sidecar."""
    settings = load(locals())
    from scheduler import app as application

    application.run_control(settings)


def runner(control_address: ControlAddress = None, state: State = None) -> None:
    """Run the runner alone, beside a TorchServe that shares its state folder."""
    from scheduler import app as application

    application.run_runner(load({"control_address": control_address, "state": state}))


def work_for(
    control_address: ControlAddress = None,
    node: NodeName = None,
    state: State = None,
    models: Models = None,
    model_configs: ModelConfigs = None,
    model_store: ModelStore = None,
    torchserve_config: TorchserveConfig = None,
    log_level: LogLevel = None,
) -> None:
    """Start TorchServe and a runner that works for a control plane elsewhere."""
    settings = load(locals())
    from scheduler import app as application

    if not settings.control_address:
        raise StartupError("a node needs the control plane's address: --control-address host:port")
    application.run_node(settings, _err)


def _device_ids(text: str) -> list[int]:
    """Device indices from text such as ``0,1``."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdecimal() for part in parts):
        raise StartupError(f"--devices is {text!r}; give device indices, such as 0,1")
    return [int(part) for part in parts]


def archive(
    model: Annotated[str, typer.Argument(help="Name of a file in the folder of model configs.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder the archive is written to.")
    ] = Path("archives"),
    as_folder: Annotated[
        bool, typer.Option("--folder", help="Build a replica folder instead of a .mar.")
    ] = False,
    index: Annotated[int, typer.Option(help="Replica number of the folder.", min=0)] = 0,
    devices: Annotated[str, typer.Option(help="Devices of the folder, such as 0,1.")] = "",
    with_weights: Annotated[
        bool, typer.Option("--with-weights", help="Pack the weights into the .mar.")
    ] = False,
    model_configs: ModelConfigs = None,
) -> None:
    """Check a model's YAML and build its TorchServe archive."""
    from handlers import model_config
    from handlers.sources import SourceNotFound
    from scheduler.torchserve import archive as builder

    folder = load({"model_configs": model_configs}).model_configs
    try:
        config = model_config.load(folder / f"{model}.yaml")
        if as_folder:
            ids = _device_ids(devices)
            built = builder.build_replica(config, output, index, ids)
        else:
            built = builder.build_archive(config, output, with_weights=with_weights)
    except (model_config.ModelConfigError, SourceNotFound, builder.ArchiveError) as error:
        raise StartupError(str(error)) from error
    typer.echo(built)
