"""Models of many families, cut into stages that are chained in one process.

What goes from stage to stage is what would cross processes; the tokens are compared with
transformers' own generate on the whole model. Prompts of different lengths join while others
run, more of them than there are slots, and one leaves half way.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from handlers.pipeline import surgery
from handlers.pipeline.lanes import LaneModel
from handlers.pipeline.sampling import Sampler
from handlers.pipeline.schedule import Schedule, Sequence, Shape
from handlers.pipeline.stage import Stage
from handlers.pipeline.step import Draw, Step
from handlers.testing.random_model import write_random_model

#: What a family sets besides what all do.
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 4.0,
              "low_freq_factor": 1.0, "high_freq_factor": 4.0,
              "original_max_position_embeddings": 32}},
    "Gemma": {},
    "Gemma2": {"sliding_window": 8, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0},
    "Gemma3Text": {"sliding_window": 8, "query_pre_attn_scalar": 16},
    "Qwen2": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2},
    "Qwen3": {},
    "Qwen3Moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "Mistral": {"sliding_window": 8},
    "Mixtral": {"num_local_experts": 4},
    "Phi": {},
    "Phi3": {"sliding_window": 8},
    "GPT2": {},
    "GPTNeoX": {},
    "GPTBigCode": {},
    "OPT": {"ffn_dim": 128, "word_embed_proj_dim": 32},
    "Falcon": {"alibi": False, "new_decoder_architecture": True, "num_kv_heads": 2},
    "StableLm": {},
    "Starcoder2": {"sliding_window": 8},
    "Olmo2": {},
    "Granite": {"embedding_multiplier": 12.0, "logits_scaling": 8.0, "residual_multiplier": 0.22},
    "Cohere": {"logit_scale": 0.25},
}  # fmt: skip
COMMON: dict[str, Any] = {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None,
}  # fmt: skip
#: Families that do without some of it, or call it otherwise.
WITHOUT = {"num_key_value_heads", "head_dim", "intermediate_size"}
PLAIN = {
    "GPT2": WITHOUT,
    "GPTBigCode": WITHOUT,
    "OPT": WITHOUT,
    "Falcon": {*WITHOUT, "max_position_embeddings"},
    "GPTNeoX": {"num_key_value_heads", "head_dim"},
    "Phi": {"head_dim"},
}
CONTEXT, NUM_SLOTS, NUM_NEW = 128, 3, 16
PROMPTS = [[5], list(range(10, 33)), [7, 8, 9, 300, 301], list(range(400, 475)), [44] * 12]
#: Leaves after so many tokens.
LEAVER, LEAVES_AFTER = 1, 5
WHOLE, HALVES, QUARTERS = [(0, 4)], [(0, 3), (3, 4)], [(0, 1), (1, 2), (2, 3), (3, 4)]


def write(family: str, folder: Path) -> Path:
    common = {k: v for k, v in COMMON.items() if k not in PLAIN.get(family, set())}
    config = getattr(transformers, family + "Config")(**common | FAMILIES[family])
    return write_random_model(config, folder, seed=5)


class Chain:
    """Stages one after the other, with the driver's loop around them."""

    def __init__(self, folder: Path, cuts: list[tuple[int, int]]) -> None:
        self.stages = [
            Stage(surgery.build(folder, cut, torch.float32), NUM_SLOTS, CONTEXT) for cut in cuts
        ]
        num_blocks = self.stages[0].num_home_blocks
        for stage in self.stages:
            stage.allocate(num_blocks)
        self.sampler = Sampler(512, "cpu", None)
        shape = Shape(len(cuts), NUM_SLOTS, 16, CONTEXT, num_blocks)
        self.schedule = Schedule(shape, LaneModel(len(cuts)))

    def run(self, step: Step) -> list[Draw | None]:
        for opened in step.opens:
            self.sampler.open(opened)
        hidden = torch.tensor(step.token_ids)
        for stage in self.stages:
            hidden = stage.forward(step, hidden)
        return self.sampler.draw(hidden, step.rows)

    def generate(self, prompts: list[list[int]]) -> list[list[int]]:
        sequences = [Sequence(str(i), 0, list(p), len(p)) for i, p in enumerate(prompts)]
        joining, results = deque(sequences), deque[tuple[int, list[Draw | None]]]()
        while joining or self.schedule.sequences:
            if joining:
                self.schedule.add(joining.popleft())
            while (step := self.schedule.issue()) is not None:
                results.append((step.number, self.run(step)))
            for sequence, _ in self.schedule.apply(*results.popleft()):
                if len(sequence.token_ids) - sequence.num_prompt == wanted_tokens(sequence):
                    self.schedule.remove(sequence)
        return [each.token_ids[each.num_prompt :] for each in sequences]


def wanted_tokens(sequence: Sequence) -> int:
    return LEAVES_AFTER if sequence.request_id == str(LEAVER) else NUM_NEW


def generated(folder: Path) -> list[list[int]]:
    """What transformers makes of the prompts, one by one."""
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    answers = []
    for prompt in PROMPTS:
        output = model.generate(torch.tensor([prompt]), max_new_tokens=NUM_NEW, do_sample=False)
        answers.append(output[0].tolist()[len(prompt) :])
    answers[LEAVER] = answers[LEAVER][:LEAVES_AFTER]
    return answers


@pytest.mark.parametrize("family", FAMILIES)
def test_stages_generate_what_the_whole_model_does(family: str, tmp_path: Path) -> None:
    folder = write(family, tmp_path / "model")
    expected = generated(folder)

    for cuts in (WHOLE, HALVES, QUARTERS):
        assert Chain(folder, cuts).generate(PROMPTS) == expected, cuts
    assert len({token_id for tokens in expected for token_id in tokens}) > 10
