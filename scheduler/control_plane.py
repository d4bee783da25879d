"""Puts a control plane together: gateway, dispatcher, sidecar and reconciliation over one store."""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final, TypeVar

import grpc.aio

from handlers.model_config import ModelConfig
from scheduler import interpreter, join_token, plugins, policies, provider_config
from scheduler.autoscaler.container_keeper import ContainerKeeper
from scheduler.autoscaler.leader import Leader
from scheduler.autoscaler.placement import Plan
from scheduler.autoscaler.scaler import Scaler
from scheduler.autoscaler.sidecar import Sidecar
from scheduler.bulk_book import BulkBook
from scheduler.clock import SteadyClock, SystemClock
from scheduler.container import Reliance
from scheduler.dispatcher.service import SERVER_OPTIONS, Dispatcher
from scheduler.errors import StartupError, StoreUnavailable
from scheduler.explainer import Explainer
from scheduler.fair_queue import FairQueue
from scheduler.gateway.front import Front
from scheduler.gateway.grpc_tasks import attach, server_options
from scheduler.gateway.http import open_http
from scheduler.gateway.keyring import Keyring
from scheduler.gateway.pressure import Pressure, free_bytes
from scheduler.gateway.tokens import open_counter
from scheduler.ids import IdSource
from scheduler.keys import Role
from scheduler.moves import Backoff, Preemption, Rules
from scheduler.node_book import NodeBook
from scheduler.operations import Operations
from scheduler.providers.base import Provider, ProviderConfig, Surroundings
from scheduler.reconciliation.base import Parts
from scheduler.reconciliation.checks import all_checks
from scheduler.reconciliation.service import Reconciliation
from scheduler.registry import Registry
from scheduler.rpc.plait_pb2_grpc import add_RunnerServiceServicer_to_server
from scheduler.settings import PREFIX, Settings, without_secrets
from scheduler.speedometer import Speedometer
from scheduler.stores import sqlite
from scheduler.stores.base import Store
from scheduler.task_book import TaskBook

T = TypeVar("T")

#: Looks of a sidecar that shows no sign of life after which another control plane decides.
_LOOKS_UNTIL_OVER: Final = 3
#: Seconds that gRPC calls still have once the control plane stops.
_GRPC_GRACE_S: Final = 2.0


@asynccontextmanager
async def open_control(
    settings: Settings, configs: dict[str, ModelConfig]
) -> AsyncIterator[list[Coroutine[Any, Any, None]]]:
    """The control plane, listening; what it yields is to be run while it is open."""
    clock = SteadyClock(SystemClock())
    async with AsyncExitStack() as stack:
        settings.state.mkdir(parents=True, exist_ok=True)
        store = open_store(settings)
        stack.push_async_callback(store.close)
        rules = _rules(settings)
        await store.run(functools.partial(rules.queue.adopt, models=list(configs)))
        new_id = IdSource(clock)
        book = TaskBook(store, clock, lease_ttl_s=settings.lease_ttl_s, rules=rules, new_id=new_id)
        nodes = NodeBook(book.ledger, f"{socket.gethostname()}-{secrets.token_hex(4)}")
        operations = Operations(book.ledger, rules.queue)
        keyring = Keyring(operations, clock, is_required=settings.require_keys)
        reliance = Reliance()
        dispatcher = Dispatcher(
            book,
            nodes,
            clock,
            lease_ttl_s=settings.lease_ttl_s,
            heartbeat_s=settings.heartbeat_s,
            reliance=reliance,
            journal_interval_s=settings.journal_interval_s,
            admit=keyring.admit_runner,
        )
        registry = Registry(nodes, clock, dispatcher, lease_ttl_s=settings.lease_ttl_s)
        await registry.open()
        speedometer = Speedometer(book.ledger, dispatcher)
        scaler = Scaler(configs, book.ledger, speedometer, period_s=settings.scale_s)
        leader = Leader(nodes, clock, term_s=_LOOKS_UNTIL_OVER * settings.reconcile_s)
        stack.push_async_callback(_resign, nodes)
        sidecar = Sidecar(
            configs, scaler, registry, leader, book.clear, clock, reconcile_s=settings.reconcile_s
        )
        keeper = ContainerKeeper(
            open_providers(settings, configs),
            configs,
            store,
            registry,
            sidecar,
            reliance,
            clock,
            lead=leader.lead,
        )
        stack.push_async_callback(keeper.close)
        counters = {name: open_counter(config) for name, config in configs.items()}
        book.ledger.on_desired_replicas(sidecar.look_again)
        book.ledger.on_queued(sidecar.has_queued)
        pressure = _pressure(settings, book, store)
        await pressure.look()
        if settings.require_keys:
            await check_operator(operations)
            await join_token.keep(operations, settings.state)
        bulks = BulkBook(book.ledger, book.rules, book.new_id)
        parts = Parts(
            book,
            bulks,
            nodes,
            clock,
            dispatcher,
            functools.partial(_plan_of, dispatcher, registry, sidecar),
            heartbeat_s=settings.heartbeat_s,
            retention_s=settings.retention_s,
        )
        reconciliation = Reconciliation(all_checks(parts), clock)
        # Before anybody connects: live leases get a full term, and flows count what is there.
        await reconciliation.look()
        new_id.follow(await book.newest_id())
        explainer = Explainer(book.ledger, book.rules, registry, configs, speedometer)
        front = Front(
            book,
            operations,
            configs,
            counters,
            registry,
            clock,
            bulks,
            explainer,
            reconciliation,
            pressure=pressure,
            containers=keeper,
            require_keys=settings.require_keys,
        )
        await stack.enter_async_context(_grpc(settings, front, dispatcher))
        http = await _listen(
            "http-port",
            settings.http_port,
            open_http(front, settings.host, settings.http_port, settings.max_body_bytes),
        )
        stack.push_async_callback(http.cleanup)
        interpreter.settle()
        yield [
            dispatcher.run(),
            registry.run(),
            sidecar.run(),
            keeper.run(),
            speedometer.run(),
            pressure.run(),
            reconciliation.run(),
        ]


async def _resign(nodes: NodeBook) -> None:
    """Another may decide from now on; if the store refuses, it waits until this one seems dead."""
    with contextlib.suppress(StoreUnavailable):
        await nodes.resign()


def _plan_of(dispatcher: Dispatcher, registry: Registry, sidecar: Sidecar) -> Plan:
    """What this control plane's runners should run, and what the leader could not place."""
    placed = registry.placed()
    own = [node.runner_id for node in dispatcher.nodes() if node.runner_id in placed]
    return Plan({runner_id: tuple(placed[runner_id]) for runner_id in own}, sidecar.plan.shortages)


def open_providers(
    settings: Settings, configs: dict[str, ModelConfig]
) -> list[tuple[ProviderConfig, Provider]]:
    """The providers that the folder of their configs describes.

    Raises:
        StartupError: a file is wrong, or names a variable that is not set.
    """
    known = {path.stem for path in settings.model_configs.glob("*.yaml")} | set(configs)
    found = provider_config.load_folder(settings.provider_configs, known, os.environ)
    environment = {
        **without_secrets(os.environ),
        **settings.to_environment(),
        f"{PREFIX}CONTROL_ADDRESS": settings.runner_target,
    }
    if token := settings.join_token.get_secret_value():
        environment[f"{PREFIX}JOIN_TOKEN"] = token
    for variable in provider_config.secret_variables(settings.provider_configs):
        environment.pop(variable, None)
    opened = []
    for config in found:
        folder = settings.state / "containers" / config.name
        surroundings = Surroundings(folder, environment)
        opened.append((config, provider_config.open_provider(config, surroundings)))
    return opened


def _pressure(settings: Settings, book: TaskBook, store: Store) -> Pressure:
    return Pressure(
        book.depth,
        functools.partial(free_bytes, settings.state),
        max_queued=settings.max_queued,
        # The disk of a server for several is not ours to watch.
        min_free_disk_bytes=0 if store.is_shared else settings.min_free_disk_bytes,
    )


def open_store(settings: Settings) -> Store:
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


async def check_operator(operations: Operations) -> None:
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
