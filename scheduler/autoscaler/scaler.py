"""Keeps the number of replicas of every model that scales by its work.

Every few seconds it reads what work there is and what replicas were measured to do, has
:mod:`scheduler.autoscaler.scaling` decide, and writes down the decision with what it was made from.
What has to survive a restart is in the store; what was seen in the last minutes is not, and a
scaler that starts takes nothing away before it has seen a whole window.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import structlog

from handlers.model_config import ModelConfig
from scheduler.autoscaler import scaling
from scheduler.autoscaler.load import LoadMeter, left_of
from scheduler.autoscaler.placement import Trait, place
from scheduler.autoscaler.scaling import ASSUMED_START_S, Decision, Memory, Seen
from scheduler.autoscaler.starts import Starts
from scheduler.cluster_view import NodeView, Placed
from scheduler.ledger import Ledger
from scheduler.records import changed
from scheduler.scaling import MAX_STARTS, Action, Measure, ModelLoad, ScaleDecision, Wishes
from scheduler.service_rate import Rate
from scheduler.speedometer import Speedometer
from scheduler.stores.base import Transaction

log = structlog.get_logger(__name__)

#: What runs where, by runner id.
Placing = Mapping[str, Sequence[Placed]]
#: Reasons of decisions that nobody asked the decider for.
BY_OPERATOR: Final = "operator"


@dataclass(frozen=True, slots=True)
class _Facts:
    """What the store has."""

    wishes: Wishes
    loads: Mapping[str, ModelLoad]
    measures: Mapping[str, tuple[Measure, ...]]


@dataclass(frozen=True, slots=True)
class _Cluster:
    """What runs and should run."""

    nodes: Sequence[NodeView]
    placing: Placing
    traits: Mapping[str, Trait] | None

    def num_current(self, name: str) -> int:
        """Replicas of a model that run, or should."""
        there = [node for node in self.nodes if node.connected]
        num_there = sum(r.model == name for node in there for r in node.replicas)
        return max(num_there, _count(self.placing, name))


@dataclass(slots=True)
class _Model:
    """What is remembered of a model between two looks."""

    memory: Memory | None = None
    load: LoadMeter = field(default_factory=LoadMeter)
    measures: tuple[Measure, ...] = ()
    #: When the load was last asked for, and what it was.
    measured_at: float | None = None
    last_load: ModelLoad = field(default_factory=ModelLoad)
    #: The last decision; None: it is to be made now.
    decided_at: float | None = None


class Scaler:
    """How many replicas every model should have."""

    def __init__(
        self,
        configs: Mapping[str, ModelConfig],
        ledger: Ledger,
        speedometer: Speedometer,
        *,
        period_s: float = 5.0,
    ) -> None:
        self._configs, self._ledger = configs, ledger
        self._speedometer = speedometer
        self._period_s = period_s
        self._models = {name: _Model() for name, config in configs.items() if config.scale}
        self._starts = Starts()
        self._desired = {name: config.num_replicas for name, config in configs.items()}
        #: Replicas that would be right and have no room, by model.
        self.lacking: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"<Scaler models={len(self._models)} desired={self._desired}>"

    def wake(self, model: str) -> bool:
        """A task of the model waits. If it runs nowhere and scales by its work, its number is
        decided at the next look, and this is True."""
        is_asleep = model in self._models and not self._desired[model]
        if is_asleep:
            self._models[model].decided_at = None
        return is_asleep

    def forget(self) -> None:
        """Another control plane decides: what was decided here says nothing any more."""
        for model in self._models.values():
            model.memory = model.decided_at = None
        self.lacking.clear()

    async def desired(
        self,
        nodes: Sequence[NodeView],
        placing: Placing,
        traits: Mapping[str, Trait] | None = None,
    ) -> dict[str, int]:
        """Replicas by model; decides about those whose time has come. ``traits`` are as placement
        takes them.

        Raises:
            StoreUnavailable: what operators want is not known.
        """
        asked_at = self._ledger.clock.now()
        # Where an operator decided until now, the work may do so from now on.
        due = [
            name
            for name, model in self._models.items()
            if model.memory is None or self._is_due(model, asked_at)
        ]
        facts = await self._ledger.store.read(lambda tx: _facts(tx, due))
        now = self._ledger.clock.now()
        started = self._starts.look(nodes, placing, now)
        for name, config in self._configs.items():
            self._desired[name] = facts.wishes.of(config)
        cluster = _Cluster(nodes, placing, traits)
        decisions: list[tuple[str, Decision]] = []
        for name in due:
            model = self._models[name]
            if facts.wishes.is_automatic(self._configs[name]) or self._is_due(model, now):
                model.decided_at, model.measured_at = now, asked_at
                decision = self._decide(name, facts, cluster, now)
                decisions.append((name, decision))
        if decisions or started:
            await self._write(decisions, started, now)
        for name, decision in decisions:
            self._desired[name] = decision.after
        return dict(self._desired)

    def _is_due(self, model: _Model, now: float) -> bool:
        return model.decided_at is None or not 0 <= now - model.decided_at < self._period_s

    def _decide(self, name: str, facts: _Facts, cluster: _Cluster, now: float) -> Decision:
        model, config = self._models[name], self._configs[name]
        rule, stored = config.scale, self._desired[name]
        assert rule is not None
        if not facts.wishes.is_automatic(config):
            model.memory = None
            self.lacking.pop(name, None)
            told = f"an operator has set it to {stored}"
            return Decision(Action.NOTHING, stored, stored, BY_OPERATOR, told, {})
        if model.memory is None:
            model.memory = scaling.started(stored, cluster.num_current(name), now)
        model.measures = facts.measures[name]
        model.last_load = facts.loads[name]
        rates = self._speedometer.rates(now)
        seen = self._seen(name, rates.get(name), cluster, now)
        decision, model.memory = scaling.decide(rule, seen, model.memory)
        self.lacking[name] = decision.lacking
        return decision

    def _seen(self, name: str, rate: Rate | None, cluster: _Cluster, now: float) -> Seen:
        model, config = self._models[name], self._configs[name]
        measures = {measure.device_kind: measure for measure in model.measures}
        start_s = _greatest(m.start_s for m in _relevant(measures, cluster.nodes))
        used_ratio = _used_ratio(rate, model.measures)
        # As long as nobody knows what estimates are worth they bound what waits, and do not say
        # how much keeps coming.
        bound = 1.0 if used_ratio is None else used_ratio
        model.load.note(now, model.last_load, ASSUMED_START_S if start_s is None else start_s)
        ready, starting = self._starts.replicas(name, cluster.nodes, cluster.placing, now)
        load = model.last_load
        return Seen(
            now=now,
            measured_at=model.measured_at,
            num_queued=load.num_queued,
            queued_cost=load.queued_cost * bound,
            num_running=load.num_running,
            running_cost=left_of(load, bound),
            arriving=model.load.arriving(used_ratio),
            was_busy=model.load.was_busy(),
            ready=ready,
            starting=starting,
            speeds=_speeds(measures.values(), config.max_batch),
            num_slots=config.max_batch,
            start_s=start_s,
            first_chunk_s=_greatest(m.first_chunk_s for m in _relevant(measures, cluster.nodes)),
            num_possible=self._num_possible(name, cluster),
        )

    def _num_possible(self, name: str, cluster: _Cluster) -> int:
        """Replicas of the model that there is room for, while the others keep theirs."""
        scale = self._configs[name].scale
        assert scale is not None
        most = {**self._desired, name: scale.max}
        plan = place(most, self._configs, cluster.nodes, cluster.placing, cluster.traits)
        return _count(plan.replicas, name)

    async def _write(
        self,
        decisions: Sequence[tuple[str, Decision]],
        started: Sequence[tuple[str, str, float]],
        now: float,
    ) -> None:
        def command(tx: Transaction) -> None:
            for name, decision in decisions:
                if decision.reason != BY_OPERATOR:
                    tx.put_scaled_replicas(name, decision.after)
                tx.put_scale_decision(_entry(tx, name, decision, now))
            for name, kind, took_s in started:
                tx.put_measure(_with_start(tx, name, kind, took_s))

        await self._ledger.store.run(command)
        for name, decision in decisions:
            if decision.action is not Action.NOTHING:
                log.info(
                    "replicas_scaled",
                    model=name,
                    before=decision.before,
                    after=decision.after,
                    reason=decision.reason,
                    why=decision.message,
                )


def _facts(tx: Transaction, names: Iterable[str]) -> _Facts:
    wishes = Wishes(tx.desired_replicas(), tx.scaled_replicas())
    due = list(names)
    loads = {name: tx.load(name) for name in due}
    return _Facts(wishes, loads, {name: tuple(tx.measures(name)) for name in due})


def _entry(tx: Transaction, name: str, decision: Decision, now: float) -> ScaleDecision:
    """The decision as it is written down: one that comes to the same again is counted."""
    newest = next(iter(tx.scale_decisions(name, 1)), None)
    is_same = (
        newest is not None
        and decision.action is Action.NOTHING
        and (newest.action, newest.reason) == (decision.action.value, decision.reason)
        and (newest.num_before, newest.num_after) == (decision.before, decision.after)
    )
    number = 1 if newest is None else newest.number + (not is_same)
    return ScaleDecision(
        model=name,
        number=number,
        decided_at=newest.decided_at if newest is not None and is_same else now,
        last_at=now,
        num_times=newest.num_times + 1 if newest is not None and is_same else 1,
        action=decision.action.value,
        num_before=decision.before,
        num_after=decision.after,
        reason=decision.reason,
        message=decision.message,
        inputs=decision.inputs,
    )


def _with_start(tx: Transaction, name: str, kind: str, took_s: float) -> Measure:
    found = next((m for m in tx.measures(name) if m.device_kind == kind), Measure(name, kind))
    times = (*found.start_times_s, round(took_s, 2))[-MAX_STARTS:]
    return changed(found, start_times_s=times)


def _count(placing: Placing, name: str) -> int:
    return sum(placed.model == name for run in placing.values() for placed in run)


def _relevant(measures: Mapping[str, Measure], nodes: Sequence[NodeView]) -> list[Measure]:
    """Measures of the kinds of device that there are now; of all, if there are none of these."""
    kinds = {node.device_kind for node in nodes if node.connected}
    return [m for kind, m in measures.items() if kind in kinds] or list(measures.values())


def _used_ratio(rate: Rate | None, measures: Iterable[Measure]) -> float | None:
    """What finished tasks have cost, as a part of what was estimated; None: none has finished."""
    if rate is not None and rate.has_ended:
        return rate.used_ratio
    known = [m.used_ratio for m in measures if m.used_ratio is not None]
    return sum(known) / len(known) if known else None


def _speeds(measures: Iterable[Measure], num_slots: int) -> dict[str, float]:
    """What a replica does in a second, by kind of device. What was measured with slots to spare
    does not say what all of them can do, and does not count."""
    return {
        m.device_kind: m.cost_per_slot * num_slots
        for m in measures
        if m.cost_per_slot is not None and m.was_full
    }


def _greatest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)
