"""A schedule's steps through real stages: no layout, cache or mode changes a token."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pytest
import torch
import transformers

from handlers.pipeline import surgery
from handlers.pipeline.lanes import LaneModel
from handlers.pipeline.sampling import Sampler
from handlers.pipeline.schedule import Schedule, Sequence, Shape
from handlers.pipeline.stage import Stage
from handlers.pipeline.step import BLOCK, Draw, Sampling, Step
from handlers.testing.random_model import write_random_model

CONTEXT, ROWS, CHUNK, NUM_NEW = 4 * BLOCK, 3, BLOCK, 12
TEXT = [10 + token % 97 for token in range(200)]
#: Some share a prefix, and the later ones find what the earlier ones left.
PROMPTS = [TEXT[:150], TEXT[:140], [7, 8, 9], [*TEXT[:130], 5], TEXT[:64], TEXT[:150], TEXT[:199]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = transformers.LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=CONTEXT,
        pad_token_id=0, bos_token_id=1, eos_token_id=None,
    )  # fmt: skip
    return write_random_model(config, tmp_path_factory.mktemp("model"), seed=5)


@dataclass
class Pipeline:
    """A schedule with its stages in one process; results come two steps late."""

    schedule: Schedule
    stages: list[Stage]
    sampler: Sampler

    def run(self, sequences: list[Sequence], num_new: int = NUM_NEW) -> None:
        for each in sequences:
            self.schedule.add(each)
        results: deque[tuple[Step, list[Draw | None]]] = deque()
        while self.schedule.sequences:
            while (step := self.schedule.issue()) is not None:
                results.append((step, self.through(step)))
            done, draws = results.popleft()
            for sequence, _ in self.schedule.apply(done.number, draws):
                if len(sequence.token_ids) - sequence.num_prompt == num_new:
                    self.schedule.remove(sequence)
        for done, draws in results:
            self.schedule.apply(done.number, draws)

    def through(self, step: Step) -> list[Draw | None]:
        for opened in step.opens:
            self.sampler.open(opened)
        hidden = torch.tensor(step.token_ids)
        for stage in self.stages:
            hidden = stage.forward(step, hidden)
        return self.sampler.draw(hidden, step.rows)


def pipeline(folder: Path, num_blocks: int, **how: bool) -> Pipeline:
    torch.set_num_threads(1)
    cuts = [(0, 1), (1, 2)]
    stages = [Stage(surgery.build(folder, cut, torch.float32), ROWS, CONTEXT) for cut in cuts]
    for stage in stages:
        stage.allocate(num_blocks)
    shape = Shape(len(cuts), ROWS, CHUNK, CONTEXT, num_blocks, **how)
    return Pipeline(Schedule(shape, LaneModel(len(cuts))), stages, Sampler(256, "cpu", None))


def sequences_of(prompts: list[list[int]]) -> list[Sequence]:
    return [
        Sequence(str(index), 0, list(prompt), len(prompt), Sampling(temperature=1.0, seed=index))
        for index, prompt in enumerate(prompts)
    ]


@lru_cache
def alone(folder: Path) -> list[list[int]]:
    """Each prompt in a pipeline of its own that remembers nothing."""
    answers = []
    for sequence in sequences_of(PROMPTS):
        pipeline(folder, 12, has_prefix_cache=False).run([sequence])
        answers.append(sequence.token_ids[sequence.num_prompt :])
    return answers


@pytest.mark.parametrize("num_blocks", [12, 9, 5])
@pytest.mark.parametrize("has_prefix_cache", [False, True])
def test_layout_and_cache_change_no_token(
    folder: Path, num_blocks: int, has_prefix_cache: bool
) -> None:
    plan = pipeline(folder, num_blocks, has_prefix_cache=has_prefix_cache)
    sequences = sequences_of(PROMPTS)

    plan.run(sequences)

    assert [each.token_ids[each.num_prompt :] for each in sequences] == alone(folder)
    assert (plan.schedule.counts().num_tokens_saved > 0) == has_prefix_cache


@pytest.mark.parametrize("num_blocks", [12, 6])
def test_in_exact_mode_a_resumed_answer_is_drawn_again_bit_for_bit(
    folder: Path, num_blocks: int
) -> None:
    plan = pipeline(folder, num_blocks, is_exact=True)
    sequences = sequences_of(PROMPTS)
    plan.run(sequences)
    resumed = sequences_of(PROMPTS[::-1])
    for new, old in zip(resumed, reversed(sequences), strict=True):
        new.sampling = old.sampling
        new.token_ids = old.token_ids[: old.num_prompt + 5]

    plan.run(resumed)

    assert [each.token_ids for each in resumed] == [each.token_ids for each in sequences[::-1]]
    assert plan.schedule.counts().num_replay_mismatches == 0
