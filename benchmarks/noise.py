"""How much of the machine somebody else used, and waiting until nobody does.

A single busy neighbour can make a run with two threads ten times slower. So *noise* is measured
over every repetition: the processor time the whole machine spent, less that of this process and
its children. Before each repetition the machine is given time to fall quiet.
"""

from __future__ import annotations

import contextlib
import time

import psutil

#: Share of the machine below which it counts as quiet.
QUIET_RATIO = 0.05
_LOOK_S = 0.25
#: Looks in one wait: the quiet of the whole run is not spent on its first repetition.
_MOST_LOOKS = 40


class NoiseMeter:
    """Others' share of the machine since it was made."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._machine, self._own = _machine_seconds(), _own_seconds()

    def ratio(self) -> float:
        own = _own_seconds() - self._own
        return max(0.0, self.busy_ratio() - own / self._whole_s())

    def busy_ratio(self) -> float:
        """The share that anybody took, this process and its children included."""
        return (_machine_seconds() - self._machine) / self._whole_s()

    def _whole_s(self) -> float:
        return (time.perf_counter() - self._began) * (psutil.cpu_count() or 1)


def _machine_seconds() -> float:
    """Busy seconds of all processors, what the hypervisor gave to others (steal) included."""
    times = psutil.cpu_times()
    # Guests' time is in ``user`` as well.
    not_busy = ("idle", "iowait", "guest", "guest_nice")
    return float(sum(times) - sum(getattr(times, name, 0.0) for name in not_busy))


def _own_seconds() -> float:
    this = psutil.Process()
    total = 0.0
    for process in [this, *this.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


class Patience:
    """Waits for the machine to fall quiet, up to a limit for all waits together.

    Our own contenders count: one that still starts a spare process would disturb the next.
    """

    def __init__(self, limit_s: float) -> None:
        self._left_s = limit_s

    def wait(self) -> None:
        for _ in range(_MOST_LOOKS):
            meter = NoiseMeter()
            time.sleep(_LOOK_S)
            if meter.busy_ratio() <= QUIET_RATIO or self._left_s <= 0:
                return
            self._left_s -= _LOOK_S
