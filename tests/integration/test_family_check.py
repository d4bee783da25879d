"""Which models may be cut into stages, found out by trying; and what the others are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers
from torch import nn

from handlers.pipeline import family_check
from handlers.pipeline.thin_config import RECIPES, thin_config

CUTS = [(0, 2), (2, 4)]
ADVICE = "engine: transformers"


def folder_of(family: str, folder: Path, **settings: Any) -> Path:
    """A model's folder with its configuration; the check needs no more."""
    layers = {} if "num_layers" in settings else {"num_hidden_layers": 4}
    getattr(transformers, family + "Config")(**layers | settings).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "family", ["Llama", "Gemma", "Gemma2", "Gemma3Text", "Qwen2", "Qwen3", "Mistral", "Phi", "Phi3"]
)
def test_a_family_at_its_real_size_is_tried_and_found_good(family: str, tmp_path: Path) -> None:
    family_check.check(folder_of(family, tmp_path), CUTS, 4096)


def test_a_model_that_also_sees_is_tried_with_its_text(tmp_path: Path) -> None:
    transformers.Gemma3Config().save_pretrained(tmp_path)

    family_check.check(tmp_path, [(0, 11), (11, 26)], 4096)


@pytest.mark.parametrize(
    ("family", "settings", "reason"),
    [
        ("Mamba", {}, "keeps a running state"),
        ("Jamba", {}, "keeps a running state"),
        ("T5", {}, "has an encoder"),
        ("Whisper", {}, "has an encoder"),
        ("Bloom", {}, "as stages keep them, it fails"),
        ("GPTNeo", {"num_layers": 4, "attention_types": [[["global", "local"], 2]]}, "differently"),
        ("Bert", {"is_decoder": True}, "as stages keep them, it fails"),
        ("ViT", {}, "no class that generates text"),
    ],
)
def test_what_cannot_be_cut_is_refused_with_the_reason_and_a_way_out(
    family: str, settings: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=f"{reason}.*{ADVICE}"):
        family_check.check(folder_of(family, tmp_path, **settings), CUTS, 512)


def test_attention_biased_by_distance_is_refused(tmp_path: Path) -> None:
    folder = folder_of("Falcon", tmp_path, alibi=True)

    with pytest.raises(ValueError, match=ADVICE):
        family_check.check(folder, CUTS, 512)


def test_layers_that_look_at_what_other_layers_kept_must_stay_together(tmp_path: Path) -> None:
    folder = folder_of("Gemma3nText", tmp_path, num_kv_shared_layers=2, layer_types=None)

    family_check.check(folder, [(0, 4)], 512)
    with pytest.raises(ValueError, match=f"keys and values of earlier ones.*{ADVICE}"):
        family_check.check(folder, CUTS, 512)


def test_a_family_nobody_knew_is_refused_when_its_stages_answer_differently(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of("Llama", tmp_path)
    forward = transformers.models.llama.modeling_llama.LlamaMLP.forward

    def distracted(self: nn.Module, hidden: Any) -> Any:
        # Something that only a whole sequence in one piece has: the states of its first token.
        return forward(self, hidden + 0.05 * hidden[:, :1])

    monkeypatch.setattr(transformers.models.llama.modeling_llama.LlamaMLP, "forward", distracted)

    with pytest.raises(ValueError, match=f"answers differently from the whole.*{ADVICE}"):
        family_check.check(folder, CUTS, 512)


def test_positions_that_depend_on_the_longest_sequence_are_refused(tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    folder = folder_of("Llama", tmp_path, max_position_embeddings=2048, rope_parameters=rope)

    family_check.check(folder, CUTS, 2048)
    with pytest.raises(ValueError, match="max_context is 2049, allowed are 2048"):
        family_check.check(folder, CUTS, 2049)


def test_a_thin_configuration_keeps_what_tells_layers_apart() -> None:
    config = transformers.Gemma3TextConfig()

    thin = thin_config(config, RECIPES[0])

    assert thin.layer_types == config.layer_types
    assert thin.num_hidden_layers == config.num_hidden_layers
    assert thin.num_attention_heads // thin.num_key_value_heads == 2
    assert thin.sliding_window < 16


def test_the_configuration_that_was_given_is_left_as_it_is() -> None:
    config = transformers.LlamaConfig()
    before = config.to_dict()

    thin_config(config, RECIPES[0])

    assert config.to_dict() == before
