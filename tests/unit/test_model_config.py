"""What a model's YAML may say, and how each mistake is named."""

from __future__ import annotations

from typing import Any

import pytest

from handlers.model_schema import PIPELINED_KEYS
from tests.unit.model_files import GOOD, PATH, changed, config, problems


def test_a_right_file_becomes_a_record():
    model = config()

    assert (model.name, model.task, model.engine, model.dtype) == (
        "demo",
        "generate",
        "pipelined",
        "float32",
    )
    assert (model.num_stages, model.max_batch, model.num_replicas) == (2, 16, 2)
    assert (model.device_type, model.device_ids) == ("gpu", (0, 1, 2, 3))
    assert (model.partition, model.num_lanes) == (None, None)
    assert (model.response_timeout_s, model.startup_timeout_s) == (60, 300)


def test_torchserves_own_keys_are_kept_as_written():
    kept = config().torchserve

    assert kept["torchrun"]["rdzv-endpoint"] == "localhost:0"
    assert "plait" not in kept


def test_a_relative_folder_starts_from_the_repository():
    assert config().source.location == "/repository/models/demo"


def test_an_absolute_folder_is_taken_as_it_is():
    assert config(changed("models/demo", "/weights/demo")).source.location == "/weights/demo"


def test_an_explicit_partition_and_lanes_are_taken():
    model = config(
        changed("partition: auto", "partition: [3, 5]").replace("lanes: auto", "lanes: 4")
    )

    assert (model.partition, model.num_lanes) == ((3, 5), 4)


def test_without_torchrun_a_replica_has_one_rank():
    section = GOOD[GOOD.index("parallelType") : GOOD.index("continuousBatching")]

    on_cpu = changed(section, "").replace("deviceType: gpu", "deviceType: cpu")
    on_cpu = "".join(line for line in on_cpu.splitlines(True) if "deviceIds" not in line)

    assert config(on_cpu).num_stages == 1


def test_what_is_not_said_of_the_engine_has_a_default():
    model = config()

    assert (model.partition_by, model.repartitions, model.kv_memory_bytes) == (
        "measured",
        True,
        None,
    )
    assert (model.gap_factor, model.prefix_cache, model.resume) == (2.0, True, "fast")
    assert (model.kernels, model.compiles, model.quantize) == ("auto", False, "none")
    assert model.engine_options == {}


def test_what_is_said_of_the_engine_is_taken():
    more = """\
  kv_memory: 1.5GiB
  kernels: plain
  compile: true
  quantize: int8
  gap_factor: 3
  prefix_cache: false
  resume: exact
  repartition: false
"""
    model = config(changed("partition: auto", "partition: estimated") + more)

    assert (model.partition, model.partition_by, model.repartitions) == (None, "estimated", False)
    assert model.kv_memory_bytes == 3 * 2**29
    assert (model.gap_factor, model.prefix_cache, model.resume) == (3.0, False, "exact")
    assert (model.kernels, model.compiles, model.quantize) == ("plain", True, "int8")


def test_a_cut_that_is_said_outright_is_not_made_again():
    assert not config(changed("partition: auto", "partition: [3, 5]")).repartitions


def test_options_of_another_engine_are_kept_as_written():
    text = changed("engine: pipelined", "engine: vllm")

    model = config(text + "  engine_options:\n    enforce_eager: true\n")

    assert model.engine_options == {"enforce_eager": True}


def test_a_generated_file_says_its_own_name():
    model = config(changed("plait:\n", "plait:\n  name: gemma-2b\n"))

    assert model.name == "gemma-2b"


@pytest.mark.parametrize(
    ("old", "new", "line", "key", "said"),
    [
        # Keys TorchServe would not see.
        ("batchSize: 16", "BatchSize: 16", 9, "BatchSize", "did you mean 'batchSize'?"),
        ("batchSize: 16", "batch_size: 16", 9, "batch_size", "did you mean 'batchSize'?"),
        ("torchrun:", "torchRun:", 4, "torchRun", "did you mean 'torchrun'?"),
        ("OMP_NUMBER_THREADS", "OMP_NUM_THREADS", 7, "torchrun.OMP_NUM_THREADS", "OMP_NUMBER_"),
        ("batchSize: 16", "batchSize: 16\npippy: {}", 10, "pippy", "allowed are: minWorkers,"),
        ("batchSize: 16", "batchSize: 16\nreplicas: 1", 10, "replicas", "belongs under plait"),
        ("lanes: auto", "lane: auto", 19, "plait.lane", "did you mean 'lanes'?"),
        ("    folder: models", "    path: models", 15, "plait.source.path", "folder, hub, http"),
        # Types TorchServe drops with a warning in its log.
        ("responseTimeout: 60", "responseTimeout: 60.0", 10, "responseTimeout", "whole number"),
        ("batchSize: 16", "batchSize: '16'", 9, "batchSize", "whole number from 1; it is '16'"),
        ("batchSize: 16", "batchSize: true", 9, "batchSize", "whole number from 1; it is true"),
        ("batchSize: 16", "batchSize: 0", 9, "batchSize", "whole number from 1; it is 0"),
        ("batchSize: 16", "batchSize:", 9, "batchSize", "it is nothing"),
        ("node: 2", "node: gpu", 5, "torchrun.nproc-per-node", "whole number from 1; it is 'gpu'"),
        ("deviceType: gpu", "deviceType: GPU", 1, "deviceType", "one of: cpu, gpu"),
        ("[0, 1, 2, 3]", "'0,1,2,3'", 2, "deviceIds", "list of whole numbers"),
        ("[0, 1, 2, 3]", "[0, 1, 1, 3]", 2, "deviceIds", "names a device twice"),
        ("[0, 1, 2, 3]", "[0, -1]", 2, "deviceIds", "list of whole numbers"),
        # Keys that count only together, or not at all.
        ("parallelType: pp\n", "", 3, "torchrun", "ignored by TorchServe without parallelType"),
        ("parallelType: pp", "parallelType: tp", 3, "parallelType", "must be 'pp'"),
        ("localhost:0", "localhost:29400", 6, "torchrun.rdzv-endpoint", "must be 'localhost:0'"),
        ('  rdzv-endpoint: "localhost:0"\n', "", 4, "torchrun.rdzv-endpoint", "is missing"),
        ("  OMP", "  nnodes: 2\n  OMP", 7, "torchrun.nnodes", "ranks of its own machine only"),
        ("  OMP", "  node-rank: 0\n  OMP", 7, "torchrun.node-rank", "never passes it"),
        ("  OMP", "  rdzv-conf: a=b\n  OMP", 7, "torchrun.rdzv-conf", "never passes it"),
        ("  OMP", "  max-restarts: 3\n  OMP", 7, "torchrun.max-restarts", "sets it itself"),
        ("batchSize", "minWorkers: 2\nbatchSize", 9, "minWorkers", "plait.replicas"),
        ("batchSize", "maxWorkers: 4\nbatchSize", 9, "maxWorkers", "a replica has one worker"),
        ("batchSize", "asyncCommunication: true\nbatchSize", 9, "asyncCommunication", "torchrun"),
        ("batchSize", "parallelLevel: 4\nbatchSize", 9, "parallelLevel", "later of the two"),
        ("batchSize", "maxBatchDelay: 0\nbatchSize", 9, "maxBatchDelay", "whole number from 1"),
        ("batchSize", "useJobTicket: true\nbatchSize", 9, "useJobTicket", "must be false"),
        (
            "batchSize",
            "clientTimeoutInMills: 9\nbatchSize",
            9,
            "clientTimeoutInMills",
            "never answ",
        ),
        ("batchSize", "maxNumSequence: 9\nbatchSize", 9, "maxNumSequence", "sequenceBatching only"),
        ("Batching: true", "Batching: false", 8, "continuousBatching", "must be true"),
        ("gpu", "cpu", 2, "deviceIds", "counts with deviceType: gpu only"),
        ("[0, 1, 2, 3]", "[0, 1, 2]", 2, "deviceIds", "does not divide by the 2 ranks"),
        ("replicas: 2", "replicas: 3", 22, "plait.replicas", "deviceIds names 4"),
        # Plait's own section.
        ("task: generate", "task: chat", 13, "plait.task", "one of: generate, embed, classify"),
        ("engine: pipelined", "engine: tgi", 16, "plait.engine", "echo, encoder, pipelined"),
        (
            "engine: pipelined",
            "engine: encoder",
            16,
            "plait.engine",
            "serves embed or classify and not generate",
        ),
        (": generate", ": classify", 21, "plait.prefill_chunk", "with task: generate only"),
        ("engine: pipelined", "engine: transformers", 5, "torchrun.nproc-per-node", "in one rank"),
        ("partition: auto", "partition: 4", 18, "plait.partition", ", or estimated, or auto"),
        ("replicas: 2", "kv_memory: 8GB", 22, "plait.kv_memory", "units are B, KiB, MiB, GiB, TiB"),
        ("replicas: 2", "kv_memory: 0GiB", 22, "plait.kv_memory", "a size such as 8GiB"),
        ("replicas: 2", "kv_memory: 8", 22, "plait.kv_memory", "a size such as 8GiB"),
        ("replicas: 2", "kernels: fast", 22, "plait.kernels", "one of: auto, plain, packed"),
        ("replicas: 2", "kernels: packed", 22, "plait.kernels", "counts on CPUs only"),
        ("replicas: 2", "compile: 1", 22, "plait.compile", "true or false; it is 1"),
        ("replicas: 2", "quantize: fp8", 22, "plait.quantize", "one of: none, int8, int4"),
        ("replicas: 2", "gap_factor: 0.5", 22, "plait.gap_factor", "a number from 1; it is 0.5"),
        ("replicas: 2", "gap_factor: .nan", 22, "plait.gap_factor", "a number from 1"),
        ("replicas: 2", "prefix_cache: on_", 22, "plait.prefix_cache", "true or false"),
        ("replicas: 2", "resume: never", 22, "plait.resume", "one of: fast, exact"),
        ("replicas: 2", "engine_options: {a: 1}", 22, "plait.engine_options", "vllm only"),
        (
            "partition: auto",
            "partition: [3, 5]\n  repartition: true",
            19,
            "plait.repartition",
            "says the cut outright",
        ),
        ("dtype: float32", "dtype: fp32", 17, "plait.dtype", "float32, bfloat16, float16"),
        (
            "partition: auto",
            "partition: [8]",
            18,
            "plait.partition",
            "has 1 stages; a replica has 2",
        ),
        ("partition: auto", "partition: [8, 0]", 18, "plait.partition", "layer counts from 1"),
        ("lanes: auto", "lanes: 17", 19, "plait.lanes", "more than batchSize"),
        (
            "max_context: 1024",
            "max_context: 32",
            21,
            "plait.prefill_chunk",
            "more than max_context",
        ),
        ("  max_context: 1024\n", "", 12, "plait.max_context", "is missing"),
        ("folder: models/demo", "hub: a/b\n    package: c", 14, "plait.source", "hub and package"),
        ("folder: models/demo", "{}", 14, "plait.source", "exactly one of"),
        (
            "models/demo",
            "m\n    revision: main",
            16,
            "plait.source.revision",
            "counts with hub only",
        ),
        ("models/demo", "m\n    subfolder: x", 16, "plait.source.subfolder", "with package only"),
        # What is no proper YAML.
        ("batchSize: 16", "batchSize: 16\nbatchSize: 8", 10, "batchSize", "twice, first in line 9"),
    ],
)
def test_a_mistake_is_named_with_its_line_and_key(old, new, line, key, said):
    found = problems(changed(old, new))

    start = f"{PATH}:{line}: {key}: "
    assert any(text.startswith(start) and said in text for text in found), "\n".join(found)


def test_pp_without_torchrun_is_refused():
    section = GOOD[GOOD.index("torchrun") : GOOD.index("continuousBatching")]

    said = problems(changed(section, ""))
    assert any(
        text.startswith(f"{PATH}:3: parallelType: needs a torchrun section") for text in said
    )


def test_a_gpu_without_torchrun_is_refused():
    section = GOOD[GOOD.index("parallelType") : GOOD.index("continuousBatching")]

    said = problems(changed(section, ""))
    assert any("deviceType: is gpu without torchrun" in text for text in said)


def test_one_mistake_is_reported_once():
    assert len(problems(changed("batchSize: 16", "batchSize: x"))) == 1


def test_all_mistakes_of_a_file_are_listed_in_the_order_of_its_lines():
    wrong = changed("deviceType: gpu", "deviceType: tpu").replace("dtype: float32", "dtype: fp8")

    assert [text.split(": ")[1] for text in problems(wrong)] == ["deviceType", "plait.dtype"]


def test_a_syntax_error_is_named_with_its_line():
    (said,) = problems(changed("batchSize: 16", "batchSize: [16"))

    assert said.startswith(f"{PATH}:10: is not YAML")


@pytest.mark.parametrize("text", ["", "# nothing\n", "- a\n- b\n", "word", "a: 1\n---\nb: 2\n"])
def test_what_does_not_describe_a_model_is_refused(text):
    assert problems(text)


@pytest.mark.parametrize(
    "hostile",
    ["a: &a [*a]", "? [x, y]\n: 1", "1: 2", "plait: &p {source: *p}", "x: 2026-13-45", "[" * 5000],
)
def test_hostile_yaml_is_an_error_like_any_other(hostile):
    assert problems(hostile)


@pytest.mark.parametrize("key", PIPELINED_KEYS)
def test_what_only_our_engine_reads_is_refused_with_another(key):
    values = {"kv_memory": "1GiB", "gap_factor": 2, "kernels": "plain", "quantize": "int8"}
    values |= {"resume": "fast"}
    text = changed("engine: pipelined", "engine: vllm") + f"  {key}: {values.get(key, 'true')}\n"

    (said,) = problems(text)

    assert f"plait.{key}: counts with engine: pipelined only" in said


@pytest.mark.parametrize(
    ("old", "new"), [("partition: auto", "partition: [4, 4]"), ("lanes: auto", "lanes: 2")]
)
def test_an_engine_without_stages_is_told_nothing_of_them(old, new):
    text = changed("engine: pipelined", "engine: vllm").replace(old, new)

    (said,) = problems(text)

    assert "must be auto with engine: vllm" in said


@pytest.mark.parametrize("name", ["1demo", "demo__r0", "de mo", "d" * 65, "-demo", "gemma__r"])
def test_a_name_that_is_no_model_name_is_refused(name):
    (said,) = problems(GOOD, PATH.with_name(f"{name}.yaml"))

    assert "must match" in said


@pytest.mark.parametrize("name", ["demo", "gemma-2b", "all_MiniLM.L6", "d" * 64])
def test_an_ordinary_name_is_taken(name):
    assert config(path=PATH.with_name(f"{name}.yaml")).name == name


def test_the_entry_file_follows_from_the_task():
    embedding: Any = changed("task: generate", "task: embed").replace("pipelined", "encoder")
    embedding = embedding.replace("  prefill_chunk: 64\n", "")

    assert config(embedding).handler == "embedding_handler"
    assert config(embedding.replace("embed", "classify")).handler == "classification_handler"
    assert config().handler == "text_generation_handler"
