"""What a stage is built of, and what is refused while it is built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from handlers.pipeline import surgery
from handlers.pipeline.stage import Stage
from handlers.pipeline.step import Row, Step
from handlers.testing.random_model import write_random_model

SIZES: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
VISION = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 28, "patch_size": 14,
}  # fmt: skip


def write(family: str, folder: Path, **settings: Any) -> Path:
    config = getattr(transformers, family + "Config")(**SIZES | settings)
    return write_random_model(config, folder, seed=5)


def write_gemma3_that_sees(folder: Path) -> Path:
    text = SIZES | {"head_dim": 8, "sliding_window": 8, "layer_types": None}
    config = transformers.Gemma3Config(
        text_config=text,
        vision_config=VISION,
        mm_tokens_per_image=4,
        image_token_index=90,
        boi_token_index=91,
        eoi_token_index=92,
    )
    return write_random_model(config, folder, seed=5)


def names(parts: surgery.StageModel) -> set[str]:
    return {name for name, _ in parts.model.named_parameters()}


def logits(stages: list[Stage], tokens: list[int]) -> Any:
    """After the last token."""
    step = Step(0, len(tokens), 64, (Row(0, 0, len(tokens), is_drawn=True),))
    hidden = torch.tensor([tokens])
    for stage in stages:
        hidden = stage.forward(step, hidden)
    return hidden[0]


def test_a_stage_has_the_weights_of_its_layers_only(tmp_path: Path) -> None:
    folder = write("Llama", tmp_path)

    parts = [surgery.build(folder, cut, torch.float32) for cut in ((0, 2), (2, 3), (3, 4))]
    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    sizes = [sum(p.numel() for p in part.model.parameters()) for part in parts]
    layer = sum(p.numel() for p in whole.model.layers[0].parameters())
    table = whole.lm_head.weight.numel()
    norm = whole.model.norm.weight.numel()
    assert sizes == [table + 2 * layer, layer, layer + norm + table]
    assert all(not p.is_meta for part in parts for p in part.model.parameters())


def test_a_tied_table_is_in_the_first_and_last_stage_only(tmp_path: Path) -> None:
    folder = write("Llama", tmp_path, tie_word_embeddings=True)

    parts = [surgery.build(folder, cut, torch.float32) for cut in ((0, 1), (1, 3), (3, 4))]

    table = "model.embed_tokens.weight"
    assert [table in names(part) for part in parts] == [True, False, True]


def test_of_a_model_that_also_sees_only_the_text_is_built(tmp_path: Path) -> None:
    folder = write_gemma3_that_sees(tmp_path)

    parts = [surgery.build(folder, cut, torch.float32) for cut in ((0, 3), (3, 4))]

    assert all("vision" not in name for part in parts for name in names(part))
    assert all("projector" not in name for part in parts for name in names(part))


def test_the_text_of_a_model_that_also_sees_goes_through_stages(tmp_path: Path) -> None:
    folder, tokens = write_gemma3_that_sees(tmp_path), list(range(3, 33))
    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        expected = whole(torch.tensor([tokens])).logits[0, -1]

    cuts = ((0, 1), (1, 3), (3, 4))
    stages = [Stage(surgery.build(folder, cut, torch.float32), 1, 64) for cut in cuts]

    assert torch.allclose(logits(stages, tokens), expected, atol=1e-4)


def test_weights_that_older_files_name_otherwise_are_found(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    folder = write("GPTNeoX", tmp_path)
    assert "embed_out.weight" in load_file(folder / "model.safetensors")

    parts = surgery.build(folder, (3, 4), torch.float32)

    assert "lm_head.head.weight" in names(parts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_scaling_in_the_decoders_forward_is_undone_behind_the_first_stage(
    dtype: Any, tmp_path: Path
) -> None:
    folder = write("Granite", tmp_path, embedding_multiplier=12.3)

    first = surgery.build(folder, (0, 2), dtype)
    second = surgery.build(folder, (2, 4), dtype)

    assert first.decoder.embedding_multiplier == 12.3
    assert second.decoder.embedding_multiplier == 1.0


def test_a_model_that_changes_its_input_before_the_layers_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write("Gemma", tmp_path)
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

    folder = write("Llama", tmp_path)
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.3.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    surgery.build(folder, (0, 3), torch.float32)
    with pytest.raises(ValueError, match="up_proj"):
        surgery.build(folder, (3, 4), torch.float32)


def test_weights_that_would_be_read_whole_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    folder = write("Llama", tmp_path)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()

    with pytest.raises(ValueError, match="no safetensors file"):
        surgery.build(folder, (0, 2), torch.float32)


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = write("Llama", tmp_path)
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"] = torch.zeros(3, 3)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(ValueError, match="up_proj"):
        surgery.build(folder, (0, 3), torch.float32)


def test_a_context_is_usable_to_its_last_position(tmp_path: Path) -> None:
    folder = write("GPT2", tmp_path, num_key_value_heads=None, n_positions=64)
    stages = [Stage(surgery.build(folder, cut, torch.float32), 1, 64) for cut in ((0, 2), (2, 4))]

    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        expected = whole(torch.tensor([[3] * 64])).logits[0, -1]

    assert torch.allclose(logits(stages, [3] * 64), expected, atol=1e-4)
