"""Replica folders and archives, as TorchServe's worker will find them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from handlers import model_config
from handlers.model_config import ModelConfig
from handlers.model_schema import PIPELINED_KEYS
from scheduler.torchserve.archive import (
    STATUS_FILE,
    ArchiveError,
    build_archive,
    build_replica,
    parse_replica_name,
    replica_name,
    replica_settings,
)

CONFIGS = Path(__file__).parents[2] / "model_configs"


def config(name: str = "demo") -> ModelConfig:
    return model_config.load(CONFIGS / f"{name}.yaml")


def state(folder: Path) -> dict[Path, tuple[int, int]]:
    """Which file is where, and when it was written."""
    return {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in [folder, *folder.rglob("*")]}


def outside_the_repository(folder: Path, code: str) -> str:
    """What ``code`` prints with nothing of ours to import but what is in ``folder``."""
    # -S leaves out site-packages and with it the editable install; what is imported from there
    # (yaml) is found by its own folder.
    import yaml

    libraries = str(Path(yaml.__file__).parents[1])
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{folder}:{libraries}"}
    command = [sys.executable, "-S", "-W", "error", "-c", code]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_model_loads_and_builds(path, tmp_path):
    model = model_config.load(path)
    devices = model.device_ids or ()

    folder = build_replica(model, tmp_path, 0, devices)

    assert model_config.load(folder / "model-config.yaml").name == path.stem


def test_load_folder_finds_the_shipped_models_by_name():
    assert {"demo", "gemma-2b", "minilm"} <= model_config.load_folder(CONFIGS).keys()


def test_load_folder_lists_the_mistakes_of_all_files(tmp_path):
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text("deviceType: tpu\n")

    with pytest.raises(model_config.ModelConfigError) as caught:
        model_config.load_folder(tmp_path)

    assert {line.split(":")[0] for line in caught.value.lines} == {
        str(tmp_path / "one.yaml"),
        str(tmp_path / "two.yaml"),
    }


def test_a_file_load_folder_would_pass_over_is_a_mistake(tmp_path):
    (tmp_path / "demo.yml").write_text("")

    with pytest.raises(model_config.ModelConfigError, match=r"demo\.yml:1: is not read"):
        model_config.load_folder(tmp_path)


def test_a_file_that_says_another_models_name_is_a_mistake(tmp_path):
    text = (CONFIGS / "demo.yaml").read_text().replace("plait:\n", "plait:\n  name: other\n")
    (tmp_path / "demo.yaml").write_text(text)

    with pytest.raises(model_config.ModelConfigError, match=r"plait\.name: is other"):
        model_config.load_folder(tmp_path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(model_config.ModelConfigError, match=r"none\.yaml:1: cannot be read"):
        model_config.load(tmp_path / "none.yaml")


def test_the_manifest_names_the_replica_its_handler_and_its_settings(tmp_path):
    folder = build_replica(config(), tmp_path, 3, ())

    assert folder == tmp_path / "demo__r3"
    manifest = json.loads((folder / "MAR-INF" / "MANIFEST.json").read_text())
    assert manifest["model"] == {
        "modelName": "demo__r3",
        "handler": "text_generation_handler.py",
        "modelVersion": "1.0",
        "configFile": "model-config.yaml",
    }


def test_the_worker_reads_the_same_settings_from_the_folder(tmp_path):
    model = config()
    folder = build_replica(model, tmp_path, 0, ())

    found = model_config.load(folder / "model-config.yaml")

    assert replace(found, torchserve={}) == replace(model, torchserve={})


def test_the_worker_reads_every_setting_of_the_engine(tmp_path):
    model = replace(
        config(),
        partition_by="estimated",
        repartitions=False,
        gap_factor=3.5,
        prefix_cache=False,
        kv_memory_bytes=3 * 2**29 + 1,
        kernels="packed",
        compiles=True,
        quantize="int4",
        resume="exact",
    )
    for given in (model, replace(model, partition=(4, 4), partition_by="measured")):
        folder = build_replica(given, tmp_path, 0, ())

        found = model_config.load(folder / "model-config.yaml")
        assert replace(found, torchserve={}) == replace(given, torchserve={})


def test_the_worker_reads_the_options_of_another_engine(tmp_path):
    options = {"enforce_eager": True, "limits": {"image": 2}}
    model = replace(config(), engine="transformers", num_stages=1, engine_options=options)

    settings = replica_settings(model, ())["plait"]

    assert settings["engine_options"] == options
    assert not set(PIPELINED_KEYS) & set(settings)


def test_what_the_engine_tells_of_itself_leaves_a_folder_as_it_is(tmp_path):
    folder = build_replica(config(), tmp_path, 0, ())
    (folder / STATUS_FILE).write_text("{}")
    (folder / f".{STATUS_FILE}.4711").write_text('{"epoch"')
    before = state(folder)

    build_replica(config(), tmp_path, 0, ())

    assert state(folder) == before


def test_a_replica_is_one_worker_with_nothing_left_to_torchserves_defaults(tmp_path):
    folder = build_replica(config(), tmp_path, 0, ())

    settings = model_config.load(folder / "model-config.yaml").torchserve
    assert (settings["minWorkers"], settings["maxWorkers"]) == (1, 1)
    assert (settings["responseTimeout"], settings["startupTimeout"]) == (60, 300)
    assert settings["jobQueueSize"] >= settings["batchSize"]
    assert settings["maxRetryTimeoutInSec"] >= settings["startupTimeout"]
    assert settings["torchrun"]["rdzv-endpoint"] == "localhost:0"
    assert "deviceIds" not in settings


def test_each_replica_has_its_own_devices(tmp_path):
    model = config("gemma-2b")
    folders = [build_replica(model, tmp_path, i, ids) for i, ids in enumerate([(0, 1), (2, 3)])]

    found = [model_config.load(folder / "model-config.yaml").device_ids for folder in folders]
    assert found == [(0, 1), (2, 3)]


def test_a_replica_with_too_few_devices_is_refused(tmp_path):
    with pytest.raises(ArchiveError, match="has 2 ranks and needs as many devices"):
        build_replica(config("gemma-2b"), tmp_path, 0, (0,))


def test_devices_for_a_model_on_cpus_are_refused(tmp_path):
    with pytest.raises(ArchiveError, match="runs on cpu"):
        build_replica(config(), tmp_path, 0, (0, 1))


def test_the_folder_is_self_contained(tmp_path):
    folder = build_replica(config(), tmp_path, 0, ())
    code = (
        "import handlers.model_config, handlers.wire, pathlib;"
        "model = handlers.model_config.load(pathlib.Path('model-config.yaml'));"
        "print(handlers.__file__, model.name)"
    )

    assert outside_the_repository(folder, code) == f"{folder}/handlers/__init__.py demo"


@pytest.mark.parametrize("name", ["demo", "minilm"])
def test_the_entry_file_has_one_class_and_imports_from_the_folder(name, tmp_path):
    folder = build_replica(config(name), tmp_path, 0, ())
    entry = config(name).handler
    code = (
        f"import {entry} as entry, handlers.lifecycle;"
        "print(handlers.lifecycle.__file__,"
        "[k for k, v in vars(entry).items() if getattr(v, '__module__', '') == entry.__name__])"
    )

    said = outside_the_repository(folder, code)

    assert said.startswith(f"{folder}/handlers/lifecycle.py ['")
    assert said.count("Handler") == 1


def test_the_folder_holds_no_tests_no_bytecode_and_no_other_entry_file(tmp_path):
    folder = build_replica(config(), tmp_path, 0, ())

    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert "handlers/engines/pipelined.py" in files
    assert [file for file in files if file.endswith("_handler.py")] == [
        "text_generation_handler.py"
    ]
    assert not [file for file in files if "test" in file.split("/")[-1] or "testing" in file]
    assert not [file for file in files if not file.endswith((".py", ".yaml", "MANIFEST.json"))]


def test_building_again_writes_nothing(tmp_path):
    folder = build_replica(config(), tmp_path, 0, ())
    before = state(folder)

    build_replica(config(), tmp_path, 0, ())

    assert state(folder) == before


def test_bytecode_a_worker_left_is_no_reason_to_build_again(tmp_path):
    folder = build_replica(config(), tmp_path, 0, ())
    outside_the_repository(folder, "import handlers.wire")
    before = state(folder)

    build_replica(config(), tmp_path, 0, ())

    assert state(folder) == before


@pytest.mark.parametrize("harm", ["edited", "removed", "added", "half"])
def test_a_folder_that_is_not_right_is_made_anew(harm, tmp_path):
    folder = build_replica(config(), tmp_path, 0, ())
    good = {path: path.read_bytes() for path in folder.rglob("*.py")}
    wire = folder / "handlers" / "wire.py"
    match harm:
        case "edited":
            wire.write_text("broken")
        case "removed":
            wire.unlink()
        case "added":
            (folder / "handlers" / "old.py").write_text("")
        case "half":
            (folder / "MAR-INF" / "MANIFEST.json").write_text("{")

    build_replica(config(), tmp_path, 0, ())

    assert {path: path.read_bytes() for path in folder.rglob("*.py")} == good
    assert json.loads((folder / "MAR-INF" / "MANIFEST.json").read_text())


def test_changed_settings_replace_the_folder(tmp_path):
    build_replica(config(), tmp_path, 0, ())
    folder = build_replica(replace(config(), max_context=512), tmp_path, 0, ())

    assert model_config.load(folder / "model-config.yaml").max_context == 512


def test_nothing_is_left_beside_the_folder_not_even_of_a_killed_build(tmp_path):
    (tmp_path / ".building-demo__r0-abc").mkdir(parents=True)

    build_replica(config(), tmp_path, 0, ())

    assert [path.name for path in tmp_path.iterdir()] == ["demo__r0"]


def test_a_build_that_fails_leaves_the_old_folder(tmp_path, monkeypatch):
    folder = build_replica(config(), tmp_path, 0, ())
    before = state(folder)
    monkeypatch.setattr(sys, "executable", "/bin/false")

    with pytest.raises(ArchiveError, match="torch-model-archiver failed: exit status 1"):
        build_replica(replace(config(), max_context=512), tmp_path, 0, ())

    assert state(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["demo__r0"]


def test_an_archive_has_the_package_and_refers_to_the_weights(tmp_path):
    archive = build_archive(config(), tmp_path / "out")

    assert archive == tmp_path / "out" / "demo.mar"
    with zipfile.ZipFile(archive) as found:
        names = set(found.namelist())
    assert {"text_generation_handler.py", "handlers/wire.py", "model-config.yaml"} <= names
    assert not [name for name in names if name.endswith(".safetensors")]


def test_an_archive_with_weights_serves_them_from_where_it_is_unpacked(tmp_path):
    archive = build_archive(config(), tmp_path / "demo.mar", with_weights=True)
    with zipfile.ZipFile(archive) as found:
        found.extractall(tmp_path / "unpacked")

    model = model_config.load(tmp_path / "unpacked" / "model-config.yaml")

    weights = Path(model.source.location)
    assert weights == tmp_path / "unpacked" / "weights"
    source = Path(config().source.location)
    for file in source.glob("*.safetensors"):
        assert (weights / file.name).read_bytes() == file.read_bytes()


def test_what_a_download_hid_beside_the_weights_stays_out(tmp_path):
    source = tmp_path / "model"
    (source / ".cache").mkdir(parents=True)
    (source / ".cache" / "seen.json").write_text("{}")
    (source / "config.json").write_text("{}")
    model = replace(config(), source=model_config.Source("folder", str(source)))

    archive = build_archive(model, tmp_path, with_weights=True)

    with zipfile.ZipFile(archive) as found:
        weights = [name for name in found.namelist() if name.startswith("weights/")]
    assert weights == ["weights/config.json"]


def test_building_an_archive_again_writes_nothing(tmp_path):
    archive = build_archive(config(), tmp_path, with_weights=True)
    before = archive.stat()

    build_archive(config(), tmp_path, with_weights=True)

    assert (archive.stat().st_ino, archive.stat().st_mtime_ns) == (
        before.st_ino,
        before.st_mtime_ns,
    )


@pytest.mark.parametrize("model", ["demo", "gemma-2b", "a.b_c"])
@pytest.mark.parametrize("index", [0, 1, 17])
def test_a_replicas_name_is_read_back(model, index):
    assert parse_replica_name(replica_name(model, index)) == (model, index)


@pytest.mark.parametrize(
    "name", ["demo", "demo__r", "demo__r01", "demo__r-1", "__r0", "demo__rx", "a__r1__r2", "1__r0"]
)
def test_a_name_that_is_no_replicas_is_not_read(name):
    assert parse_replica_name(name) is None
