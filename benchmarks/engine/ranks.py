"""Contenders that run in several ranks, as torchrun would start them.

The host's process is rank 0. It starts the other ranks with the environment torchrun gives and
tells them the jobs of each run; then every rank does the same work.

    python -m benchmarks.engine.ranks NAME SETTINGS
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import asdict

import torch.distributed as dist

from benchmarks.engine import host
from benchmarks.engine.contenders import base
from benchmarks.engine.contenders.base import Job, Run, Settings
from handlers.pipeline.process import die_with_parent

_CLOSE_WITHIN_S = 10.0


class RankedContender(base.Contender):
    """A contender of which every rank has a part."""

    def __init__(self, settings: Settings) -> None:
        self._others: list[subprocess.Popen[bytes]] = []
        if "RANK" not in os.environ:
            self._others = _start_others(type(self).__module__.rpartition(".")[2], settings)
        dist.init_process_group("gloo")
        self.rank = dist.get_rank()
        self.load(settings)

    @abstractmethod
    def load(self, settings: Settings) -> None:
        """Load this rank's part."""

    @abstractmethod
    def work(self, jobs: Sequence[Job]) -> Run:
        """Do this rank's part of a run; rank 0's answer counts."""

    def run(self, jobs: Sequence[Job]) -> Run:
        dist.broadcast_object_list([list(jobs)], src=0)
        return self.work(jobs)

    def serve(self) -> None:
        """Work for rank 0 until it is done."""
        while True:
            told: list[list[Job] | None] = [None]
            dist.broadcast_object_list(told, src=0)
            if told[0] is None:
                return
            self.work(told[0])

    def close(self) -> None:
        dist.broadcast_object_list([None], src=0)
        for other in self._others:
            other.wait(_CLOSE_WITHIN_S)
        dist.destroy_process_group()


def _start_others(name: str, settings: Settings) -> list[subprocess.Popen[bytes]]:
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "GLOO_SOCKET_IFNAME": "lo",
        "WORLD_SIZE": str(settings.num_stages),
        "LOCAL_WORLD_SIZE": str(settings.num_stages),
    }
    command = [sys.executable, "-m", __name__, name, json.dumps(asdict(settings))]
    others = [
        subprocess.Popen(command, env={**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(1, settings.num_stages)
    ]
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0"}
    return others


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def main(name: str, settings: Settings) -> None:
    die_with_parent()
    contender = host.load(name, settings)
    assert isinstance(contender, RankedContender)
    contender.serve()
    dist.destroy_process_group()


if __name__ == "__main__":
    # Under its own name, so that the class the contender's file imports is the one asked about.
    from benchmarks.engine import ranks

    ranks.main(sys.argv[1], Settings(**json.loads(sys.argv[2])))
