"""A pipeline that lost a rank ends at once instead of waiting for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from transformers import LlamaConfig

from handlers.testing.random_model import write_random_model
from tests.integration.replica import Replica


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory, demo_folder: Path) -> Path:
    config = LlamaConfig(
        vocab_size=2048, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=2048,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("model")
    return write_random_model(config, folder, tokenizer_from=demo_folder)


#: Two ranks take seconds to import their libraries, and a minute on a machine with no idle core.
pytestmark = pytest.mark.timeout(150)
#: Seconds after which a silent rank counts as dead, in these tests.
SILENCE_S = 3.0


@pytest.fixture
def replica(model_folder: Path) -> Iterator[Replica]:
    replica = Replica(model_folder, 2, max_context=2048, silence_s=SILENCE_S)
    yield replica
    replica.kill()


def work(replica: Replica) -> None:
    """Return in the middle of a long answer."""
    request_id = replica.submit(prompt="def ", max_new_tokens=2000, ignore_eos=True)
    replica.wait_for_tokens(request_id, 5)


@pytest.mark.parametrize("lost", [0, 1])
def test_a_killed_rank_ends_the_others_while_they_work(replica: Replica, lost: int) -> None:
    work(replica)

    replica.ranks[lost].kill()

    assert replica.ranks[1 - lost].wait(timeout=5) == 1


def test_a_rank_that_is_killed_while_idle_is_missed_without_a_request(
    replica: Replica,
) -> None:
    replica.ranks[1].kill()

    assert replica.ranks[0].wait(timeout=SILENCE_S + 5) == 1


def test_a_hanging_rank_is_told_from_an_idle_one(replica: Replica) -> None:
    time.sleep(2 * SILENCE_S)  # the claim is that nothing happens in this time
    work(replica)

    replica.ranks[1].send_signal(signal.SIGSTOP)

    assert replica.ranks[0].wait(timeout=SILENCE_S + 5) == 1


def test_a_rank_dies_with_its_parent(tmp_path: Path) -> None:
    code = (
        "import time; from handlers.pipeline import process; process.die_with_parent();"
        "print('ready', flush=True); time.sleep(60)"
    )
    script = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {code!r}],"
    script += "stdout=subprocess.PIPE, text=True); p.stdout.readline(); print(p.pid, flush=True);"
    script += "p.wait()"
    environment = {k: v for k, v in os.environ.items() if k != "TORCHELASTIC_RUN_ID"}
    for extra in ({}, {"TORCHELASTIC_RUN_ID": "test"}):
        parent = subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True,
            env=environment | extra,
        )  # fmt: skip
        assert parent.stdout is not None
        with parent.stdout as lines:
            child = int(lines.readline())
        parent.send_signal(signal.SIGKILL)
        parent.wait()

        assert is_gone(child, within_s=10)


def is_gone(pid: int, within_s: float) -> bool:
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":  # dead; whoever adopted it has not looked yet
            return True
        time.sleep(0.02)
    return False
