"""What a provider's YAML may say, and what is told of one that is wrong."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from scheduler.errors import StartupError
from scheduler.provider_config import load_folder, secret_variables
from scheduler.providers.base import ProviderConfig

SALAD: dict[str, Any] = {
    "kind": "salad",
    "max_containers": 3,
    "settings": {"organization": "acme", "project": "p", "container_group": "g"},
    "secrets": {"api_key": "SALAD_API_KEY"},
}
ENVIRONMENT = {"SALAD_API_KEY": "s3cret"}


def load(folder: Path, document: Any, name: str = "here") -> ProviderConfig:
    text = document if isinstance(document, str) else yaml.safe_dump(document, sort_keys=False)
    (folder / f"{name}.yaml").write_text(text)
    [config] = load_folder(folder, ["demo"], ENVIRONMENT)
    return config


def test_a_folder_that_is_not_there_has_no_providers(tmp_path: Path) -> None:
    assert load_folder(tmp_path / "nowhere", [], {}) == []


def test_a_provider_is_named_after_its_file_and_has_its_secret(tmp_path: Path) -> None:
    config = load(tmp_path, {**SALAD, "models": ["demo"], "price_per_hour": 0.5})

    assert (config.name, config.kind, config.price_per_hour) == ("here", "salad", 0.5)
    assert (config.models, config.secrets) == (("demo",), {"api_key": "s3cret"})
    assert "s3cret" not in repr(config)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"kind": "sald"}, "1: kind: 'sald' is none of the providers there are: kubernetes, local"),
        ({"max_containers": -1}, "2: max_containers: must be a whole number from 0; it is -1"),
        ({"max_containers": 10**6}, "2: max_containers: must be at most 1000"),
        ({"max_container": 1}, "9: max_container: unknown key; did you mean 'max_containers'"),
        ({"min_containers": 4}, "9: min_containers: is 4, more than max_containers, which is 3"),
        ({"models": ["dmeo"]}, "10: models[0]: there is no model 'dmeo'; there are: demo"),
        ({"settings": {"project": "p"}}, "settings.organization: is missing; it must be a text"),
        ({"secrets": {}}, "secrets.api_key: is missing"),
        ({"secrets": {"api_key": "s3cret"}}, "must be the name of an environment variable"),
        ({"secrets": {"api_key": "OTHER"}}, "the environment variable OTHER is not set"),
        ({"secrets": {"api_key": "PLAIT_KEY"}}, "those that begin with PLAIT_ are settings"),
        ({"kind": "local", "settings": {"command": "x"}, "secrets": {}}, "must be a list of words"),
    ],
)
def test_what_is_wrong_is_told_with_file_line_and_key(
    tmp_path: Path, changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(StartupError, match=re.escape(complaint)) as told:
        load(tmp_path, {**SALAD, **changes})

    assert f"{tmp_path / 'here.yaml'}:" in str(told.value)


@pytest.mark.parametrize("text", ["", "[]", "kind: local\nkind: salad", "kind: {"])
def test_what_is_no_provider_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(StartupError, match=r"here\.yaml:\d"):
        load(tmp_path, text)


def test_problems_of_all_files_are_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("kind: local")
    (tmp_path / "b.yml").write_text("")

    with pytest.raises(StartupError, match=r"(?s)b\.yml:1: is not read.*a\.yaml:1: max_containers"):
        load_folder(tmp_path, [], {})


def test_a_name_that_cannot_be_part_of_a_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="the provider's name 'My_Cloud' must match"):
        load(tmp_path, SALAD, "My_Cloud")


def test_a_token_is_needed_only_where_a_server_is_named(tmp_path: Path) -> None:
    own = {"workload": "deployment/plait"}
    load(tmp_path, {"kind": "kubernetes", "max_containers": 1, "settings": own})

    remote = {**own, "server": "https://k8s.example"}
    with pytest.raises(StartupError, match=r"secrets\.token: is missing"):
        load(tmp_path, {"kind": "kubernetes", "max_containers": 1, "settings": remote})


def test_variables_with_secrets_are_known_even_of_a_file_that_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(yaml.safe_dump({"secrets": {"api_key": "A_KEY"}}))
    (tmp_path / "b.yaml").write_text("kind: {")

    assert secret_variables(tmp_path) == {"A_KEY"}
