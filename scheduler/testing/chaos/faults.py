"""What can be done to a cluster: one table, a context manager for each kind.

Entering does it, leaving undoes what can be undone; what was killed is started again by whoever
keeps it. A target that is not there to be hit raises :class:`Missed`.
"""

from __future__ import annotations

import contextlib
import resource
import signal
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

import psutil

from scheduler.testing.chaos import clockwork
from scheduler.testing.chaos.cable import Cable
from scheduler.testing.chaos.cluster import Cluster, Node
from scheduler.testing.chaos.program import Program

#: What ``KINDS`` names as targets.
EVERY_NODE: Final = "every node"
CONTROL: Final = "control"
CLIENTS: Final = "clients"
STORE: Final = "store"
ALL_NODES: Final = "all nodes"


class Missed(Exception):
    """There was nothing to hit: it is down already."""


#: ``strike(cluster, target, amount)``; ``amount`` is from 0 to 1, as drawn.
Strike = Callable[[Cluster, str, float], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of fault."""

    strike: Strike
    #: One of the targets above.
    target: str
    #: How often it is drawn, beside the others.
    weight: float
    #: Seconds it lasts, at least and at most; it is over at once when both are 0.
    shortest_s: float = 0.0
    longest_s: float = 0.0


# ---------------------------------------------------------------------------------- processes


@contextmanager
def _killed(role: str, cluster: Cluster, target: str, _: float) -> Iterator[None]:
    _find(cluster, target, role).kill()
    yield


@contextmanager
def _gone(cluster: Cluster, target: str, _: float) -> Iterator[None]:
    """Killed, and not started again for a while: with a node, all that is on it."""
    program = _program(cluster, target)
    process = _find(cluster, target, "itself")
    program.hold_down()
    process.kill()
    try:
        yield
    finally:
        program.let_run()


@contextmanager
def _all_gone(cluster: Cluster, _target: str, amount: float) -> Iterator[None]:
    """Whoever lent the nodes has taken all of them back at once."""
    with contextlib.ExitStack() as stack:
        num_gone = 0
        for node in cluster.nodes:
            with contextlib.suppress(Missed):
                stack.enter_context(_gone(cluster, node.name, amount))
                num_gone += 1
        if not num_gone:
            raise Missed("no node is there")
        yield


@contextmanager
def _stopped(role: str, cluster: Cluster, target: str, _: float) -> Iterator[None]:
    process = _find(cluster, target, role)
    if process.status() == psutil.STATUS_STOPPED:
        raise Missed(f"{role} of {target} stands still already")
    process.suspend()
    try:
        yield
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.resume()


@contextmanager
def _worker_killed(cluster: Cluster, target: str, _: float) -> Iterator[None]:
    _find(cluster, target, "model server").send_signal(signal.SIGUSR1)
    yield


# ----------------------------------------------------------------------------------- network


@contextmanager
def _cut(cluster: Cluster, target: str, _: float) -> Iterator[None]:
    if not _cable(cluster, target).cut():
        raise Missed(f"{target} has no connection")
    yield


@contextmanager
def _half_open(cluster: Cluster, target: str, _: float) -> Iterator[None]:
    if not _cable(cluster, target).half_open():
        raise Missed(f"{target} has no connection")
    yield


@contextmanager
def _stalled(cluster: Cluster, target: str, _: float) -> Iterator[None]:
    cable = _cable(cluster, target)
    if cable.is_stalled:
        raise Missed(f"{target} is stalled already")
    cable.stall()
    try:
        yield
    finally:
        cable.flow()


@contextmanager
def _delayed(cluster: Cluster, target: str, amount: float) -> Iterator[None]:
    cable = _cable(cluster, target)
    if cable.delay_s:
        raise Missed(f"{target} is delayed already")
    cable.delay_s = 0.05 + 0.45 * amount
    try:
        yield
    finally:
        cable.delay_s = 0.0


@contextmanager
def _refused(cluster: Cluster, target: str, _: float) -> Iterator[None]:
    """Cut, and not to be connected again for a while."""
    cable = _cable(cluster, target)
    if cable.is_refusing:
        raise Missed(f"{target} is refused already")
    cable.is_refusing = True
    cable.cut()
    try:
        yield
    finally:
        cable.is_refusing = False


# ------------------------------------------------------------------------------------- store


@contextmanager
def _disk_full(cluster: Cluster, _target: str, _: float) -> Iterator[None]:
    """Nothing can be written where the store is: not a byte is left on its file system."""
    ballast = cluster.state / "ballast"
    if ballast.exists():
        raise Missed("the disk is full already")
    try:
        with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        yield
    finally:
        ballast.unlink(missing_ok=True)


@contextmanager
def _writes_refused(cluster: Cluster, _target: str, _: float) -> Iterator[None]:
    """The kernel refuses the control plane every write to a file, as a broken disk does."""
    process = _find(cluster, CONTROL, "itself")
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, unlimited)


@contextmanager
def _store_locked(held_s: float, free_s: float, cluster: Cluster, *_: object) -> Iterator[None]:
    """Somebody else holds the store's file for ``held_s`` again and again: commits take as long."""
    is_over = threading.Event()

    def lock() -> None:
        with contextlib.closing(sqlite3.connect(cluster.store, 1.0, isolation_level=None)) as other:
            while not is_over.is_set():
                with contextlib.suppress(sqlite3.Error):
                    other.execute("BEGIN IMMEDIATE")
                    is_over.wait(held_s)
                    other.execute("ROLLBACK")
                is_over.wait(free_s)

    if not cluster.store.exists():
        raise Missed("there is no store yet")
    thread = threading.Thread(target=lock, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()


# ------------------------------------------------------------------------------------- clocks


@contextmanager
def _clock_jumped(name: str, cluster: Cluster, _target: str, amount: float) -> Iterator[None]:
    """The wall clock jumps by up to an hour either way, and back."""
    clock = cluster.clocks[name]
    if clock.offset_s:
        raise Missed(f"the clock of {name} is off already")
    clock.turn(_jump_s(amount))
    try:
        yield
    finally:
        clock.turn(0.0)


def _jump_s(amount: float) -> float:
    """From a few seconds, inside a lease's term, to an hour."""
    size = abs(2 * amount - 1)
    seconds = float(2.0 * 1800.0**size)
    return seconds if amount > 0.5 else -seconds


# -------------------------------------------------------------------------------------- table

KINDS: Final[dict[str, Kind]] = {
    "runner killed": Kind(partial(_killed, "runner"), EVERY_NODE, 8),
    "model server killed": Kind(partial(_killed, "model server"), EVERY_NODE, 8),
    "workers killed": Kind(_worker_killed, EVERY_NODE, 6),
    "supervisor killed": Kind(partial(_killed, "itself"), EVERY_NODE, 5),
    "node gone": Kind(_gone, EVERY_NODE, 2, 5, 30),
    "every node gone": Kind(_all_gone, ALL_NODES, 1, 3, 12),
    "runner stopped": Kind(partial(_stopped, "runner"), EVERY_NODE, 6, 1, 15),
    "model server stopped": Kind(partial(_stopped, "model server"), EVERY_NODE, 6, 1, 15),
    "supervisor stopped": Kind(partial(_stopped, "itself"), EVERY_NODE, 3, 1, 10),
    "control plane killed": Kind(partial(_killed, "itself"), CONTROL, 4),
    "control plane down": Kind(_gone, CONTROL, 1, 5, 60),
    "control plane stopped": Kind(partial(_stopped, "itself"), CONTROL, 3, 1, 12),
    "runner's connection cut": Kind(_cut, EVERY_NODE, 8),
    "runner's connection half open": Kind(_half_open, EVERY_NODE, 5),
    "runner's connection stalled": Kind(_stalled, EVERY_NODE, 5, 1, 20),
    "runner's connection delayed": Kind(_delayed, EVERY_NODE, 5, 2, 15),
    "runner's connection refused": Kind(_refused, EVERY_NODE, 4, 2, 15),
    "clients' connections cut": Kind(_cut, CLIENTS, 6),
    "clients' connections half open": Kind(_half_open, CLIENTS, 3),
    "clients' connections stalled": Kind(_stalled, CLIENTS, 3, 1, 8),
    "clients' connections delayed": Kind(_delayed, CLIENTS, 3, 2, 10),
    "store's disk full": Kind(_disk_full, STORE, 3, 1, 8),
    "store's writes refused": Kind(_writes_refused, STORE, 3, 1, 8),
    "store slow": Kind(partial(_store_locked, 0.4, 0.1), STORE, 3, 3, 10),
    "store locked": Kind(partial(_store_locked, 7.0, 0.1), STORE, 1, 7, 8),
    "control plane's clock jumped": Kind(partial(_clock_jumped, CONTROL), CONTROL, 3, 3, 20),
    "nodes' clock jumped": Kind(partial(_clock_jumped, "nodes"), CONTROL, 2, 3, 20),
}


#: What only a real TorchServe has, and what only the light model server lets one do.
REAL_KINDS: Final[dict[str, Kind]] = {
    "driver killed": Kind(partial(_killed, "driver"), EVERY_NODE, 8),
    "stage killed": Kind(partial(_killed, "stage"), EVERY_NODE, 8),
    "stage stopped": Kind(partial(_stopped, "stage"), EVERY_NODE, 4, 1, 8),
}
LIGHT_KINDS: Final = frozenset({"workers killed", "nodes' clock jumped"})


def available(*, has_small_disk: bool, is_real: bool = False) -> dict[str, Kind]:
    """The kinds that this machine permits."""
    missing = set() if has_small_disk else {"store's disk full"}
    missing |= LIGHT_KINDS if is_real else set()
    if clockwork.library() is None:
        missing |= {"control plane's clock jumped", "nodes' clock jumped"}
    kinds = {**KINDS, **REAL_KINDS} if is_real else KINDS
    return {name: kind for name, kind in kinds.items() if name not in missing}


def _node(cluster: Cluster, target: str) -> Node:
    return next(node for node in cluster.nodes if node.name == target)


def _program(cluster: Cluster, target: str) -> Program:
    return cluster.control if target == CONTROL else _node(cluster, target).program


def _cable(cluster: Cluster, target: str) -> Cable:
    return cluster.front if target == CLIENTS else _node(cluster, target).cable


def _find(cluster: Cluster, target: str, role: str) -> psutil.Process:
    found = _program(cluster, target).find(role)
    if found is None:
        raise Missed(f"{role} of {target} does not run")
    return found
