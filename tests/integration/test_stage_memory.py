"""No rank ever holds more of a model than its share: measured, one process for each rank."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import stage_memory
import transformers

from handlers.testing.random_model import write_random_model

ROOT = Path(__file__).parents[2]
LAYERS, HIDDEN, INNER, VOCABULARY = 8, 512, 3072, 12000
MIB = 2**20
LAYER_MIB = (4 * HIDDEN**2 + 3 * HIDDEN * INNER + 2 * HIDDEN) * 4 / MIB
TABLE_MIB = VOCABULARY * HIDDEN * 4 / MIB
#: What building takes besides weights: tables of tensors' names, buffers of one layer's run.
MARGIN_MIB = 24.0
CUTS = [(0, 2), (2, 4), (4, 6), (6, 8)]

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="memory is read from /proc"),
]


def config(num_layers: int, hidden: int) -> Any:
    return transformers.LlamaConfig(
        vocab_size=VOCABULARY if hidden == HIDDEN else 64,
        hidden_size=hidden,
        intermediate_size=INNER if hidden == HIDDEN else 64,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        max_position_embeddings=64,
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model of about 230 MiB in files of 40, and a small one."""
    folder = tmp_path_factory.mktemp("memory")
    large = write_random_model(config(LAYERS, HIDDEN), folder / "l", max_shard_bytes=40 * MIB)
    assert len(list(large.glob("*.safetensors"))) > 4
    return large, write_random_model(config(2, 32), folder / "s")


def measure(
    folders: tuple[Path, Path], cuts: list[tuple[int, int]], dtype: str = "float32"
) -> list[dict[str, Any]]:
    """What each rank's process says of itself; all run at once."""
    large, small = folders
    script = [sys.executable, stage_memory.__file__, str(large)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    # Freed memory goes back at once, so that what is resident is what is held.
    environment["MALLOC_TRIM_THRESHOLD_"] = "0"
    processes = [
        subprocess.Popen(
            [*script, str(start), str(end), dtype, str(small)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for start, end in cuts
    ]
    outputs = [process.communicate(timeout=150)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(cuts)
    return [json.loads(output.splitlines()[-1]) for output in outputs]


def shares() -> list[float]:
    """What the weights of each rank take in the files, in MiB; the table is not tied."""
    tables = [TABLE_MIB, 0, 0, TABLE_MIB]
    return [2 * LAYER_MIB + table for table in tables]


def test_each_rank_holds_its_share_of_the_weights_and_little_more(
    folders: tuple[Path, Path],
) -> None:
    for rank, share in zip(measure(folders, CUTS), shares(), strict=True):
        assert rank["grown"] < share + MARGIN_MIB, (rank, share)
        assert rank["mapped"] < share + 1, (rank, share)


def test_a_rank_that_converts_its_weights_reads_no_others_to_do_it(
    folders: tuple[Path, Path],
) -> None:
    """While it loads, the file's pages and the converted weights, half as large, are there."""
    for rank, share in zip(measure(folders, CUTS[:2], "bfloat16"), shares()[:2], strict=True):
        assert rank["grown"] < 1.5 * share + MARGIN_MIB, (rank, share)
        assert rank["mapped"] == 0, rank


def test_the_measure_would_see_a_rank_that_holds_the_whole_model(
    folders: tuple[Path, Path],
) -> None:
    [whole] = measure(folders, [(0, LAYERS)])

    assert whole["grown"] > LAYERS * LAYER_MIB + TABLE_MIB
