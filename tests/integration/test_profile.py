"""What a decoder's parts are measured to cost: sizes exactly, times as far as noise allows."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

from handlers.pipeline import cache, kv_budget, plan_command, profile, surgery
from handlers.pipeline.part_costs import Profile
from handlers.pipeline.partition import TOLERANCE, Device, plan
from handlers.pipeline.stage import Stage
from handlers.testing.random_model import write_random_model

FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Gemma": {"tie_word_embeddings": True},
    "Gemma2": {"sliding_window": 8},
    "Gemma3Text": {"sliding_window": 8, "sliding_window_pattern": 2},
    "Qwen3": {},
    "Mixtral": {"num_local_experts": 3, "num_experts_per_tok": 2},
    "GPT2": {},
    "OPT": {"ffn_dim": 128, "word_embed_proj_dim": 64},
}
#: Families whose layers differ in kind.
MIXED = {"Gemma2", "Gemma3Text"}
#: Two processes that import torch while others use the machine.
pytestmark = pytest.mark.timeout(150)

CPU = torch.device("cpu")
BRIEFLY = 0.05


def write_config(folder: Path, family: str = "Llama", **settings: Any) -> Path:
    """A folder with a configuration and no weights."""
    sizes: dict[str, Any] = {
        "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "max_position_embeddings": 512,
    }  # fmt: skip
    if family in ("GPT2", "OPT"):
        del sizes["num_key_value_heads"], sizes["head_dim"], sizes["intermediate_size"]
    config = getattr(transformers, family + "Config")(**sizes | FAMILIES[family] | settings)
    config.save_pretrained(folder)
    return folder


def measure(folder: Path, **how: Any) -> Profile:
    return profile.measure(folder, torch.float32, CPU, budget_s=BRIEFLY, **how)


def measured_at_once(folder: Path, repeats: list[str]) -> list[Profile]:
    """By one process each, as the stages of a replica do: they share this machine's cores."""
    with contextlib.ExitStack() as stack:
        stages = []
        for each in repeats:
            command = [sys.executable, "-m", "tests.integration.profile_stage", folder, each]
            stages.append(stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE)))
            # Before the wait that leaving the process means, however this ends.
            stack.callback(stages[-1].kill)
        return [Profile.from_document(json.loads(stage.communicate()[0])) for stage in stages]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_measured_without_weights(family: str, tmp_path: Path) -> None:
    measured = measure(write_config(tmp_path, family))

    assert len(measured.kind_of_layer) == 4
    assert len(measured.kinds) == (2 if family in MIXED else 1)
    assert all(seconds > 0 for part in measured.kinds for seconds in part.seconds)
    assert measured.free_bytes > 0
    assert measured.memory == "host"


def test_of_a_model_that_also_sees_only_the_decoder_is_measured(tmp_path: Path) -> None:
    text = AutoConfig.from_pretrained(write_config(tmp_path / "text", "Gemma3Text"))
    seeing = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    whole = transformers.Gemma3Config(text_config=text.to_dict(), vision_config=seeing)
    whole.save_pretrained(tmp_path)

    assert profile.count(tmp_path, torch.float32) == profile.count(tmp_path / "text", torch.float32)
    assert len(measure(tmp_path).kinds) == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_the_parts_weigh_what_the_model_weighs(family: str, tmp_path: Path) -> None:
    folder = write_config(tmp_path, family)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))

    costs = profile.count(folder, torch.float32)

    # A tied matrix is one of the model's parameters, once.
    assert costs.weight_bytes_of((0, 4)) == sum(p.nbytes for p in model.parameters())


@pytest.mark.parametrize("family", ["Llama", "Gemma2", "GPT2"])
def test_keys_and_values_take_what_a_stage_says(family: str, tmp_path: Path) -> None:
    folder = write_config(tmp_path, family)
    config = AutoConfig.from_pretrained(folder)
    write_random_model(config, folder)
    stage = Stage(surgery.build(folder, (1, 4), torch.float32), 2, 64)

    assert measure(folder).costs(1).kv_bytes_of((1, 4)) == stage.kv_bytes_per_block
    assert profile.count(folder, torch.float32).kv_bytes_of((1, 4)) == stage.kv_bytes_per_block


def test_layers_with_more_weights_take_longer(tmp_path: Path) -> None:
    small = measure(write_config(tmp_path / "small", hidden_size=256))
    large = measure(write_config(tmp_path / "large", hidden_size=1024, intermediate_size=4096))

    assert large.costs(4).layers[0].seconds > 2 * small.costs(4).layers[0].seconds


def test_a_large_vocabulary_takes_layers_from_the_last_stage(tmp_path: Path) -> None:
    folder = write_config(
        tmp_path, vocab_size=20_000, hidden_size=256, intermediate_size=512, num_hidden_layers=8
    )
    device = Device(measure(folder, rows=(4,)).costs(4))

    counts = plan([device] * 2, tolerance=TOLERANCE).counts

    assert counts[0] > counts[1]


def test_what_is_done_to_a_stage_is_done_to_every_piece(tmp_path: Path) -> None:
    seen: list[surgery.StageModel] = []

    measure(write_config(tmp_path), prepare=seen.append)

    assert [(parts.config.num_hidden_layers, parts.is_last) for parts in seen] == [
        (0, False), (4, False), (0, True),
    ]  # fmt: skip


def test_a_profile_survives_the_way_through_json(tmp_path: Path) -> None:
    measured = measure(write_config(tmp_path, "Gemma2"))

    assert Profile.from_document(json.loads(json.dumps(measured.to_document()))) == measured


def test_a_model_that_is_no_decoder_is_refused(tmp_path: Path) -> None:
    transformers.ViTConfig().save_pretrained(tmp_path)

    with pytest.raises(ValueError, match="ViTConfig"):
        profile.measure(tmp_path, torch.float32, CPU)


def test_the_budget_knows_the_cache_s_spare_blocks() -> None:
    assert kv_budget.NUM_SPARE == cache.NUM_SPARE


def test_a_stage_on_a_slower_device_gets_fewer_layers(tmp_path: Path) -> None:
    folder = write_config(tmp_path, hidden_size=256, intermediate_size=512, num_hidden_layers=12)
    profiles = measured_at_once(folder, ["4", "1"])

    devices = [Device(each.costs(4), each.free_bytes, each.memory) for each in profiles]
    made = plan(devices, rows=4, tolerance=TOLERANCE)

    assert made.is_measured
    assert made.counts[0] <= 4


def test_the_command_prints_the_plan_and_starts_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan_command.main([str(write_config(tmp_path, num_hidden_layers=6)), "--stages", "3"])

    printed = capsys.readouterr().out
    assert "6 layers in 3 stages, cut chosen; estimated" in printed
    assert printed.count("  stage ") == 3


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="4 decoder layers cannot make 5 stages; allowed are 1"):
        plan_command.main([str(write_config(tmp_path)), "--stages", "5"])


def test_the_command_wants_a_model_s_folder(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"is no model's folder: it has no config\.json"):
        plan_command.main([str(tmp_path)])


def test_the_planner_is_a_command() -> None:
    command = [sys.executable, "-m", "handlers.pipeline.partition", "--help"]

    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert "how a model would be cut into stages" in printed
