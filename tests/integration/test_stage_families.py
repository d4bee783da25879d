"""Models of several families, cut into stages that are chained in one process.

What goes from stage to stage is what would cross processes; the tokens are compared with
transformers' own generate on the whole model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from transformers import AutoModelForCausalLM

from handlers.pipeline import surgery
from handlers.pipeline.sampling import draw
from handlers.pipeline.schedule import Schedule, Sequence
from handlers.pipeline.stage import Stage
from handlers.testing.random_model import write_random_model

FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Gemma": {},
    "Gemma2": {"sliding_window": 8},
    "Gemma3Text": {"sliding_window": 8},
    "Qwen2": {},
    "Mistral": {"sliding_window": 8},
    "GPT2": {},
}
CONTEXT, NUM_NEW = 64, 16
PROMPTS = [[5], list(range(10, 33)), [7, 8, 9, 300, 301], list(range(400, 440))]


def write(family: str, folder: Path) -> Path:
    settings: dict[str, Any] = {
        "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "max_position_embeddings": CONTEXT, "pad_token_id": 0, "bos_token_id": 1,
        "eos_token_id": None,
    }  # fmt: skip
    if family == "GPT2":
        del settings["num_key_value_heads"], settings["head_dim"], settings["intermediate_size"]
    config = getattr(transformers, family + "Config")(**settings | FAMILIES[family])
    return write_random_model(config, folder, seed=5)


def stages_of(folder: Path, cuts: list[tuple[int, int]], **how: Any) -> list[Stage]:
    dtype = how.get("dtype", torch.float32)
    return [Stage(surgery.build(folder, cut, dtype), len(PROMPTS), CONTEXT) for cut in cuts]


def generate(stages: list[Stage], chunk: int = 8) -> list[list[int]]:
    schedule = Schedule(1, len(PROMPTS), chunk, CONTEXT)
    sequences = [Sequence(str(index), list(prompt)) for index, prompt in enumerate(PROMPTS)]
    for sequence in sequences:
        schedule.add(sequence)
    while (issue := schedule.issue()) is not None:
        hidden = torch.tensor(issue.token_ids)
        for stage in stages:
            hidden = stage.forward(issue.step, hidden)
        for sequence, _ in schedule.apply(draw(hidden, issue.step.rows)):
            if len(sequence.token_ids) - len(PROMPTS[int(sequence.request_id)]) == NUM_NEW:
                schedule.remove(sequence)
    return [s.token_ids[len(p) :] for s, p in zip(sequences, PROMPTS, strict=True)]


def wanted(folder: Path) -> list[list[int]]:
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    outputs = [
        model.generate(torch.tensor([prompt]), max_new_tokens=NUM_NEW, do_sample=False)
        for prompt in PROMPTS
    ]
    return [o[0].tolist()[len(p) :] for o, p in zip(outputs, PROMPTS, strict=True)]


@pytest.mark.parametrize("family", FAMILIES)
def test_stages_generate_what_the_whole_model_does(family: str, tmp_path: Path) -> None:
    folder = write(family, tmp_path / "model")
    expected = wanted(folder)

    for cuts in ([(0, 4)], [(0, 3), (3, 4)], [(0, 1), (1, 3), (3, 4)]):
        assert generate(stages_of(folder, cuts)) == expected, cuts
    assert len({token_id for tokens in expected for token_id in tokens}) > 10


def test_a_context_is_usable_to_its_last_position(tmp_path: Path) -> None:
    folder = write("GPT2", tmp_path / "model")
    stages = stages_of(folder, [(0, 2), (2, 4)])
    schedule = Schedule(1, len(PROMPTS), 48, CONTEXT)
    full, short = Sequence("full", [3] * CONTEXT), Sequence("short", [4] * 20)
    schedule.add(full)
    schedule.add(short)

    for _ in range(2):
        issue = schedule.issue()
        assert issue is not None
        hidden = torch.tensor(issue.token_ids)
        for stage in stages:
            hidden = stage.forward(issue.step, hidden)
        schedule.apply(draw(hidden, issue.step.rows))

    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        logits = whole(torch.tensor([[3] * CONTEXT])).logits[0, -1]
    assert full.token_ids[-1] == int(logits.argmax())


def test_a_stage_reads_the_weights_of_its_layers_only(tmp_path: Path) -> None:
    folder = write("Llama", tmp_path / "model")

    parts = [surgery.build(folder, cut, torch.float32) for cut in ((0, 2), (2, 3), (3, 4))]
    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    sizes = [sum(p.numel() for p in part.model.parameters()) for part in parts]
    layer = sum(p.numel() for p in whole.model.layers[0].parameters())
    table = whole.lm_head.weight.numel()
    norm = whole.model.norm.weight.numel()
    assert sizes == [table + 2 * layer, layer, layer + norm + table]
    assert all(not p.is_meta for part in parts for p in part.model.parameters())


def test_a_model_that_changes_its_input_before_the_layers_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write("Gemma", tmp_path / "model")
    forward = transformers.GemmaModel.forward

    def scaling(self: Any, **arguments: Any) -> Any:
        if arguments.get("inputs_embeds") is not None:
            arguments["inputs_embeds"] = arguments["inputs_embeds"] * 8.0
        return forward(self, **arguments)

    monkeypatch.setattr(transformers.GemmaModel, "forward", scaling)

    surgery.build(folder, (0, 2), torch.float32)
    with pytest.raises(ValueError, match="cannot be cut into stages"):
        surgery.build(folder, (2, 4), torch.float32)


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = write("Llama", tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.3.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    surgery.build(folder, (0, 3), torch.float32)
    with pytest.raises(ValueError, match="up_proj"):
        surgery.build(folder, (3, 4), torch.float32)
