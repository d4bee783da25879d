"""Stages of encoders with random weights, one after the other, against the unsplit model."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from handlers.pipeline.encoder_stage import (
    FAMILIES,
    EncoderStage,
    Pooling,
    max_positions,
    read_config,
)

SMALL = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "vocab_size": 50,
    "max_position_embeddings": 40,
}
CPU = torch.device("cpu")


def write_model(folder, family, **save):
    """A checkpoint as transformers writes it, and the model that is in it."""
    config = transformers.AutoConfig.for_model(family, **SMALL)
    torch.manual_seed(7)
    model = transformers.AutoModel.from_config(config, add_pooling_layer=False).eval()
    model.save_pretrained(folder, **save)
    return model


def batch():
    token_ids = torch.arange(30).reshape(3, 10) % 40 + 5
    mask = torch.arange(10)[None] < torch.tensor([10, 1, 6])[:, None]
    return token_ids, mask


def chained(folder, cuts):
    x, mask = batch()
    with torch.no_grad():
        for cut in pairwise(cuts):
            x = EncoderStage(folder, cut, torch.float32, CPU)(x, attention_mask=mask)
    return x


def mean(model):
    token_ids, mask = batch()
    with torch.no_grad():
        states = model(input_ids=token_ids, attention_mask=mask).last_hidden_state
    return torch.stack([row[keep].mean(0) for row, keep in zip(states, mask, strict=True)])


@pytest.mark.parametrize("cuts", [(0, 3), (0, 1, 3), (0, 1, 2, 3)])
@pytest.mark.parametrize("family", FAMILIES)
def test_stages_in_a_row_are_the_model(family, cuts, tmp_path):
    model = write_model(tmp_path, family)

    assert torch.allclose(chained(tmp_path, cuts), mean(model), atol=1e-5)


def test_weights_in_several_files_are_found(tmp_path):
    model = write_model(tmp_path, "bert", max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1

    assert torch.allclose(chained(tmp_path, (0, 1, 3)), mean(model), atol=1e-5)


def test_weights_saved_under_a_head_are_found(tmp_path):
    config = transformers.AutoConfig.for_model("bert", **SMALL)
    whole = transformers.AutoModelForMaskedLM.from_config(config).eval()
    whole.save_pretrained(tmp_path)

    assert torch.allclose(chained(tmp_path, (0, 2, 3)), mean(whole.bert), atol=1e-5)


def test_a_stage_holds_its_own_layers_only(tmp_path):
    model = write_model(tmp_path, "bert")
    per_layer = sum(p.numel() for p in model.encoder.layer[0].parameters())

    stage = EncoderStage(tmp_path, (1, 3), torch.float32, CPU)

    assert sum(p.numel() for p in stage.parameters()) == 2 * per_layer


def test_roberta_loses_the_positions_before_its_first(tmp_path):
    write_model(tmp_path, "roberta")

    assert max_positions(read_config(tmp_path)) == 38


def test_a_checkpoint_that_lacks_a_tensor_is_refused(tmp_path):
    write_model(tmp_path, "bert")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))

    with pytest.raises(ValueError, match=r"has no tensor bert\.encoder\.layer\.3\."):
        EncoderStage(tmp_path, (3, 4), torch.float32, CPU)


def write_modules(folder, *kinds, pooling="mean_tokens"):
    paths = {"Pooling": "1_Pooling"}
    modules = [
        {"type": f"sentence_transformers.models.{k}", "path": paths.get(k, "")} for k in kinds
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({f"pooling_mode_{pooling}": True}))


def test_pooling_is_what_the_models_files_say(tmp_path):
    write_modules(tmp_path, "Transformer", "Pooling", "Normalize", pooling="cls_token")

    assert Pooling.of(tmp_path) == Pooling("cls", is_normalized=True)


def test_without_modules_it_is_the_mean_as_it_is(tmp_path):
    assert Pooling.of(tmp_path) == Pooling("mean", is_normalized=False)


def test_a_step_that_is_not_done_here_is_refused(tmp_path):
    write_modules(tmp_path, "Transformer", "Pooling", "Dense")

    with pytest.raises(ValueError, match="has a step Dense"):
        Pooling.of(tmp_path)


def test_a_pooling_that_is_not_done_here_is_refused(tmp_path):
    write_modules(tmp_path, "Transformer", "Pooling", pooling="max_tokens")

    with pytest.raises(ValueError, match="allowed is one of: mean, cls"):
        Pooling.of(tmp_path)
