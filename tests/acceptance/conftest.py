"""One Plait for all acceptance tests, and what an undisturbed, unsplit model would answer."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.acceptance.system import System


def write_configs(folder: Path, root: Path) -> Path:
    """The shipped configs, and ``solo``: the demo model in one rank."""
    folder.mkdir()
    for name in ("demo", "minilm"):
        config = yaml.safe_load((root / "model_configs" / f"{name}.yaml").read_text())
        if "folder" in config["plait"]["source"]:
            config["plait"]["source"]["folder"] = str(root / config["plait"]["source"]["folder"])
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
        if name == "demo":
            config["torchrun"]["nproc-per-node"] = 1
            (folder / "solo.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture(scope="session")
def configs(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    return write_configs(tmp_path_factory.mktemp("configs") / "model_configs", root)


@pytest.fixture(scope="session")
def system(tmp_path_factory: pytest.TempPathFactory, configs: Path) -> Iterator[System]:
    """A Plait that serves demo (two ranks), solo (one rank) and minilm (two ranks)."""
    running = System(tmp_path_factory.mktemp("plait"), configs, "demo,solo,minilm")
    running.start()
    yield running
    running.stop()


class Reference:
    """The demo model, whole, in this process, through transformers alone."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    @functools.cache  # noqa: B019  # one instance a session, and generation is what takes time here
    def tokens(self, prompt: str, max_new_tokens: int, *, ignore_eos: bool = False) -> list[int]:
        """Greedy continuation by ``generate``, as token ids."""
        import torch

        encoded = self.tokenizer(prompt, return_tensors="pt")
        with torch.inference_mode():
            output = self.model.generate(
                **encoded,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                eos_token_id=-1 if ignore_eos else self.model.generation_config.eos_token_id,
            )
        new: list[int] = output[0, encoded["input_ids"].shape[1] :].tolist()
        return new

    def text(self, prompt: str, max_new_tokens: int) -> str:
        return str(
            self.tokenizer.decode(self.tokens(prompt, max_new_tokens), skip_special_tokens=True)
        )


@pytest.fixture(scope="session")
def reference(demo_folder: Path) -> Reference:
    return Reference(demo_folder)
