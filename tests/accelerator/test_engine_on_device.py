"""The pipelined engine on a CUDA device draws what it draws on the processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

from tests.integration.replica import Replica

pytestmark = pytest.mark.timeout(300)
REQUESTS: list[dict[str, Any]] = [
    {"prompt": "def ", "max_new_tokens": 60, "ignore_eos": True},
    {"prompt": "x", "max_new_tokens": 60, "ignore_eos": True, "temperature": 0.8, "seed": 3},
    {"prompt": "class A:\n" * 40, "max_new_tokens": 20, "ignore_eos": True},
]  # fmt: skip


def answers(folder: Path, num_stages: int, **fields: Any) -> list[list[int]]:
    replica = Replica(folder, num_stages, max_context=1024, **fields)
    try:
        return [result.token_ids for result in replica.generate_all(REQUESTS)]
    finally:
        replica.close()


def test_one_stage_on_a_device_draws_what_the_processor_draws(demo_folder: Path) -> None:
    assert answers(demo_folder, 1, device_type="gpu") == answers(demo_folder, 1)


def test_a_stage_on_each_device_draws_what_one_does(demo_folder: Path) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices: between ranks of one device there is no nccl")

    assert answers(demo_folder, 2, device_type="gpu") == answers(demo_folder, 1, device_type="gpu")


def test_a_stage_killed_on_a_device_changes_no_token(demo_folder: Path) -> None:
    wanted = answers(demo_folder, 1, device_type="gpu")
    replica = Replica(demo_folder, 1, max_context=1024, device_type="gpu")
    try:
        ids = [replica.submit(**request) for request in REQUESTS]
        replica.wait_for_tokens(ids[0], 10)

        replica.stages()[0].kill()

        assert [replica.result(each).token_ids for each in ids] == wanted
    finally:
        replica.close()
