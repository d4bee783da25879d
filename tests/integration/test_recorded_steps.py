"""Decode steps that are replayed from a recording give what running the model's code gives.

The recorder here writes down the operations that the model's code calls, as a device graph does,
and replays them on the same tensors: what a step passes on beside its buffers is frozen.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from handlers.pipeline import surgery
from handlers.pipeline.kernels.graphs import Graphs
from handlers.pipeline.stage import Stage
from tests.integration.staged_model import MAX_CONTEXT, run, stages_of, tokens, write_model


class OperationRecorder:
    """Records on a CPU."""

    def __init__(self) -> None:
        self.num_recorded = self.num_replayed = 0

    def record(self, work: Callable[[], Tensor]) -> Callable[[], Tensor]:
        operations = make_fx(work)()
        output = operations()
        self.num_recorded += 1

        def replay() -> Tensor:
            self.num_replayed += 1
            return output.copy_(operations())

        return replay


class RefusingRecorder:
    def record(self, work: Callable[[], Tensor]) -> Callable[[], Tensor]:
        raise RuntimeError("operation not permitted when stream is capturing")


@pytest.fixture(scope="module", params=["Llama", "Gemma2", "GPT2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("recorded") / request.param, request.param)


def recorded_stages(folder: Path, recorder: OperationRecorder) -> list[Stage]:
    return [
        Stage(surgery.build(folder, cut, torch.float32), 4, MAX_CONTEXT, recorder)
        for cut in ((0, 2), (2, 4))
    ]


def decode(stages: list[Stage], slots: tuple[int, ...], count: int) -> Tensor:
    """Prompts of 60 tokens and more, so that the window grows on the way."""
    starts = {slot: 60 + slot for slot in slots}
    run(stages, [(slot, 0, tokens(starts[slot], slot)) for slot in slots])
    steps = [
        run(stages, [(s, starts[s] + place, tokens(1, 10 * place + s)) for s in slots])
        for place in range(count)
    ]
    return torch.stack(steps)


@pytest.mark.parametrize("slots", [(0, 1, 2), (0, 1, 3)], ids=["in place", "gathered"])
def test_replayed_steps_equal_run_ones(folder: Path, slots: tuple[int, ...]) -> None:
    recorder = OperationRecorder()

    found = decode(recorded_stages(folder, recorder), slots, 8)

    assert torch.equal(found, decode(stages_of(folder), slots, 8))
    assert recorder.num_replayed > recorder.num_recorded >= 2


def test_what_was_returned_stays_when_the_next_step_is_replayed(folder: Path) -> None:
    (stage,) = recorded_stages(folder, OperationRecorder())[:1]
    kept = [run([stage], [(0, place, [5 + place])]) for place in range(4)]

    copies = [each.clone() for each in kept]
    run([stage], [(0, 4, [400])])

    assert all(torch.equal(a, b) for a, b in zip(kept, copies, strict=True))


def test_recordings_are_made_anew_when_the_blocks_are(folder: Path) -> None:
    recorder = OperationRecorder()
    stages = recorded_stages(folder, recorder)
    expected = decode(stages, (0, 1), 3)

    for stage in stages:
        stage.reset()

    assert torch.equal(decode(stages, (0, 1), 3), expected)


def test_what_cannot_be_recorded_is_run(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    stages = [
        Stage(surgery.build(folder, (0, 4), torch.float32), 4, MAX_CONTEXT, RefusingRecorder())
    ]

    found = decode(stages, (0, 1), 4)

    assert torch.equal(found, decode(stages_of(folder, ((0, 4),)), (0, 1), 4))
    assert caplog.text.count("stage_not_recorded") == 1


def test_the_recording_that_was_not_used_for_longest_makes_room() -> None:
    recorder = OperationRecorder()
    graphs, numbers = Graphs(recorder, max_graphs=2), {"inputs": torch.ones(2)}

    for layout in "aabbab" + "cc" + "b":
        graphs.run(layout, lambda given: given["inputs"] + 1, numbers)

    assert recorder.num_recorded == 3
    assert repr(graphs) == "<Graphs recorded=2 is_recording=True>"
