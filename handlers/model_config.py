"""One model's YAML as a frozen, validated record.

A file ``model_configs/<name>.yaml`` has TorchServe's own keys at the top and Plait's under
``plait:``. The whole file is checked before anything is used, every problem is reported at once,
and each names file, line and key; what is allowed is said in ``model_schema``. The archive builder
writes the same format into each replica's folder, so the worker reads its settings with the same
code.

It does not know whether the source exists, nor what devices the machine has.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from handlers import model_schema, scale_section
from handlers.scale_section import Scale
from handlers.value_checks import show, size_bytes
from handlers.yaml_lines import Document, Problem, UnreadableYaml, read

#: Names that are safe as a file, a TorchServe model and a metric's label. ``__r`` is what
#: separates a model's name from its replica's number.
NAME_PATTERN: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
REPLICA_MARK: Final = "__r"

#: TorchServe's own defaults, said explicitly because it applies them whatever the server is set to.
DEFAULT_RESPONSE_TIMEOUT_S: Final = 120
DEFAULT_STARTUP_TIMEOUT_S: Final = 120
DEFAULT_PREFILL_CHUNK: Final = 128
DEFAULT_GAP_FACTOR: Final = 2.0


#: Sources whose files a machine has to fetch.
REMOTE_KINDS: Final = ("hub", "http", "s3")


class ModelConfigError(ValueError):
    """A model's YAML cannot be used; the text has one line per problem."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = tuple(lines)


@dataclass(frozen=True, slots=True)
class Source:
    """Where the weights come from: exactly one kind."""

    #: "folder", "hub", "http", "s3" or "package".
    kind: str
    #: A folder (absolute once loaded), a hub id, a URL, or the name of an importable package.
    location: str
    #: Hub revision; None: the newest.
    revision: str | None = None
    #: Folder inside the package that holds the model; empty: the package itself.
    subfolder: str = ""
    #: Whether a folder is copied to the machine that runs the model, instead of read in place.
    is_copied: bool = False
    #: SHA-256 of the manifest beside the files; empty: any, or none.
    manifest_sha256: str = ""

    @property
    def is_remote(self) -> bool:
        """Whether a machine has to fetch the files before it can load them."""
        return self.kind in REMOTE_KINDS or self.is_copied


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What ``model_configs/<name>.yaml`` says."""

    name: str
    #: "generate", "embed" or "classify".
    task: str
    source: Source
    #: Name of a file in handlers/engines: "pipelined", "encoder", "transformers", "vllm".
    engine: str
    #: torch dtype name the model runs in: "float32", "bfloat16", "float16".
    dtype: str
    #: Ranks of one replica (torchrun.nproc-per-node).
    num_stages: int
    #: Decoder layers per stage, or None: by cost, found out as ``partition_by`` says.
    partition: tuple[int, ...] | None
    #: Micro-batches in flight; None: one per stage.
    num_lanes: int | None
    #: Requests one replica works on at once (TorchServe's batchSize for continuous batching).
    max_batch: int
    #: Prompt and answer together, in tokens.
    max_context: int
    #: Prompt tokens one prefill step takes.
    prefill_chunk: int
    #: Replicas to keep, or to begin with, unless an operator says otherwise.
    num_replicas: int
    #: "cpu" or "gpu".
    device_type: str
    #: Devices the replicas of this model may use, as indices (deviceIds); None: any.
    device_ids: tuple[int, ...] | None
    #: Seconds.
    response_timeout_s: int
    startup_timeout_s: int
    #: TorchServe's own keys as written, for the generated model-config.yaml.
    torchserve: dict[str, Any] = field(default_factory=dict, repr=False)
    #: What the cost of a layer is taken from: "measured" (on the spot, when there are several
    #: stages) or "estimated" (weights counted).
    partition_by: str = "measured"
    #: Whether to cut again when the stages' times have drifted apart.
    repartitions: bool = True
    #: How many times as long as a decode step a prefill step may take while others are decoding.
    gap_factor: float = DEFAULT_GAP_FACTOR
    #: Whether prompts share the keys and values of their common beginning.
    prefix_cache: bool = True
    #: Whether a process stands by for the next stage that is lost.
    has_standby: bool = True
    #: What the keys and values of one stage may take; None: what its device has free.
    kv_memory_bytes: int | None = None
    #: "plain", "packed" (CPU weights prepacked by oneDNN) or "auto": what suits the device.
    kernels: str = "auto"
    #: Whether stages go through torch.compile.
    compiles: bool = False
    #: "none", or the type that weights are held in: "int8", "int4".
    quantize: str = "none"
    #: "fast": a lost attempt goes on from its tokens; "exact": with bit-identical logits as well.
    resume: str = "fast"
    #: How the number of replicas follows the work; None: it is fixed.
    scale: Scale | None = None
    #: Handed to the engine as it is; for engines that are not ours.
    engine_options: dict[str, Any] = field(default_factory=dict)

    @property
    def handler(self) -> str:
        """Stem of the entry file, by the kind of task."""
        return HANDLERS[self.task]


HANDLERS: Final = {
    "generate": "text_generation_handler",
    "embed": "embedding_handler",
    "classify": "classification_handler",
}


def load(path: Path) -> ModelConfig:
    """The model that ``path`` describes, named after the file unless ``plait.name`` says otherwise.

    Raises:
        ModelConfigError: every problem of the file, each a line ``<file>:<line>: <key>: <what>``.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ModelConfigError([f"{path}:1: cannot be read: {error.strerror}"]) from None
    except UnicodeDecodeError as error:
        raise ModelConfigError([f"{path}:1: is not UTF-8 at byte {error.start}"]) from None
    return parse(text, path, engine_names())


def load_folder(folder: Path) -> dict[str, ModelConfig]:
    """Every model of a folder, by name (the file's stem).

    Raises:
        ModelConfigError: every problem of every file, or there is no such folder.
    """
    if not folder.is_dir():
        raise ModelConfigError([f"{folder}:1: is no folder; models are described in *.yaml there"])
    models: dict[str, ModelConfig] = {}
    wrong = [f"{path}:1: is not read; name it {path.stem}.yaml" for path in folder.glob("*.yml")]
    for path in sorted(folder.glob("*.yaml")):
        try:
            models[path.stem] = load(path)
            if (name := models[path.stem].name) != path.stem:
                wrong.append(f"{path}:1: plait.name: is {name}; here the file's name says it")
        except ModelConfigError as error:
            wrong += error.lines
    if wrong:
        raise ModelConfigError(wrong)
    return models


def engine_names() -> frozenset[str]:
    """The engines there are: the public files of handlers/engines."""
    files = (Path(__file__).parent / "engines").glob("[!_]*.py")
    return frozenset(file.stem for file in files) - {"base"}


def parse(text: str, path: Path, engines: Collection[str]) -> ModelConfig:
    """The model in ``text``, which ``path`` names in messages and relative folders start from.

    Raises:
        ModelConfigError: every problem of the text.
    """
    try:
        document = read(text)
    except UnreadableYaml as error:
        raise ModelConfigError([_line(path, None, problem) for problem in error.problems]) from None
    problems = _check(document.value, path.stem, engines)
    if problems:
        ordered = sorted(problems, key=lambda problem: document.line(problem.path))
        raise ModelConfigError([_line(path, document, problem) for problem in ordered])
    return _build(document.value, path)


def _check(value: object, stem: str, engines: Collection[str]) -> list[Problem]:
    if value is None:
        return [Problem((), "is empty; it must describe a model")]
    if not isinstance(value, dict):
        return [Problem((), f"must hold keys and values, not {show(value)}")]
    problems = model_schema.check(value, engines)
    plait = value.get("plait")
    inner = isinstance(plait, dict) and isinstance(plait.get("name"), str)
    name = plait["name"] if inner and isinstance(plait, dict) else stem
    if not is_model_name(name):
        path = ("plait", "name") if inner else ()
        problems.append(Problem(path, f"the model's name {name!r} {NAME_RULE}"))
    return problems


NAME_RULE: Final = (
    f"must match {NAME_PATTERN.pattern} and not contain {REPLICA_MARK!r}, which marks replicas"
)


def is_model_name(name: str) -> bool:
    return NAME_PATTERN.fullmatch(name) is not None and REPLICA_MARK not in name


def _line(path: Path, document: Document | None, problem: Problem) -> str:
    line = problem.line or (document.line(problem.path) if document else 1)
    key = f"{problem.key}: " if problem.path else ""
    return f"{path}:{line}: {key}{problem.message}"


def _build(value: dict[str, Any], path: Path) -> ModelConfig:
    """The record of a document that passed every check."""
    plait = value["plait"]
    partition, lanes = plait.get("partition", "auto"), plait.get("lanes", "auto")
    is_explicit = isinstance(partition, list)
    kv_memory = plait.get("kv_memory", "auto")
    devices = value.get("deviceIds")
    scale = scale_section.read(plait.get("scale"))
    return ModelConfig(
        name=plait.get("name", path.stem),
        task=plait["task"],
        source=_source(plait["source"], path),
        engine=plait["engine"],
        dtype=plait["dtype"],
        num_stages=value.get("torchrun", {}).get("nproc-per-node", 1),
        partition=tuple(partition) if is_explicit else None,
        partition_by="estimated" if partition == "estimated" else "measured",
        repartitions=plait.get("repartition", not is_explicit),
        num_lanes=None if lanes == "auto" else lanes,
        max_batch=value["batchSize"],
        max_context=plait["max_context"],
        prefill_chunk=plait.get("prefill_chunk", min(DEFAULT_PREFILL_CHUNK, plait["max_context"])),
        gap_factor=float(plait.get("gap_factor", DEFAULT_GAP_FACTOR)),
        prefix_cache=plait.get("prefix_cache", True),
        has_standby=plait.get("standby", True),
        kv_memory_bytes=None if kv_memory == "auto" else size_bytes(kv_memory),
        kernels=plait.get("kernels", "auto"),
        compiles=plait.get("compile", False),
        quantize=plait.get("quantize", "none"),
        resume=plait.get("resume", "fast"),
        engine_options=dict(plait.get("engine_options", {})),
        num_replicas=plait.get("replicas", 1 if scale is None else scale.clamped(1)),
        scale=scale,
        device_type=value["deviceType"],
        device_ids=None if devices is None else tuple(devices),
        response_timeout_s=value.get("responseTimeout", DEFAULT_RESPONSE_TIMEOUT_S),
        startup_timeout_s=value.get("startupTimeout", DEFAULT_STARTUP_TIMEOUT_S),
        torchserve={key: given for key, given in value.items() if key != "plait"},
    )


def _source(given: dict[str, Any], path: Path) -> Source:
    kind = next(kind for kind in model_schema.SOURCE_KINDS if kind in given)
    location = given[kind]
    if kind == "folder":
        location = str(_folder(Path(location).expanduser(), path.absolute().parent))
    return Source(
        kind,
        location,
        given.get("revision"),
        given.get("subfolder", ""),
        given.get("copy", False),
        given.get("manifest_sha256", ""),
    )


def _folder(folder: Path, beside: Path) -> Path:
    """A source's folder: beside the YAML if it is there, else from the folder above that."""
    if folder.is_absolute():
        return folder
    return beside / folder if (beside / folder).is_dir() else beside.parent / folder
