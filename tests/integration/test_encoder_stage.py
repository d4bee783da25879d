"""Stages of encoders with random weights, one after the other, against the unsplit model."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
import torch
import transformers

from handlers.pipeline import encoder_check
from handlers.pipeline.encoder_stage import EncoderStage, Pooling, max_positions
from handlers.pipeline.encoder_surgery import count_weights

FAMILIES = (
    "bert", "camembert", "distilbert", "electra", "mpnet", "roberta", "xlm-roberta", "modernbert",
)  # fmt: skip

SMALL = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "vocab_size": 50,
    "max_position_embeddings": 40,
}
CPU = torch.device("cpu")


OWN = {"modernbert": {"local_attention": 8, "global_attn_every_n_layers": 2}}


def write_model(folder, family, task="embed", **save):
    """A checkpoint as transformers writes it, and the model that is in it."""
    common = SMALL | {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3, "num_labels": 3}
    config = transformers.AutoConfig.for_model(family, **common | OWN.get(family, {}))
    if family == "modernbert":
        config.cls_token_id, config.sep_token_id = 2, 3
    torch.manual_seed(7)
    classes = {"embed": transformers.AutoModel}
    classes["classify"] = transformers.AutoModelForSequenceClassification
    model = classes[task].from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    model.save_pretrained(folder, **save)
    return model


def batch():
    token_ids = torch.arange(30).reshape(3, 10) % 40 + 5
    mask = torch.arange(10)[None] < torch.tensor([10, 1, 6])[:, None]
    return token_ids, mask


def chained(folder, cuts, task="embed"):
    x, mask = batch()
    with torch.no_grad():
        for cut in pairwise(cuts):
            x = EncoderStage(folder, cut, torch.float32, CPU, task)(x, attention_mask=mask)
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


@pytest.mark.parametrize("cuts", [(0, 3), (0, 1, 3), (0, 1, 2, 3)])
@pytest.mark.parametrize("family", FAMILIES)
def test_stages_in_a_row_are_the_classifier(family, cuts, tmp_path):
    model = write_model(tmp_path, family, "classify")
    token_ids, mask = batch()
    with torch.no_grad():
        expected = model(input_ids=token_ids, attention_mask=mask).logits

    assert torch.allclose(chained(tmp_path, cuts, "classify"), expected, atol=1e-5)
    assert expected.shape == (3, 3)
    assert expected.std() > 0.01


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


def test_only_the_last_stage_holds_a_classifiers_head(tmp_path):
    model = write_model(tmp_path, "distilbert", "classify")
    head = [model.pre_classifier, model.classifier]
    layers, table, behind = count_weights(tmp_path, "classify")

    stages = [
        EncoderStage(tmp_path, cut, torch.float32, CPU, "classify") for cut in ((0, 2), (2, 3))
    ]

    sizes = [sum(p.numel() for p in stage.parameters()) for stage in stages]
    assert behind == sum(p.numel() for module in head for p in module.parameters())
    assert sizes == [table + 2 * layers[0], layers[2] + behind]


def test_roberta_loses_the_positions_before_its_first(tmp_path):
    write_model(tmp_path, "roberta")

    assert max_positions(tmp_path, "embed") == 38


def test_bert_has_all_its_positions(tmp_path):
    write_model(tmp_path, "bert", "classify")

    assert max_positions(tmp_path, "classify") == 40


def test_a_checkpoint_that_lacks_a_tensor_is_refused(tmp_path):
    write_model(tmp_path, "bert")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))

    with pytest.raises(ValueError, match=r"lack or misfit \['encoder\.layer\.3\."):
        EncoderStage(tmp_path, (3, 4), torch.float32, CPU)


def test_an_embedding_model_has_no_classifiers_head_to_offer(tmp_path):
    write_model(tmp_path, "bert")

    with pytest.raises(ValueError, match=r"lack or misfit .*classifier"):
        EncoderStage(tmp_path, (1, 3), torch.float32, CPU, "classify")


@pytest.mark.parametrize("family", ["Bert", "DistilBert", "Electra", "ModernBert"])
@pytest.mark.parametrize("task", ["embed", "classify"])
def test_an_encoder_at_its_real_size_is_tried_and_found_good(task, family, tmp_path):
    config = getattr(transformers, family + "Config")()
    config.save_pretrained(tmp_path)

    encoder_check.check(tmp_path, [(0, 2), (2, config.num_hidden_layers)], task)


@pytest.mark.parametrize("family", ["Albert", "XLNet", "Gemma"])
def test_an_encoder_that_cannot_be_cut_is_refused_by_name(family, tmp_path):
    getattr(transformers, family + "Config")(num_hidden_layers=4).save_pretrained(tmp_path)

    with pytest.raises(ValueError, match=f"split {family.lower()} models"):
        encoder_check.check(tmp_path, [(0, 2), (2, 4)], "classify")


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
