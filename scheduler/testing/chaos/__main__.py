"""``python -m scheduler.testing.chaos``: run a scenario, judge it, and say what was found."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import secrets
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scheduler.testing import output
from scheduler.testing.chaos import disk, faults, report, scenario
from scheduler.testing.chaos.cluster import NUM_SLOTS, build
from scheduler.testing.chaos.faults import Kind
from scheduler.testing.chaos.history import Fault, History
from scheduler.testing.chaos.judge import Answer, answered_before, judge
from scheduler.testing.chaos.run import Run
from scheduler.testing.chaos.shares import unfair

#: What a node is made of.
NODES = {
    False: "a supervisor, a runner and a light model server",
    True: "a supervisor, a runner and TorchServe with the demo model in one stage",
}
#: Different requests of a run with the real TorchServe.
NUM_REFERENCES = 12


def main() -> int:
    """Returns: the exit status; 0 when every promise was kept."""
    given = _arguments()
    seed = given.seed if given.seed is not None else secrets.randbelow(2**31)
    print(f"seed {seed}", flush=True)
    folder = given.folder or Path(tempfile.mkdtemp(prefix="plait-chaos-"))
    with disk.small(folder / "control", given.disk_mib) as (state, has_small_disk):
        known = faults.available(has_small_disk=has_small_disk, is_real=given.real)
        kinds = _chosen(known, given.only)
        plan = scenario.draw(
            seed,
            kinds,
            duration_s=given.minutes * 60,
            num_faults=given.faults,
            most_per_s=given.rate,
            num_nodes=given.nodes,
            num_references=NUM_REFERENCES if given.real else 0,
        )
        step_s = None if given.real else given.step_s
        cluster = build(
            folder, given.model_config, num_nodes=given.nodes, step_s=step_s, state=state
        )
        run = Run(plan, kinds, cluster, lambda line: print(line, flush=True))
        history = asyncio.run(_until_stopped(run))
    weights = {tenant.name: tenant.weight for tenant in scenario.TENANTS if tenant.is_contender}
    if given.real:
        problems = judge(history, answered_before(history))
    else:
        problems = judge(history, computed_answer)
        problems += unfair(history, weights, given.nodes * NUM_SLOTS)
    _tell(history, problems, folder, run.num_missed)
    if given.keep is not None:
        about = {
            "seed": seed,
            "minutes": given.minutes,
            "nodes": given.nodes,
            "node": NODES[given.real],
        }
        document = report.summary(history, problems, **about)
        report.keep(document, given.keep.parent, given.keep.name)
    return 1 if problems else 0


def _chosen(kinds: dict[str, Kind], words: str) -> dict[str, Kind]:
    """The kinds whose names hold one of the words; all of them where none are given."""
    wanted = [word.strip() for word in words.split(",")]
    return {name: kind for name, kind in kinds.items() if any(word in name for word in wanted)}


async def _until_stopped(run: Run) -> History:
    """SIGTERM ends it as Ctrl-C does: in order."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await run.run()


def computed_answer(document: Mapping[str, Any]) -> Answer:
    """What the light model server answers undisturbed."""
    return output.tokens(document, 0), output.whole_text(document, 0)


def _tell(history: History, problems: list[str], folder: Path, num_missed: int) -> None:
    kinds = Counter(record.kind for record in history.records if isinstance(record, Fault))
    for kind, count in sorted(kinds.items()):
        print(f"{count:4}  {kind}")
    states = Counter(task.state for task in history.stored.tasks)
    print(f"{kinds.total()} faults of {len(kinds)} kinds; {num_missed} found nothing to hit")
    print(f"{len(history.stored.tasks)} tasks: {dict(states)}; logs in {folder}")
    for problem in problems[:50]:
        print(problem)
    print(f"{len(problems)} problems" if problems else "every promise was kept")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, help="draws everything; printed; drawn when not given")
    parser.add_argument("--minutes", type=float, default=18.0, help="how long faults happen")
    parser.add_argument("--faults", type=int, default=500, help="how many, at least")
    parser.add_argument("--real", action="store_true", help="nodes with the real TorchServe")
    parser.add_argument("--only", default="", help="kinds of fault, such as 'runner,clock'")
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--rate", type=float, default=3.0, help="most requests a second")
    parser.add_argument("--step-s", type=float, default=0.1, help="seconds a token takes")
    parser.add_argument("--disk-mib", type=int, default=256, help="size of the store's disk")
    parser.add_argument("--keep", type=Path, help="where figures go, such as docs/chaos")
    parser.add_argument("--folder", type=Path, help="where everything is kept")
    parser.add_argument(
        "--model-config", type=Path, default=Path("model_configs/demo.yaml"), help="what is served"
    )
    return parser.parse_args()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt, asyncio.CancelledError):
        sys.exit(main())
    sys.exit(130)
