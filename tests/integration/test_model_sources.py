"""Where a model's files are found, and what is said when they are not."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from handlers import model_config
from handlers.model_config import ModelConfig, Source
from handlers.sources import SourceNotFound, resolve_source

CONFIG = Path(__file__).parents[2] / "model_configs" / "demo.yaml"


def model(source: Source) -> ModelConfig:
    return replace(model_config.load(CONFIG), source=source)


def write_package(folder: Path, name: str) -> None:
    (folder / name / "weights").mkdir(parents=True)
    (folder / name / "__init__.py").write_text("raise RuntimeError('was imported')\n")
    (folder / name / "weights" / "config.json").write_text("{}")


def test_a_folder_is_itself(tmp_path):
    (tmp_path / "config.json").write_text("{}")

    assert resolve_source(model(Source("folder", str(tmp_path)))) == tmp_path


def test_a_missing_folder_is_named_with_its_model(tmp_path):
    missing = tmp_path / "none"

    with pytest.raises(SourceNotFound, match=f"model demo: there is no folder {missing}"):
        resolve_source(model(Source("folder", str(missing))))


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(SourceNotFound, match=r"holds no config\.json"):
        resolve_source(model(Source("folder", str(tmp_path))))


def test_a_package_is_found_without_importing_it(tmp_path, monkeypatch):
    write_package(tmp_path, "some_weights")
    monkeypatch.syspath_prepend(tmp_path)

    found = resolve_source(model(Source("package", "some_weights", subfolder="weights")))

    assert found == tmp_path / "some_weights" / "weights"
    assert "some_weights" not in sys.modules


@pytest.mark.parametrize("name", ["no_such_package", "no_such.package", "json.decoder", ""])
def test_what_is_no_package_is_named(name):
    with pytest.raises(SourceNotFound, match="is not installed here"):
        resolve_source(model(Source("package", name)))


def test_a_package_without_the_folder_is_named(tmp_path, monkeypatch):
    write_package(tmp_path, "other_weights")
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(SourceNotFound, match="has no folder 'model'"):
        resolve_source(model(Source("package", "other_weights", subfolder="model")))


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """The hub's client without network and with an empty cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def test_a_repository_that_is_in_the_cache_needs_no_network(offline):
    repository = offline / "models--some--model"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")

    assert resolve_source(model(Source("hub", "some/model"))) == snapshot


def test_a_repository_that_cannot_be_reached_says_what_to_do(offline):
    with pytest.raises(SourceNotFound, match="fetch it once with network access"):
        resolve_source(model(Source("hub", "some/other-model")))


def test_what_is_no_hub_id_is_refused(offline):
    with pytest.raises(SourceNotFound, match="is no hub id"):
        resolve_source(model(Source("hub", "a b//c")))
