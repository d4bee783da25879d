"""The processes of an encoder's replica, started and talked to; killed in the end."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import encoder_rank

ROOT = Path(__file__).parents[2]


@contextmanager
def ranks(num_ranks: int, config: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """``num_ranks`` processes with the model of a YAML file, ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(num_ranks)}
    group |= {"LOCAL_WORLD_SIZE": str(num_ranks), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, encoder_rank.__file__, str(config)]
    processes = []
    for rank in range(num_ranks):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        processes.append(
            subprocess.Popen(command, env=os.environ | group | place, cwd=ROOT, **pipes)
        )
    try:
        for process in processes:
            assert process.stdout is not None
            assert "ready" in json.loads(process.stdout.readline())
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def ask(process: subprocess.Popen[str], requests: dict[str, list[str]]) -> dict[str, Any]:
    """The answers of rank 0 to requests, by their ids."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(requests) + "\n")
    process.stdin.flush()
    answers: dict[str, Any] = json.loads(process.stdout.readline())
    return answers
