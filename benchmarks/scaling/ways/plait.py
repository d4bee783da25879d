"""Plait's own decider, fed as the sidecar feeds it."""

from __future__ import annotations

from benchmarks.scaling.pool import SLOTS, Pool
from handlers.scale_section import Scale
from scheduler.autoscaler.load import LoadMeter, left_of
from scheduler.autoscaler.scaling import ASSUMED_START_S, Memory, Seen, Starting, decide
from scheduler.scaling import MAX_STARTS, Measure, ModelLoad
from scheduler.service_rate import PERIOD_S, RateMeter


class Way:
    """Looks every five seconds."""

    period_s = 5.0
    #: Work finishes before its replica goes.
    grace_s: float | None = None

    def __init__(self, rule: Scale) -> None:
        self._rule = rule
        self._memory: Memory | None = None
        self._load = LoadMeter()
        self._meters: dict[str, RateMeter] = {}
        self._starts: dict[str, list[float]] = {}

    def watch(self, pool: Pool) -> None:
        """Called every second: what is measured of every device kind."""
        for kind in {r.kind for r in pool.ready}:
            meter = self._meters.setdefault(kind, RateMeter())
            mine = [r for r in pool.ready if r.kind == kind]
            busy = sum(len(r.running) for r in mine)
            meter.served(round(busy * PERIOD_S * mine[0].slot_speed))
            if meter.is_due(pool.now):
                meter.end_period(pool.now, busy, SLOTS * len(mine))

    def wanted(self, pool: Pool) -> int:
        for kind, took_s in pool.starts:
            self._starts.setdefault(kind, []).append(took_s)
        pool.starts.clear()
        seen = self._seen(pool)
        memory = self._memory or Memory(pool.num_wanted)
        decision, self._memory = decide(self._rule, seen, memory)
        return decision.after

    def _seen(self, pool: Pool) -> Seen:
        finished = pool.finished_estimate
        used_ratio = pool.finished_cost / finished if finished else None
        used = 1.0 if used_ratio is None else used_ratio
        start_s = self._start_s()
        load = _load_of(pool)
        self._load.note(pool.now, load, ASSUMED_START_S if start_s is None else start_s)
        return Seen(
            now=pool.now,
            measured_at=pool.now,
            num_queued=load.num_queued,
            queued_cost=load.queued_cost * used,
            num_running=load.num_running,
            running_cost=left_of(load, used),
            arriving=self._load.arriving(used_ratio),
            was_busy=self._load.was_busy(),
            ready=tuple(r.kind for r in pool.ready),
            starting=tuple(Starting(r.kind, pool.now - r.ordered_at) for r in pool.starting),
            speeds=self._speeds(pool.now),
            num_slots=SLOTS,
            start_s=start_s,
        )

    def _speeds(self, now: float) -> dict[str, float]:
        rates = {kind: meter.rate(now) for kind, meter in self._meters.items()}
        return {kind: rate.per_slot * SLOTS for kind, rate in rates.items() if rate is not None}

    def _start_s(self) -> float | None:
        known = [
            Measure("m", kind, start_times_s=tuple(times[-MAX_STARTS:])).start_s
            for kind, times in self._starts.items()
        ]
        return max((start for start in known if start is not None), default=None)


def _load_of(pool: Pool) -> ModelLoad:
    queued = sum(max(0.0, w.request.estimate - w.done) for w in pool.queue)
    running = pool.running
    return ModelLoad(
        num_queued=len(pool.queue),
        queued_cost=queued,
        all_queued_cost=queued,
        num_running=len(running),
        running_cost=sum(work.request.estimate for _, work in running),
        running_done=sum(replica.done(work, pool.now) for replica, work in running),
        served_cost=pool.served_cost(),
    )
