"""Puts the parts together; with ``control_plane`` the only place that constructs them.

``run_up`` starts processes; ``run_control`` and ``run_runner`` are what two of them do. Each
returns when it was told to stop (SIGINT or SIGTERM) and everything it started is gone.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from handlers import model_config
from handlers.model_config import ModelConfig, ModelConfigError
from scheduler import join_token, provider_config, startup
from scheduler.clock import SystemClock
from scheduler.control_plane import open_control
from scheduler.downloader.cache import Cache
from scheduler.downloader.fetcher import Fetcher, Limits
from scheduler.errors import StartupError
from scheduler.runner import devices
from scheduler.runner.service import Identity, Runner, load_runner_id
from scheduler.runner.weights import Weights
from scheduler.settings import PREFIX, Settings, without_secrets
from scheduler.supervisor import Program, Supervisor
from scheduler.telemetry import logs
from scheduler.torchserve import process as torchserve
from scheduler.torchserve.endpoint import Endpoint
from scheduler.torchserve.inference import Inference
from scheduler.torchserve.management import Management


def load_models(settings: Settings) -> dict[str, ModelConfig]:
    """The configs of the models to serve.

    Raises:
        StartupError: a model has no file, or its file is wrong; says where and what.
    """
    configs: dict[str, ModelConfig] = {}
    for name in settings.models:
        path = settings.model_configs / f"{name}.yaml"
        if not path.is_file():
            known = ", ".join(sorted(p.stem for p in settings.model_configs.glob("*.yaml")))
            message = f"there is no model {name!r} in {settings.model_configs}"
            raise StartupError(f"{message}; there are: {known or 'none'}")
        try:
            configs[name] = model_config.load(path)
        except ModelConfigError as error:
            raise StartupError(str(error)) from error
        if (other := configs[name].name) != name:
            raise StartupError(f"{path}: plait.name is {other!r}; here the file's name says it")
    return configs


# ------------------------------------------------------------------------------- plait up, node


def run_up(settings: Settings, console: Console) -> None:
    """Everything on this machine, until Ctrl-C."""
    startup.check(settings)
    load_models(settings)
    programs = [
        _torchserve_program(settings),
        _own_program(settings, "control"),
        _own_program(settings, "runner"),
    ]
    address = f"http://{settings.host}:{settings.http_port}"
    _supervise(settings, programs, console, _announce(settings, address, console))


def run_node(settings: Settings, console: Console, model_server: Program | None = None) -> None:
    """A model server and a runner for a control plane elsewhere, until Ctrl-C; TorchServe, unless
    another of its protocol is given."""
    settings.state.mkdir(parents=True, exist_ok=True)
    load_models(settings)
    model_server = model_server or _torchserve_program(settings)
    programs = [model_server, _own_program(settings, "runner")]

    async def announce() -> None:
        console.print(f"working for {settings.control_address}; Ctrl-C stops")

    _supervise(settings, programs, console, announce)


def _supervise(
    settings: Settings,
    programs: list[Program],
    console: Console,
    announce: Callable[[], Coroutine[Any, Any, None]],
) -> None:
    log_folder = settings.state.absolute() / "logs"
    log_folder.mkdir(parents=True, exist_ok=True)
    with (log_folder / "supervisor.log").open("a", buffering=1) as output:
        logs.configure(settings.log_level, output)
        supervisor = Supervisor(programs, SystemClock())
        asyncio.run(_until_told(supervisor, announce, console))


async def _until_told(
    supervisor: Supervisor, announce: Callable[[], Coroutine[Any, Any, None]], console: Console
) -> None:
    stop = _stop_signal()
    try:
        await supervisor.start()
        failure = asyncio.ensure_future(supervisor.failure())
        announcing = asyncio.ensure_future(announce())
        waiting: set[asyncio.Future[Any]] = {stop, failure, announcing}
        while not stop.done():
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for future in done - {stop}:
                future.result()
        announcing.cancel()
        failure.cancel()
    finally:
        console.print("stopping")
        await supervisor.stop()
        console.print("stopped")


def _stop_signal() -> asyncio.Future[None]:
    """Done once SIGINT or SIGTERM has come."""
    loop = asyncio.get_running_loop()
    stop: asyncio.Future[None] = loop.create_future()

    def set_once() -> None:
        if not stop.done():
            stop.set_result(None)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, set_once)
    return stop


def _announce(
    settings: Settings, address: str, console: Console
) -> Callable[[], Coroutine[Any, Any, None]]:
    async def announce() -> None:
        clock = SystemClock()
        begun = clock.monotonic()
        names = ", ".join(settings.models)
        with console.status(f"starting {names}") as status:

            def tell(line: str) -> None:
                status.update(line)
                if not console.is_terminal:
                    console.print(f"{clock.monotonic() - begun:5.1f} s  {line}")

            try:
                await startup.wait_until_ready(
                    address, settings.models, tell, settings.ready_timeout_s, clock
                )
            except StartupError as error:
                hint = startup.list_logs(settings.state)
                raise StartupError(f"{error}; {hint}") from error
        console.print(
            f"[green]ready[/] after {clock.monotonic() - begun:.0f} s: {names} at "
            f"[bold]{address}[/] (gRPC {settings.host}:{settings.grpc_port}); Ctrl-C stops"
        )
        console.print(_example(settings, address), highlight=False, markup=False)

    return announce


def _example(settings: Settings, address: str) -> str:
    """A command to try, with the options it needs here."""
    command = str(Path(sys.executable).parent / "plait")
    command = os.path.relpath(command) if command.startswith(str(Path.cwd())) else command
    options = ""
    if address != "http://127.0.0.1:8700":
        options += f" --address {address}"
    if (settings.host, settings.grpc_port) != ("127.0.0.1", 8701):
        options += f" --grpc-address {settings.host}:{settings.grpc_port}"
    if "demo" not in settings.models:
        options += f" --model {settings.models[0]}"
    return f'try:  {command} generate "def read_file(path):" --temperature 0.7{options}'


def _torchserve_program(settings: Settings) -> Program:
    state = settings.state.absolute()

    def command() -> list[str]:
        torchserve.sweep_orphans(state)
        torchserve.write_config(state, settings.model_store, settings.torchserve_config)
        return torchserve.command(state)

    return Program(
        name="torchserve",
        command=command,
        environment=torchserve.environment(state, _variables(settings, secrets=False)),
        cwd=torchserve.folder(state),
        log_file=state / "logs" / "torchserve.log",
        stop_timeout_s=20.0,
        after=lambda: torchserve.sweep_orphans(state),
    )


def _own_program(settings: Settings, name: str) -> Program:
    needed = {"control": ("store", "join_token"), "runner": ("join_token",)}.get(name, ())
    secrets = {f"{PREFIX}{n.upper()}": getattr(settings, n).get_secret_value() for n in needed}
    variables = _variables(settings, secrets=name == "control")
    return Program(
        name=name,
        command=lambda: [sys.executable, "-m", "scheduler.cli", name],
        environment={**variables, **settings.to_environment(), **secrets},
        cwd=Path.cwd(),
        log_file=settings.state.absolute() / "logs" / f"{name}.log",
    )


def _variables(settings: Settings, *, secrets: bool) -> dict[str, str]:
    """The environment for a child: without Plait's secrets, and with those of providers or not."""
    hidden = set() if secrets else provider_config.secret_variables(settings.provider_configs)
    return {k: v for k, v in without_secrets(os.environ).items() if k not in hidden}


# ------------------------------------------------------------------------------- control plane


def run_control(settings: Settings) -> None:
    """Gateway, dispatcher and sidecar over one store, until SIGTERM."""
    logs.configure(settings.log_level)
    configs = load_models(settings)
    asyncio.run(_until_stopped(open_control(settings, configs)))


# ------------------------------------------------------------------------------------- runner


def run_runner(settings: Settings) -> None:
    """Pull work for this machine's TorchServe, until SIGTERM."""
    logs.configure(settings.log_level)
    configs = load_models(settings)
    asyncio.run(_until_stopped(_runner(settings, configs)))


@asynccontextmanager
async def _runner(
    settings: Settings, configs: dict[str, ModelConfig]
) -> AsyncIterator[list[Coroutine[Any, Any, None]]]:
    clock = SystemClock()
    node = settings.node or socket.gethostname()
    found = devices.look()
    identity = Identity(
        load_runner_id(settings.state),
        node,
        found.count,
        found.kind,
        provider=settings.provider,
        container=settings.container,
        version=startup.version(),
    )
    endpoint = Endpoint(settings.state)
    async with AsyncExitStack() as stack:
        inference = Inference(endpoint)
        stack.push_async_callback(inference.close)
        management = Management(endpoint, clock)
        stack.push_async_callback(management.close)
        target = settings.runner_target
        store = settings.model_store.absolute()
        cache = open_cache(settings)
        fetcher = Fetcher(cache, clock, limits(settings))
        ahead = _prefetched(settings)
        weights = Weights(fetcher, cache, configs, identity.runner_id, clock, ahead)
        runner = Runner(
            identity,
            target,
            inference,
            management,
            configs,
            store,
            clock,
            weights=weights,
            join_token=lambda: (
                settings.join_token.get_secret_value() or join_token.read(settings.state)
            ),
        )
        yield [runner.run(), fetcher.run()]


def open_cache(settings: Settings) -> Cache:
    """The folder of fetched files.

    Raises:
        StartupError: it cannot be made.
    """
    cache = Cache(settings.weights.absolute())
    try:
        cache.open()
    except OSError as error:
        raise StartupError(
            f"cannot write to {settings.weights} (PLAIT_WEIGHTS): {error}"
        ) from error
    return cache


def _prefetched(settings: Settings) -> tuple[str, ...]:
    """The models to fetch before they are needed.

    Raises:
        StartupError: one of them is not served here.
    """
    if settings.prefetch == ("all",):
        return settings.models
    if unknown := set(settings.prefetch) - set(settings.models):
        served = ", ".join(settings.models)
        raise StartupError(f"PLAIT_PREFETCH names {sorted(unknown)[0]!r}; served are: {served}")
    return settings.prefetch


def limits(settings: Settings) -> Limits:
    """What a process may take for downloads."""
    return Limits(
        settings.download_connections,
        settings.download_bytes_per_s,
        settings.weights_bytes,
        settings.min_free_disk_bytes,
    )


async def _until_stopped(
    opening: AbstractAsyncContextManager[list[Coroutine[Any, Any, None]]],
) -> None:
    """Run what a part consists of until a stop signal; a part that fails ends the process."""
    stop = _stop_signal()
    async with opening as coroutines:
        running = [asyncio.ensure_future(each) for each in coroutines]
        try:
            done, _ = await asyncio.wait([stop, *running], return_when=asyncio.FIRST_COMPLETED)
            for future in done:
                future.result()
        finally:
            for future in running:
                future.cancel()
            await asyncio.gather(*running, return_exceptions=True)
