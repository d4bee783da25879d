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
import reprlib
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Final

from handlers.yaml_lines import KeyPath, Problem

#: Says what is allowed instead, or None when the value is fine.
Check = Callable[[object], str | None]

#: The engines that serve one kind of task only; any other engine may serve each.
TASK_OF_ENGINE: Final[Mapping[str, str]] = {"pipelined": "generate", "encoder": "embed"}

DTYPES: Final = ("float32", "bfloat16", "float16")


def show(value: object) -> str:
    """A value as it may appear in a message: short, whatever it is."""
    if isinstance(value, bool):
        return str(value).lower()
    return "nothing" if value is None else reprlib.repr(value)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def whole(low: int) -> Check:
    def check(value: object) -> str | None:
        if _is_whole(value) and low <= value <= 2**31 - 1:  # type: ignore[operator]
            return None
        return f"must be a whole number from {low}"

    return check


def exactly(allowed: object, reason: str) -> Check:
    def check(value: object) -> str | None:
        same = value == allowed and type(value) is type(allowed)
        return None if same else f"must be {show(allowed)}: {reason}"

    return check


def one_of(*allowed: str) -> Check:
    def check(value: object) -> str | None:
        return None if value in allowed else f"must be one of: {', '.join(allowed)}"

    return check


def _text(value: object) -> str | None:
    return None if isinstance(value, str) and value.strip() else "must be a text"


def _mapping(value: object) -> str | None:
    return None if isinstance(value, dict) else "must be a section with keys of its own"


def _device_ids(value: object) -> str | None:
    if isinstance(value, list) and value and all(_is_whole(i) and i >= 0 for i in value):
        return None if len(set(value)) == len(value) else "names a device twice"
    return "must be a list of whole numbers from 0, such as [0, 1]; TorchServe drops any other list"


def _auto_or(check: Check) -> Check:
    def checked(value: object) -> str | None:
        if value == "auto" or (complaint := check(value)) is None:
            return None
        return f"{complaint}, or auto"

    return checked


def _layer_counts(value: object) -> str | None:
    if isinstance(value, list) and value and all(_is_whole(i) and i >= 1 for i in value):
        return None
    return "must be a list of layer counts from 1, such as [4, 4]"


def _never(reason: str) -> Check:
    return lambda _: f"is not allowed: {reason}"


_ONE_WORKER = "a replica has one worker; say how many replicas with plait.replicas"
_NO_SEQUENCES = exactly(False, "sequence batching and continuous batching exclude each other")
_NOT_PASSED = _never("TorchServe reads it and never passes it to torchrun")
_SET_BY_TORCHSERVE = _never("TorchServe sets it itself and ignores it here")

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
    "deviceIds": _device_ids,
    "parallelType": exactly("pp", "only the first rank of a pipeline takes requests"),
    "parallelLevel": whole(1),
    "torchrun": _mapping,
    "continuousBatching": exactly(True, "the handlers take new requests between two steps"),
    "asyncCommunication": exactly(
        False, "torchrun's other ranks never get a connection, and lost requests hang"
    ),
    "clientTimeoutInMills": exactly(0, "TorchServe drops what took longer and never answers it"),
    "useJobTicket": exactly(False, "it refuses requests while the worker is busy with others"),
    "useVenv": exactly(False, "torchrun's workers do not use it"),
    "sequenceBatching": _NO_SEQUENCES,
    "sequenceMaxIdleMSec": _never("it counts with sequenceBatching only"),
    "sequenceTimeoutMSec": _never("it counts with sequenceBatching only"),
    "maxSequenceJobQueueSize": _never("it counts with sequenceBatching only"),
    "maxNumSequence": _never("it counts with sequenceBatching only"),
    "plait": _mapping,
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
    "master-addr": _never("TorchServe ignores it; the rendezvous finds the address"),
    "master-port": _never("TorchServe ignores it; the rendezvous finds the port"),
}

PLAIT_KEYS: Final[Mapping[str, Check]] = {
    "name": _text,
    "task": one_of("generate", "embed"),
    "source": _mapping,
    "engine": _text,
    "dtype": one_of(*DTYPES),
    "partition": _auto_or(_layer_counts),
    "lanes": _auto_or(whole(1)),
    "max_context": whole(2),
    "prefill_chunk": whole(1),
    "replicas": whole(0),
}

SOURCE_KEYS: Final[Mapping[str, Check]] = {
    "folder": _text,
    "hub": _text,
    "package": _text,
    "revision": _text,
    "subfolder": _text,
}

#: The sections, and the keys they cannot do without.
SECTIONS: Final[Mapping[KeyPath, tuple[Mapping[str, Check], tuple[str, ...]]]] = {
    (): (TORCHSERVE_KEYS, ("deviceType", "continuousBatching", "batchSize", "plait")),
    ("torchrun",): (TORCHRUN_KEYS, ("nproc-per-node", "rdzv-endpoint")),
    ("plait",): (PLAIT_KEYS, ("task", "source", "engine", "dtype", "max_context")),
    ("plait", "source"): (SOURCE_KEYS, ()),
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
    for rule in (_parallel_rules, _device_rules, _source_rules, _engine_rules, _size_rules):
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
    kinds = [kind for kind in ("folder", "hub", "package") if kind in source]
    if len(kinds) != 1:
        given = " and ".join(kinds) or "none"
        yield Problem(path, f"needs exactly one of: folder, hub, package; it has {given}")
        return
    for key, kind in (("revision", "hub"), ("subfolder", "package")):
        if key in source and kinds != [kind]:
            yield Problem((*path, key), f"counts with {kind} only, not with {kinds[0]}")


def _engine_rules(_: Mapping[str, Any], good: Good, engines: Collection[str]) -> Iterator[Problem]:
    plait = good.get(("plait",), {})
    engine, task = plait.get("engine"), plait.get("task")
    if engine is not None and engine not in engines:
        allowed = ", ".join(sorted(engines))
        yield Problem(("plait", "engine"), f"is {show(engine)}; there are: {allowed}")
        return
    serves = TASK_OF_ENGINE.get(str(engine), task)
    if task is not None and serves != task:
        yield Problem(("plait", "engine"), f"is {engine}, which serves {serves} and not {task}")
    if task == "embed" and "prefill_chunk" in plait:
        yield Problem(("plait", "prefill_chunk"), "counts with task: generate only; leave it out")


def _size_rules(_: Mapping[str, Any], good: Good, __: Collection[str]) -> Iterator[Problem]:
    plait = good.get(("plait",), {})
    ranks, partition = num_ranks(good), plait.get("partition", "auto")
    if ranks is not None and partition != "auto" and len(partition) != ranks:
        yield Problem(
            ("plait", "partition"),
            f"has {len(partition)} stages; a replica has {ranks} ranks (torchrun.nproc-per-node)",
        )
    lanes, batch = plait.get("lanes", "auto"), good[()].get("batchSize")
    if lanes != "auto" and batch is not None and lanes > batch:
        yield Problem(("plait", "lanes"), f"is {lanes}, more than batchSize, which is {batch}")
    chunk, context = plait.get("prefill_chunk"), plait.get("max_context")
    if chunk is not None and context is not None and chunk > context:
        yield Problem(
            ("plait", "prefill_chunk"), f"is {chunk}, more than max_context, which is {context}"
        )
