"""A run: builds the cluster of a seed, disturbs it for a while, and lets it come to rest.

Afterwards nothing may be missing: with every fault gone, everything that was accepted ends.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from operator import methodcaller

import structlog

from scheduler import plugins, policies
from scheduler.errors import PlaitError
from scheduler.fair_queue import FairQueue
from scheduler.moves import Backoff, Rules
from scheduler.operations import TenantChange
from scheduler.testing.simulation.control import LEASE_TTL_S, ControlPlane, crash
from scheduler.testing.simulation.database import TASK_COLUMNS, Disk
from scheduler.testing.simulation.faults import Faults
from scheduler.testing.simulation.loop import Clock, Gone, Loop, Process, Stuck
from scheduler.testing.simulation.network import Network
from scheduler.testing.simulation.referee import Referee
from scheduler.testing.simulation.runner import Runner
from scheduler.testing.simulation.scenario import EVENTS, Scenario, draw
from scheduler.testing.simulation.tenant import Client
from scheduler.testing.simulation.witness import FINAL, Witness
from scheduler.testing.tasks import problems

#: Seconds in which everything must have ended once the faults are over: twice what the most tasks a
#: scenario draws take on the one slot that may be left.
REST_S = 800.0
#: Seconds between two looks at whether the store adds up.
AUDIT_S = 8.0
#: Seconds until a crashed process is started again, at most; mostly, and now and then.
DOWN_S, LONG_DOWN_S = 8.0, 60.0


@dataclass
class Report:
    """What a run has shown."""

    seed: str
    scenario: Scenario
    problems: list[str]
    faults: Counter[str] = field(default_factory=Counter)
    num_tasks: int = 0
    num_commits: int = 0
    states: Counter[str] = field(default_factory=Counter)
    #: How attempts ended.
    attempts: Counter[str] = field(default_factory=Counter)
    virtual_s: float = 0.0
    #: Of everything that was written, in order: two runs of a seed have the same.
    digest: int = 0


class World:
    """Everything there is in a run."""

    def __init__(self, scenario: Scenario, loop: Loop) -> None:
        self.scenario, self.loop = scenario, loop
        policy = plugins.find(policies, scenario.policy).Policy()
        self.rules = Rules(FairQueue(policy), LEASE_TTL_S, scenario.max_attempts, Backoff(1.0, 5.0))
        self.faults = Faults(scenario.faults, self.rng("faults"))
        self.witness = Witness(TASK_COLUMNS, Referee(policy), max_attempts=scenario.max_attempts)
        num_planes = scenario.num_control_planes
        self.disk = Disk(self.witness, self.faults, is_shared=num_planes > 1)
        self.network = Network(self.faults, self.rng("network"))
        self.clocks = [Clock(loop) for _ in range(num_planes)]
        self._chance = self.rng("chance")
        self._incarnations: Counter[str] = Counter()
        self.planes: list[ControlPlane | None] = [None] * num_planes
        self.runners: list[Runner | None] = [None] * len(scenario.capacities)
        self.clients: list[Client] = []
        #: Runners that do not come back.
        self._gone: set[str] = set()
        self._supervisor = Process("supervisor", self.witness.report)

    def rng(self, name: str) -> random.Random:
        """Numbers of its own for each part, so that one that draws more does not change others."""
        return random.Random(f"{self.scenario.seed} {name}")

    # -- building

    async def run(self) -> None:
        self._set_up_tenants()
        for number in range(len(self.planes)):
            self._start_plane(number)
        for number in range(len(self.runners)):
            self._start_runner(number)
        for tenant in self.scenario.tenants:
            self.clients.append(
                Client(
                    tenant,
                    Process(tenant.name, self.witness.report),
                    self.network,
                    self._planes_up,
                    self.witness,
                    self.clocks[0].now,
                    self.rng(tenant.name),
                    self.scenario.meddling,
                )
            )
        keeping = [self._supervisor.start(self._keep_up()), self._supervisor.start(self._audit())]
        await self._disturb()
        await self._come_to_rest()
        for task in keeping:
            task.cancel()

    def _set_up_tenants(self) -> None:
        tx = self.disk.transaction()
        for each in self.scenario.tenants:
            change = TenantChange(
                weight_permille=each.weight_permille,
                max_in_flight=each.max_in_flight,
                max_queued=each.max_queued,
                cost_per_minute=each.cost_per_minute,
            )
            tenant = change.applied(tx.tenant(each.name))
            self.disk.run(tx, methodcaller("put_tenant", tenant), fails=False)

    def _process(self, name: str) -> tuple[Process, random.Random]:
        self._incarnations[name] += 1
        full = f"{name}.{self._incarnations[name]}"
        return Process(full, self.witness.report), self.rng(full)

    def _start_plane(self, number: int) -> None:
        process, rng = self._process(f"control plane {number}")
        self.planes[number] = ControlPlane(process, self.disk, self.rules, self.clocks[number], rng)

    def _start_runner(self, number: int) -> None:
        process, rng = self._process(f"runner {number}")
        self.runners[number] = Runner(
            f"runner {number}",
            process,
            self.scenario.capacities[number],
            self.network,
            self._planes_up,
            rng,
            self.witness.report,
        )

    def _planes_up(self) -> list[ControlPlane]:
        return [plane for plane in self.planes if plane is not None and plane.process.is_alive]

    # -- keeping it up, and not

    async def _keep_up(self) -> None:
        """Start again what has died, after a while."""
        while True:
            await asyncio.sleep(0.25)
            for number, plane in enumerate(self.planes):
                if plane is not None and not plane.process.is_alive:
                    self._bury(plane)
                    self.planes[number] = None
                    self._later(partial(self._start_plane, number))
            for number, runner in enumerate(self.runners):
                if runner is not None and not runner.process.is_alive:
                    self.runners[number] = None
                    if runner.name not in self._gone:
                        self._later(partial(self._start_runner, number))

    def _later(self, start: Callable[[], None]) -> None:
        def start_unless_over() -> None:
            if self._supervisor.is_alive:
                start()

        self.loop.call_later(
            self._chance.uniform(0.1, self._chance.choice([DOWN_S, DOWN_S, LONG_DOWN_S])),
            start_unless_over,
        )

    def _bury(self, plane: ControlPlane) -> None:
        self._judge(plane)
        crash(plane, [s for s in self.network.streams if s.process is plane.process], self._chance)

    async def _disturb(self) -> None:
        happening = [
            self._supervisor.start(self._repeat(kind, mean_s))
            for kind, mean_s in EVENTS.items()
            if self.faults.has(kind)
        ]
        await asyncio.sleep(self.scenario.disturbed_s)
        self.faults.are_on = False
        for each in happening:
            each.cancel()

    async def _repeat(self, kind: str, mean_s: float) -> None:
        while True:
            await asyncio.sleep(self._chance.expovariate(1 / mean_s))
            if await self._happen(kind):
                self.faults.injected[kind] += 1

    async def _happen(self, kind: str) -> bool:
        """Whether there was anything for it to happen to."""
        rng, now = self._chance, self.loop.time()
        planes = self._planes_up()
        runners = [r for r in self.runners if r is not None and r.process.is_alive]
        match kind:
            case "control plane crashed" if planes:
                rng.choice(planes).process.kill()
            case "runner crashed" if runners:
                self._crash(rng.choice(runners))
            case "runner gone for good" if len(self._gone) + 1 < len(self.runners) and runners:
                runner = rng.choice(runners)
                self._gone.add(runner.name)
                self._crash(runner)
            case "runner stalled" if runners:
                seconds = rng.uniform(0.5, 3) * LEASE_TTL_S
                self._supervisor.start(rng.choice(runners).stand_still(seconds))
            case "worker lost" if runners:
                return rng.choice(runners).lose_worker()
            case "stream broke" if self.network.streams:
                rng.choice(list(self.network.streams)).tear(rng)
            case "stream half open" if self.network.streams:
                stream = rng.choice(list(self.network.streams))
                self._supervisor.start(stream.half_open(rng))
            case "network stalled":
                self.network.stands_still_until = now + rng.uniform(0.2, 2) * LEASE_TTL_S
            case "store refused for a while":
                self.disk.refuses_until = now + rng.uniform(0.2, 2) * LEASE_TTL_S
            case "clock jumped":
                self._jump(rng.choice(self.clocks))
            case "operator changed a tenant" if planes:
                await self._change_tenant(rng.choice(planes))
            case _:
                return False
        return True

    def _crash(self, runner: Runner) -> None:
        runner.process.kill()
        if runner.stream is not None:
            runner.stream.tear(self._chance)

    def _jump(self, clock: Clock) -> None:
        far = self._chance.choice([1.0, 60.0, 3600.0])
        clock.offset_s = self._chance.uniform(-far, far)

    async def _change_tenant(self, plane: ControlPlane) -> None:
        rng = self._chance
        tenant = rng.choice(self.scenario.tenants)
        change = rng.choice(
            [
                TenantChange(weight_permille=rng.choice([500, 1000, 2000])),
                TenantChange(max_in_flight=rng.choice([None, 1, 2])),
            ]
        )
        operations = plane.operations
        await self._quietly(plane, lambda: operations.set_tenant(tenant.name, change))

    async def _quietly(self, plane: ControlPlane, ask: Callable[[], Awaitable[object]]) -> None:
        with suppress(PlaitError, Gone):  # whether it was done is unknown, and nobody waits for it
            await self.network.call(plane.process, ask)

    # -- at the end

    async def _come_to_rest(self) -> None:
        self.network.stands_still_until = self.disk.refuses_until = 0.0
        for clock in self.clocks:
            clock.offset_s = 0.0
        until = self.loop.time() + REST_S
        while open_ := self._open():
            for client in self.clients:
                client.process.start(client.resume_all())
            await asyncio.sleep(5.0)
            if self.loop.time() > until:
                self.witness.report(f"promise 4: {REST_S:.0f} s after the last fault: {open_}")
                return

    def _open(self) -> list[str]:
        """What has not come to its end."""
        waiting = [
            f"{task_id} is {account.row['state']}"
            for task_id, account in self.witness.accounts.items()
            if account.row["state"] not in FINAL
        ]
        return waiting + [f"{c.tenant.name} is busy" for c in self.clients if c.process.is_busy]

    async def _audit(self) -> None:
        while True:
            await asyncio.sleep(AUDIT_S)
            self.audit()

    def audit(self) -> None:
        """Whether the store adds up, and holds everything that tenants were told of."""
        for problem in problems(self.disk.transaction()):
            self.witness.report(f"the store does not add up: {problem}")
        for client in self.clients:
            for task_id in client.accepted.values():
                if task_id not in self.witness.accounts:
                    self.witness.report(f"promise 1: {task_id} was accepted and is not on disk")

    def _judge(self, plane: ControlPlane) -> None:
        for problem in plane.damage():
            self.witness.report(f"the store does not add up: {problem}")

    def close(self) -> None:
        for plane in self._planes_up():
            self._judge(plane)
        for each in [*self.planes, *self.runners, *self.clients]:
            if each is not None:
                each.process.kill()
        self._supervisor.kill()


def simulate(seed: str, scenario: Scenario | None = None) -> Report:
    """Run a seed to its end, in the scenario it draws unless another is given."""
    scenario = scenario or draw(seed)
    with _no_log():
        return _simulate(scenario)


def _simulate(scenario: Scenario) -> Report:
    loop = Loop()
    world = World(scenario, loop)
    witness = world.witness
    loop.set_exception_handler(lambda _, context: witness.report(f"unexpected: {context}"))
    try:
        loop.run_until_complete(world.run())
        world.audit()
        world.close()
        loop.run_until_complete(asyncio.sleep(1))
    except Stuck as stuck:
        witness.report(f"promise 4: {stuck}: {world._open()}")
    finally:
        loop.close()
        world.disk.close()
    return Report(
        seed=scenario.seed,
        scenario=scenario,
        problems=witness.problems,
        faults=world.faults.injected,
        num_tasks=len(witness.accounts),
        num_commits=witness.num_commits,
        states=Counter(account.row["state"] for account in witness.accounts.values()),
        attempts=witness.attempts,
        virtual_s=loop.time(),
        digest=witness.digest,
    )


@contextmanager
def _no_log() -> Iterator[None]:
    """What fails here fails thousands of times, and none of it is news."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        yield
    finally:
        structlog.configure(**before)
