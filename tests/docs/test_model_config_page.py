"""docs/model-configs.md has every key the schema knows, in the schema's own words."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from handlers import model_config
from handlers.model_schema import SECTIONS
from handlers.yaml_lines import KeyPath
from scheduler.torchserve.archive import MIN_RETRY_WINDOW_S, replica_settings
from tests.docs.pages import blocks, names, rows, section, text_of

PAGE = text_of("model-configs.md")
HEADINGS: dict[KeyPath, str] = {
    (): "## At the top: TorchServe's keys",
    ("torchrun",): "## `torchrun`",
    ("plait",): "## `plait`",
    ("plait", "source"): "## `plait.source`",
    ("plait", "scale"): "## `plait.scale`",
}
EXAMPLE = next(b.code for b in blocks("yaml") if "deviceType" in b.code)


def table(path: KeyPath) -> dict[str, list[str]]:
    return {names(row[0])[0]: row for row in rows(section(PAGE, HEADINGS[path]))}


@pytest.mark.parametrize("path", SECTIONS, ids=str)
def test_the_table_has_every_key_and_no_other(path: KeyPath) -> None:
    keys, _ = SECTIONS[path]

    assert set(table(path)) == set(keys)


@pytest.mark.parametrize("path", SECTIONS, ids=str)
def test_what_may_stand_there_is_what_the_check_says(path: KeyPath) -> None:
    keys, _ = SECTIONS[path]
    said = {key: check(object()) for key, check in keys.items()}

    assert {key: row[1] for key, row in table(path).items()} == said


@pytest.mark.parametrize("path", SECTIONS, ids=str)
def test_exactly_the_keys_that_must_be_there_are_called_required(path: KeyPath) -> None:
    _, required = SECTIONS[path]

    assert {k for k, row in table(path).items() if row[2] == "required"} == set(required)


def test_the_example_is_a_model() -> None:
    config = model_config.parse(EXAMPLE, Path("mine.yaml"), model_config.engine_names())

    assert (config.name, config.num_stages) == ("mine", 2)


def test_defaults_are_the_code_s() -> None:
    text = EXAMPLE.replace("startupTimeout: 300\n", "")
    config = model_config.parse(text, Path("mine.yaml"), model_config.engine_names())
    settings = replica_settings(config, ())
    top, plait = table(()), table(("plait",))

    assert top["responseTimeout"][2] == str(settings["responseTimeout"])
    assert top["startupTimeout"][2] == str(settings["startupTimeout"])
    assert str(MIN_RETRY_WINDOW_S) in top["maxRetryTimeoutInSec"][2]
    assert settings["jobQueueSize"] == 2 * config.max_batch
    assert str(config.prefill_chunk) in plait["prefill_chunk"][2]
    assert plait["replicas"][2] == str(config.num_replicas)
    assert dataclasses.replace(config, partition=None, num_lanes=None) == config
