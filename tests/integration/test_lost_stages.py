"""A replica that loses a stage brings it back, and no open request notices."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from transformers import LlamaConfig

from handlers.pipeline import crew
from handlers.testing.random_model import write_random_model
from handlers.wire import Failure
from tests.integration.replica import Replica
from tests.waiting import wait_for

pytestmark = pytest.mark.timeout(150)
#: Seconds after which a silent stage counts as hanging, in these tests.
SILENCE_S = 2.0
NUM_TOKENS = 300
REQUESTS: list[dict[str, Any]] = [
    {"prompt": "def ", "max_new_tokens": NUM_TOKENS, "ignore_eos": True},
    {
        "prompt": "import os\n", "max_new_tokens": NUM_TOKENS, "ignore_eos": True,
        "temperature": 0.9, "top_p": 0.95, "seed": 3,
    },
    {"prompt": "x", "max_new_tokens": NUM_TOKENS, "ignore_eos": True, "repetition_penalty": 1.2},
]  # fmt: skip


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory, demo_folder: Path) -> Path:
    config = LlamaConfig(
        vocab_size=2048, hidden_size=32, intermediate_size=64, num_hidden_layers=3,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=2048,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("model")
    return write_random_model(config, folder, tokenizer_from=demo_folder)


@pytest.fixture(scope="module")
def replica(model_folder: Path) -> Iterator[Replica]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crew, "SILENCE_S", SILENCE_S)
        replica = Replica(model_folder, 3, max_context=1024, has_standby=True)
        yield replica
        replica.close()


@pytest.fixture(scope="module")
def undisturbed(replica: Replica) -> list[list[int]]:
    return [result.token_ids for result in replica.generate_all(REQUESTS)]


def disturbed(replica: Replica, stage: int, how: signal.Signals) -> list[list[int]]:
    """The answers when a stage meets ``how`` in the middle."""
    ids = [replica.submit(**request) for request in REQUESTS]
    replica.wait_for_tokens(ids[0], 20)
    replica.stages()[stage].send_signal(how)
    return [replica.result(each).token_ids for each in ids]


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_killed_stage_changes_no_token(
    replica: Replica, undisturbed: list[list[int]], stage: int
) -> None:
    assert disturbed(replica, stage, signal.SIGKILL) == undisturbed


def test_a_hanging_stage_changes_no_token(replica: Replica, undisturbed: list[list[int]]) -> None:
    assert disturbed(replica, 1, signal.SIGSTOP) == undisturbed


def test_only_the_lost_stage_is_started_again(replica: Replica) -> None:
    before = [stage.pid for stage in replica.stages()]

    disturbed(replica, 1, signal.SIGKILL)

    after = [stage.pid for stage in replica.stages()]
    assert [was == now for was, now in zip(before, after, strict=True)] == [True, False, True]


def test_two_stages_killed_at_once_change_no_token(
    replica: Replica, undisturbed: list[list[int]]
) -> None:
    ids = [replica.submit(**request) for request in REQUESTS]
    replica.wait_for_tokens(ids[0], 20)

    for stage in replica.stages()[1:]:
        stage.kill()

    assert [replica.result(each).token_ids for each in ids] == undisturbed


def test_a_stage_killed_while_idle_is_back_without_a_request(replica: Replica) -> None:
    lost = replica.stages()[2]

    lost.kill()

    wait_for(
        "another last stage",
        lambda: len(replica.stages()) == 3 and lost.pid != replica.stages()[2].pid,
        60,
    )
    assert replica.generate(**REQUESTS[0]).token_ids


def test_a_stage_that_hangs_while_idle_is_replaced_without_a_request(replica: Replica) -> None:
    lost = replica.stages()[0]

    lost.suspend()

    wait_for(
        "the stage to be back", lambda: not lost.is_running() and len(replica.stages()) == 3, 60
    )
    assert replica.generate(**REQUESTS[0]).token_ids


@pytest.fixture(scope="module")
def faulty(root: Path, model_folder: Path) -> Iterator[Replica]:
    """Its stages import a sitecustomize with which certain tokens are too much for them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crew, "SILENCE_S", SILENCE_S)
        patch.setenv("PYTHONPATH", str(root / "tests" / "data" / "faulty_stage"))
        replica = Replica(model_folder, 3, max_context=1024, has_standby=True)
        yield replica
        replica.close()


@pytest.mark.parametrize(
    ("token_id", "reason"),
    [
        pytest.param(1999, "exit code 66", id="deadly"),
        pytest.param(1998, "has been at one step", id="hanging"),
        pytest.param(1997, "out of memory", id="hungry"),
        pytest.param(1996, "not finite", id="not-a-number"),
    ],
)
def test_a_request_at_which_the_engine_fails_twice_is_failed_and_nobody_else(
    faulty: Replica, undisturbed: list[list[int]], token_id: int, reason: str
) -> None:
    ids = [faulty.submit(**request) for request in REQUESTS]
    faulty.wait_for_tokens(ids[0], 10)

    poison = faulty.result(faulty.submit(prompt_token_ids=(5, *[token_id] * 3), max_new_tokens=4))

    assert isinstance(poison.end, Failure)
    assert poison.end.status == 500
    assert "failed 2 times at this request" in poison.end.message
    assert reason in poison.end.message
    assert [faulty.result(each).token_ids for each in ids] == undisturbed


def test_running_out_of_memory_costs_no_process(faulty: Replica) -> None:
    before = [stage.pid for stage in faulty.stages()]

    faulty.generate(prompt_token_ids=(5, *[1997] * 3), max_new_tokens=4)

    assert faulty.generate(**REQUESTS[0]).token_ids
    assert [stage.pid for stage in faulty.stages()] == before


def test_running_out_of_memory_again_and_again_leaves_room_to_work(faulty: Replica) -> None:
    for _ in range(6):
        faulty.generate(prompt_token_ids=(5, *[1997] * 3), max_new_tokens=4)

    whole = faulty.generate(prompt="x", max_new_tokens=1000, ignore_eos=True)
    assert len(whole.token_ids) == 1000


def test_stages_that_cannot_be_brought_up_end_the_process(model_folder: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path\n"
        "from tests.integration.replica import Replica\n"
        f"replica = Replica(Path({str(model_folder)!r}), 2)\n"
        "print('ready', flush=True)\n"
        f"Path({str(model_folder)!r}).rename({str(model_folder) + '.gone'!r})\n"
        "replica.stages()[0].kill()\n"
        "replica.generate(prompt='x', max_new_tokens=4)\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    Path(f"{model_folder}.gone").rename(model_folder)

    assert "ready" in process.stdout
    assert process.returncode == 1
    assert "process_ended" in process.stderr


def test_a_process_dies_with_its_parent(tmp_path: Path) -> None:
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

        wait_for("the child's end", partial(is_gone, child), 10)


def is_gone(pid: int) -> bool:
    try:
        # A zombie is dead; whoever adopted it has not looked yet.
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
