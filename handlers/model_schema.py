"""What a model's YAML may say, and why the rest is refused.

TorchServe ignores what it does not understand: a mis-cased key, a number of the wrong type, a
section that needs another key to count. The model then runs with settings nobody chose. So every
key that it, or Plait, reads is listed here with its type, and the rules that tie keys together
name what TorchServe would have done.

This is plain code and no JSON schema: half of the rules relate two keys, and each message tells a
consequence, which a general validator cannot. It sees values only: no file, no line, no disk.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

from handlers.value_checks import (
    Check,
    auto_or,
    beginning,
    boolean,
    device_ids,
    exactly,
    layer_counts,
    mapping,
    never,
    number_between,
    number_from,
    one_of,
    sha256,
    show,
    size,
    text,
    whole,
    word_or,
)
from handlers.yaml_lines import KeyPath, Problem

#: What each engine serves; an engine that is not named here may serve everything.
TASKS_OF_ENGINE: Final[Mapping[str, tuple[str, ...]]] = {
    "pipelined": ("generate",),
    "encoder": ("embed", "classify"),
    "transformers": ("generate",),
    "vllm": ("generate",),
}

DTYPES: Final = ("float32", "bfloat16", "float16")

#: Keys that the other engines named above do not read.
PIPELINED_KEYS: Final = (
    "resume",
    "kv_memory",
    "kernels",
    "compile",
    "quantize",
    "gap_factor",
    "prefix_cache",
    "standby",
    "repartition",
)


_ONE_WORKER = "a replica has one worker; say how many replicas with plait.replicas"
_NO_SEQUENCES = exactly(False, "sequence batching and continuous batching exclude each other")
_NOT_PASSED = never("TorchServe reads it and never passes it to torchrun")
_SET_BY_TORCHSERVE = never("TorchServe sets it itself and ignores it here")

TORCHSERVE_KEYS: Final[Mapping[str, Check]] = {
    "minWorkers": exactly(1, _ONE_WORKER),
    "maxWorkers": exactly(1, _ONE_WORKER),
    "batchSize": whole(1),
    # TorchServe takes 0 for unset, and waits its 100 ms.
    "maxBatchDelay": whole(1),
    "responseTimeout": whole(1),
    "startupTimeout": whole(1),
    "maxRetryTimeoutInSec": whole(1),
    "jobQueueSize": whole(1),
    "deviceType": one_of("cpu", "gpu"),
    "deviceIds": device_ids,
    "parallelType": exactly("pp", "only the first rank of a pipeline takes requests"),
    "parallelLevel": whole(1),
    "torchrun": mapping,
    "continuousBatching": exactly(True, "the handlers take new requests between two steps"),
    "asyncCommunication": exactly(
        False, "torchrun's other ranks never get a connection, and lost requests hang"
    ),
    "clientTimeoutInMills": exactly(0, "TorchServe drops what took longer and never answers it"),
    "useJobTicket": exactly(False, "it refuses requests while the worker is busy with others"),
    "useVenv": exactly(False, "torchrun's workers do not use it"),
    "sequenceBatching": _NO_SEQUENCES,
    "sequenceMaxIdleMSec": never("it counts with sequenceBatching only"),
    "sequenceTimeoutMSec": never("it counts with sequenceBatching only"),
    "maxSequenceJobQueueSize": never("it counts with sequenceBatching only"),
    "maxNumSequence": never("it counts with sequenceBatching only"),
    "plait": mapping,
}

TORCHRUN_KEYS: Final[Mapping[str, Check]] = {
    "nproc-per-node": whole(1),
    "nnodes": exactly(1, "TorchServe starts the ranks of its own machine only"),
    "rdzv-backend": exactly("c10d", "TorchServe's torchrun knows no other here"),
    "rdzv-endpoint": exactly(
        "localhost:0",
        "at any fixed address the workers of a machine share one rendezvous and die together",
    ),
    "OMP_NUMBER_THREADS": whole(1),
    "rdzv-conf": _NOT_PASSED,
    "monitor-interval": _NOT_PASSED,
    "node-rank": _NOT_PASSED,
    "rdzv-id": _SET_BY_TORCHSERVE,
    "max-restarts": _SET_BY_TORCHSERVE,
    "master-addr": never("TorchServe ignores it; the rendezvous finds the address"),
    "master-port": never("TorchServe ignores it; the rendezvous finds the port"),
}

PLAIT_KEYS: Final[Mapping[str, Check]] = {
    "name": text,
    "task": one_of("generate", "embed", "classify"),
    "source": mapping,
    "engine": text,
    "dtype": one_of(*DTYPES),
    "partition": auto_or(word_or("estimated", layer_counts)),
    "repartition": boolean,
    "lanes": auto_or(whole(1)),
    "max_context": whole(2),
    "prefill_chunk": whole(1),
    "gap_factor": number_from(1),
    "prefix_cache": boolean,
    "standby": boolean,
    "kv_memory": auto_or(size),
    "kernels": one_of("auto", "plain", "packed"),
    "compile": boolean,
    "quantize": one_of("none", "int8", "int4"),
    "resume": one_of("fast", "exact"),
    "engine_options": mapping,
    "replicas": whole(0),
    "scale": mapping,
}

#: At least as long as a look at the load takes to tell anything.
_LEAST_S: Final = 0.1

SCALE_KEYS: Final[Mapping[str, Check]] = {
    "min": whole(0),
    "max": whole(1),
    "target_wait_s": number_from(_LEAST_S),
    "target_ttft_s": number_from(_LEAST_S),
    "use_ratio": number_between(0.1, 1),
    "band_ratio": number_between(0, 1),
    "up_window_s": number_from(0),
    "down_window_s": number_from(0),
    "cooldown_s": number_from(0),
    "idle_s": number_from(0),
    "drain_s": number_from(0),
}

SOURCE_KEYS: Final[Mapping[str, Check]] = {
    "folder": text,
    "hub": text,
    "http": beginning("http://", "https://"),
    "s3": beginning("s3://"),
    "package": text,
    "revision": text,
    "subfolder": text,
    "copy": boolean,
    "manifest_sha256": sha256,
}

#: The places that weights can be in, of which a model has one.
SOURCE_KINDS: Final = ("folder", "hub", "http", "s3", "package")

#: Keys of a source, and the kinds that they count with.
_KINDS_OF_KEY: Final[Mapping[str, tuple[str, ...]]] = {
    "revision": ("hub",),
    "subfolder": ("package",),
    "copy": ("folder",),
    "manifest_sha256": ("folder", "http", "s3"),
}

#: The sections, and the keys they cannot do without.
SECTIONS: Final[Mapping[KeyPath, tuple[Mapping[str, Check], tuple[str, ...]]]] = {
    (): (TORCHSERVE_KEYS, ("deviceType", "continuousBatching", "batchSize", "plait")),
    ("torchrun",): (TORCHRUN_KEYS, ("nproc-per-node", "rdzv-endpoint")),
    ("plait",): (PLAIT_KEYS, ("task", "source", "engine", "dtype", "max_context")),
    ("plait", "source"): (SOURCE_KEYS, ()),
    ("plait", "scale"): (SCALE_KEYS, ("max",)),
}


def check(document: Mapping[str, Any], engines: Collection[str]) -> list[Problem]:
    """Everything that is wrong with a model's YAML; ``engines`` are the names there are."""
    good: dict[KeyPath, Mapping[str, Any]] = {}
    problems: list[Problem] = []
    for path, (keys, required) in SECTIONS.items():
        section = _find(document, path)
        if section is None:
            continue
        bad = list(_check_section(section, path, keys, required))
        problems += bad
        failed = {problem.path[-1] for problem in bad if problem.path}
        good[path] = {key: value for key, value in section.items() if key not in failed}
    for rule in _RULES:
        problems += rule(document, good, engines)
    return problems


def _find(document: Mapping[str, Any], path: KeyPath) -> Mapping[str, Any] | None:
    found: Any = document
    for part in path:
        found = found.get(part) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else None


def _check_section(
    section: Mapping[str, Any], path: KeyPath, keys: Mapping[str, Check], required: tuple[str, ...]
) -> Iterator[Problem]:
    for key, value in section.items():
        if key not in keys:
            yield Problem((*path, str(key)), _unknown(str(key), path, keys))
        elif complaint := keys[key](value):
            yield Problem((*path, key), f"{complaint}; it is {show(value)}")
    for key in required:
        if key not in section:
            # A required key's own check says best what to write.
            hint = keys[key](None)
            yield Problem((*path, key), f"is missing; it {hint}" if hint else "is missing")


def _unknown(key: str, path: KeyPath, keys: Mapping[str, Check]) -> str:
    ignored = "unknown key, which TorchServe would ignore" if path in ((), ("torchrun",)) else ""
    said = ignored or "unknown key"
    same = {known.lower().replace("_", "-"): known for known in keys}
    near = difflib.get_close_matches(key.lower().replace("_", "-"), same, n=1, cutoff=0.7)
    if near:
        return f"{said}; did you mean {same[near[0]]!r}?"
    for other, (others, _) in SECTIONS.items():
        if other != path and key in others:
            section = ".".join(map(str, other))
            return f"{said}; it belongs {f'under {section}' if section else 'at the top level'}"
    return f"{said}; allowed are: {', '.join(keys)}"


Good = Mapping[KeyPath, Mapping[str, Any]]


def _parallel_rules(
    document: Mapping[str, Any], good: Good, _: Collection[str]
) -> Iterator[Problem]:
    if "torchrun" in document and "parallelType" not in document:
        yield Problem(
            ("torchrun",),
            "is ignored by TorchServe without parallelType; write parallelType: pp as well",
        )
    if "torchrun" not in document and "parallelType" in document:
        yield Problem(
            ("parallelType",),
            "needs a torchrun section; TorchServe cannot start a worker without one",
        )
    ranks = good.get(("torchrun",), {}).get("nproc-per-node")
    level = good[()].get("parallelLevel")
    if level is not None and "torchrun" not in document:
        yield Problem(("parallelLevel",), "counts with torchrun only; leave it out")
    elif level is not None and ranks is not None and level != ranks:
        yield Problem(
            ("parallelLevel",),
            f"is {level} and torchrun.nproc-per-node is {ranks}; the later of the two would win: "
            "leave parallelLevel out",
        )


def _device_rules(_: Mapping[str, Any], good: Good, __: Collection[str]) -> Iterator[Problem]:
    top = good[()]
    if top.get("deviceType") == "gpu" and "torchrun" not in top:
        yield Problem(
            ("deviceType",),
            "is gpu without torchrun, so no worker would be told its device: write "
            "parallelType: pp and torchrun with nproc-per-node, 1 for a single device",
        )
    devices = top.get("deviceIds")
    if devices is None:
        return
    if top.get("deviceType") == "cpu":
        yield Problem(("deviceIds",), "counts with deviceType: gpu only; leave it out")
        return
    ranks = num_ranks(good)
    replicas = good.get(("plait",), {}).get("replicas", 1)
    if ranks is not None and len(devices) % ranks:
        yield Problem(
            ("deviceIds",),
            f"names {len(devices)} devices, which does not divide by the {ranks} ranks of a "
            "replica (torchrun.nproc-per-node)",
        )
    elif ranks is not None and replicas * ranks > len(devices):
        yield Problem(
            ("plait", "replicas"),
            f"asks for {replicas} replicas of {ranks} devices; deviceIds names {len(devices)}",
        )


def num_ranks(good: Good) -> int | None:
    """Ranks of one replica, or None when the file does not say it rightly."""
    if "torchrun" not in good[()]:
        return 1
    ranks: int | None = good.get(("torchrun",), {}).get("nproc-per-node")
    return ranks


def _source_rules(_: Mapping[str, Any], good: Good, __: Collection[str]) -> Iterator[Problem]:
    source = good.get(("plait", "source"))
    if source is None:
        return
    path = ("plait", "source")
    kinds = [kind for kind in SOURCE_KINDS if kind in source]
    if len(kinds) != 1:
        given, allowed = " and ".join(kinds) or "none", ", ".join(SOURCE_KINDS)
        yield Problem(path, f"needs exactly one of: {allowed}; it has {given}")
        return
    for key, where in _KINDS_OF_KEY.items():
        if key in source and kinds[0] not in where:
            said = " and ".join(where)
            yield Problem((*path, key), f"counts with {said} only, not with {kinds[0]}")
    if "manifest_sha256" in source and kinds == ["folder"] and source.get("copy") is not True:
        yield Problem((*path, "manifest_sha256"), "counts with copy: true only, of a folder")


def _engine_rules(_: Mapping[str, Any], good: Good, engines: Collection[str]) -> Iterator[Problem]:
    plait = good.get(("plait",), {})
    engine, task = plait.get("engine"), plait.get("task")
    if engine is not None and engine not in engines:
        allowed = ", ".join(sorted(engines))
        yield Problem(("plait", "engine"), f"is {show(engine)}; there are: {allowed}")
        return
    serves = TASKS_OF_ENGINE.get(str(engine))
    if task is not None and serves is not None and task not in serves:
        said = " or ".join(serves)
        yield Problem(("plait", "engine"), f"is {engine}, which serves {said} and not {task}")
    if task in ("embed", "classify") and "prefill_chunk" in plait:
        yield Problem(("plait", "prefill_chunk"), "counts with task: generate only; leave it out")


def _option_rules(_: Mapping[str, Any], good: Good, __: Collection[str]) -> Iterator[Problem]:
    """Keys that count with some engines only."""
    plait = good.get(("plait",), {})
    engine = plait.get("engine")
    if engine in TASKS_OF_ENGINE and engine != "pipelined":
        for key in PIPELINED_KEYS:
            if key in plait:
                yield Problem(("plait", key), "counts with engine: pipelined only; leave it out")
    if engine in ("transformers", "vllm"):
        for key in ("partition", "lanes"):
            if plait.get(key, "auto") != "auto":
                message = f"must be auto with engine: {engine}, which cuts nothing into stages"
                yield Problem(("plait", key), message)
    if engine is not None and engine != "vllm" and "engine_options" in plait:
        yield Problem(("plait", "engine_options"), "counts with engine: vllm only; leave it out")
    if plait.get("kernels") == "packed" and good[()].get("deviceType") == "gpu":
        yield Problem(
            ("plait", "kernels"), "is packed, which counts on CPUs only; write auto or leave it out"
        )
    if plait.get("repartition") is True and isinstance(plait.get("partition"), list):
        yield Problem(
            ("plait", "repartition"),
            "is true and partition says the cut outright; leave one of the two out",
        )


def _size_rules(_: Mapping[str, Any], good: Good, __: Collection[str]) -> Iterator[Problem]:
    plait = good.get(("plait",), {})
    ranks, partition = num_ranks(good), plait.get("partition", "auto")
    if ranks is not None and isinstance(partition, list) and len(partition) != ranks:
        yield Problem(
            ("plait", "partition"),
            f"has {len(partition)} stages; a replica has {ranks} ranks (torchrun.nproc-per-node)",
        )
    if ranks is not None and ranks > 1 and plait.get("engine") == "transformers":
        yield Problem(
            ("torchrun", "nproc-per-node"), f"is {ranks}; engine: transformers runs in one rank"
        )
    lanes, batch = plait.get("lanes", "auto"), good[()].get("batchSize")
    if lanes != "auto" and batch is not None and lanes > batch:
        yield Problem(("plait", "lanes"), f"is {lanes}, more than batchSize, which is {batch}")
    chunk, context = plait.get("prefill_chunk"), plait.get("max_context")
    if chunk is not None and context is not None and chunk > context:
        yield Problem(
            ("plait", "prefill_chunk"), f"is {chunk}, more than max_context, which is {context}"
        )


def _scale_rules(_: Mapping[str, Any], good: Good, __: Collection[str]) -> Iterator[Problem]:
    scale = good.get(("plait", "scale"))
    if scale is None or "max" not in scale:
        return
    least, most = scale.get("min", 1), scale["max"]
    if least > most:
        yield Problem(("plait", "scale", "min"), f"is {least}, more than max, which is {most}")
        return
    replicas = good.get(("plait",), {}).get("replicas")
    if replicas is not None and not least <= replicas <= most:
        yield Problem(("plait", "replicas"), f"is {replicas}; plait.scale allows {least} to {most}")
    if "target_wait_s" in scale and "target_ttft_s" in scale:
        yield Problem(
            ("plait", "scale", "target_ttft_s"),
            "is aimed at instead of target_wait_s; leave one of the two out",
        )
    if "idle_s" in scale and least > 0:
        yield Problem(("plait", "scale", "idle_s"), "counts with min: 0 only; leave it out")


_RULES: Final = (
    _parallel_rules,
    _device_rules,
    _source_rules,
    _engine_rules,
    _option_rules,
    _size_rules,
    _scale_rules,
)
