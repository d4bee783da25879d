"""Puts the parts together: the only place that constructs them.

``run_up`` starts processes; ``run_control`` and ``run_runner`` are what two of them do. Each
returns when it was told to stop (SIGINT or SIGTERM) and everything it started is gone.
"""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import grpc.aio
from rich.console import Console

from handlers import model_config
from handlers.model_config import ModelConfig, ModelConfigError
from scheduler import interpreter, plugins, policies, startup
from scheduler.autoscaler.sidecar import Sidecar
from scheduler.bulk_book import BulkBook
from scheduler.clock import SystemClock
from scheduler.dispatcher.service import SERVER_OPTIONS, Dispatcher
from scheduler.errors import StartupError
from scheduler.explainer import Explainer
from scheduler.fair_queue import FairQueue
from scheduler.gateway.front import Front
from scheduler.gateway.grpc_tasks import attach, server_options
from scheduler.gateway.http import open_http
from scheduler.gateway.pressure import Pressure, free_bytes
from scheduler.gateway.tokens import open_counter
from scheduler.keys import Role
from scheduler.moves import Backoff, Preemption, Rules
from scheduler.operations import Operations
from scheduler.rpc.plait_pb2_grpc import add_RunnerServiceServicer_to_server
from scheduler.runner import devices
from scheduler.runner.service import Identity, Runner, load_runner_id
from scheduler.settings import PREFIX, Settings, without_secrets
from scheduler.stores import sqlite
from scheduler.stores.base import Store
from scheduler.supervisor import Program, Supervisor
from scheduler.task_book import TaskBook
from scheduler.telemetry import logs
from scheduler.torchserve import process as torchserve
from scheduler.torchserve.endpoint import Endpoint
from scheduler.torchserve.inference import Inference
from scheduler.torchserve.management import Management
from scheduler.upkeep import Upkeep

T = TypeVar("T")

#: Seconds that gRPC calls still have once the control plane stops.
_GRPC_GRACE_S: Final = 2.0


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


def run_node(settings: Settings, console: Console) -> None:
    """TorchServe and a runner for a control plane elsewhere, until Ctrl-C."""
    settings.state.mkdir(parents=True, exist_ok=True)
    load_models(settings)
    programs = [_torchserve_program(settings), _own_program(settings, "runner")]

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
        environment=torchserve.environment(state, without_secrets(os.environ)),
        cwd=torchserve.folder(state),
        log_file=state / "logs" / "torchserve.log",
        stop_timeout_s=20.0,
        after=lambda: torchserve.sweep_orphans(state),
    )


def _own_program(settings: Settings, name: str) -> Program:
    store = settings.store.get_secret_value()
    secrets = {f"{PREFIX}STORE": store} if name == "control" else {}
    return Program(
        name=name,
        command=lambda: [sys.executable, "-m", "scheduler.cli", name],
        environment={**without_secrets(os.environ), **settings.to_environment(), **secrets},
        cwd=Path.cwd(),
        log_file=settings.state.absolute() / "logs" / f"{name}.log",
    )


# ------------------------------------------------------------------------------- control plane


def run_control(settings: Settings) -> None:
    """Gateway, dispatcher and sidecar over one store, until SIGTERM."""
    logs.configure(settings.log_level)
    configs = load_models(settings)
    asyncio.run(_until_stopped(_control(settings, configs)))


@asynccontextmanager
async def _control(
    settings: Settings, configs: dict[str, ModelConfig]
) -> AsyncIterator[list[Coroutine[Any, Any, None]]]:
    """The control plane, listening; what it yields is to be run while it is open."""
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        settings.state.mkdir(parents=True, exist_ok=True)
        store = _open_store(settings)
        stack.push_async_callback(store.close)
        rules = _rules(settings)
        await store.run(functools.partial(rules.queue.adopt, models=list(configs)))
        book = TaskBook(store, clock, lease_ttl_s=settings.lease_ttl_s, rules=rules)
        dispatcher = Dispatcher(
            book, clock, lease_ttl_s=settings.lease_ttl_s, heartbeat_s=settings.heartbeat_s
        )
        operations = Operations(book.ledger, rules.queue)
        sidecar = Sidecar(configs, operations, dispatcher, reconcile_s=settings.reconcile_s)
        counters = {name: open_counter(config) for name, config in configs.items()}
        book.ledger.on_desired_replicas(sidecar.look_again)
        pressure = Pressure(
            book.depth,
            functools.partial(free_bytes, settings.state),
            max_queued=settings.max_queued,
            # The disk of a server for several is not ours to watch.
            min_free_disk_bytes=0 if store.is_shared else settings.min_free_disk_bytes,
        )
        await pressure.look()
        if settings.require_keys:
            await _check_operator(operations)
        bulks = BulkBook(book.ledger, book.rules, book.new_id)
        replicas = {name: config.num_replicas for name, config in configs.items()}
        explainer = Explainer(book.ledger, book.rules, dispatcher, replicas)
        front = Front(
            book,
            operations,
            configs,
            counters,
            dispatcher,
            clock,
            bulks,
            explainer,
            pressure=pressure,
            require_keys=settings.require_keys,
        )
        upkeep = Upkeep(book, bulks, clock, retention_s=settings.retention_s)
        await stack.enter_async_context(_grpc(settings, front, dispatcher))
        http = await _listen(
            "http-port",
            settings.http_port,
            open_http(front, settings.host, settings.http_port, settings.max_body_bytes),
        )
        stack.push_async_callback(http.cleanup)
        interpreter.settle()
        yield [dispatcher.run(), sidecar.run(), pressure.run(), upkeep.run()]


def _open_store(settings: Settings) -> Store:
    """The store that the settings name.

    Raises:
        StartupError: it cannot be opened; says why.
    """
    url = settings.store.get_secret_value()
    if not url:
        return sqlite.Store(settings.state / "plait.sqlite")
    try:
        from scheduler.stores import postgres
    except ImportError as error:
        message = "PostgreSQL as a store needs a driver: pip install 'plait[postgres]'"
        raise StartupError(f"{message} ({error})") from error
    return postgres.Store(url)


async def _check_operator(operations: Operations) -> None:
    """Refuse to lock everybody out.

    Raises:
        StartupError: keys are required, and nobody could make any.
    """
    keys = await operations.keys()
    if not any(key.role is Role.OPERATOR and key.revoked_at is None for key in keys):
        raise StartupError(
            "keys are required (PLAIT_REQUIRE_KEYS) and there is no operator's key to make them "
            "with: start without, run: plait keys create default --role operator, and start again"
        )


def _rules(settings: Settings) -> Rules:
    """What the settings say about the life of a task."""
    preemption = Preemption(settings.preempt_after_s, settings.preempt_slice_s)
    return Rules(
        FairQueue(plugins.find(policies, settings.policy).Policy()),
        settings.lease_ttl_s,
        settings.max_attempts,
        Backoff(settings.retry_first_s, settings.retry_most_s),
        preemption if settings.preempt_after_s else None,
    )


@asynccontextmanager
async def _grpc(settings: Settings, front: Front, dispatcher: Dispatcher) -> AsyncIterator[None]:
    options = dict([*SERVER_OPTIONS, *server_options(settings.max_body_bytes)])
    server = grpc.aio.server(options=list(options.items()))
    attach(server, front)
    # Generated code, without types.
    add_RunnerServiceServicer_to_server(dispatcher, server)  # type: ignore[no-untyped-call]  # generated
    target = f"{settings.host}:{settings.grpc_port}"
    try:
        server.add_insecure_port(target)
    except RuntimeError as error:
        raise StartupError(f"cannot listen on {target} (--grpc-port): {error}") from error
    await server.start()
    try:
        yield
    finally:
        front.close()
        dispatcher.close()
        await server.stop(grace=_GRPC_GRACE_S)


async def _listen(option: str, port: int, opening: Awaitable[T]) -> T:
    try:
        return await opening
    except OSError as error:
        raise StartupError(f"cannot listen on port {port} (--{option}): {error}") from error


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
    identity = Identity(load_runner_id(settings.state), node, found.count, found.kind)
    endpoint = Endpoint(settings.state)
    async with AsyncExitStack() as stack:
        inference = Inference(endpoint)
        stack.push_async_callback(inference.close)
        management = Management(endpoint, clock)
        stack.push_async_callback(management.close)
        target = settings.runner_target
        store = settings.model_store.absolute()
        yield [Runner(identity, target, inference, management, configs, store, clock).run()]


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
