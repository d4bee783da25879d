"""One model's YAML as a frozen, validated record.

(contract: the fields are settled, the parser is being written)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Source:
    """Where the weights come from: exactly one kind."""

    #: "folder", "hub" or "package".
    kind: str
    #: A folder (absolute once loaded), a hub id, or the name of an importable package.
    location: str
    #: Hub revision; None: the newest.
    revision: str | None = None
    #: Folder inside the package that holds the model; empty: the package itself.
    subfolder: str = ""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What ``model_configs/<name>.yaml`` says."""

    name: str
    #: "generate" or "embed".
    task: str
    source: Source
    #: Name of a file in handlers/engines: "pipelined", "encoder".
    engine: str
    #: torch dtype name the model runs in: "float32", "bfloat16", "float16".
    dtype: str
    #: Ranks of one replica (torchrun.nproc-per-node).
    num_stages: int
    #: Decoder layers per stage, or None: by cost.
    partition: tuple[int, ...] | None
    #: Micro-batches in flight; None: one per stage.
    num_lanes: int | None
    #: Requests one replica works on at once (TorchServe's batchSize for continuous batching).
    max_batch: int
    #: Prompt and answer together, in tokens.
    max_context: int
    #: Prompt tokens one prefill step takes.
    prefill_chunk: int
    #: Replicas to keep unless an operator says otherwise.
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

    @property
    def handler(self) -> str:
        """Stem of the entry file: "text_generation_handler" or "embedding_handler"."""
        return {"generate": "text_generation_handler", "embed": "embedding_handler"}[self.task]


def load(path: Path) -> ModelConfig:
    """Raises ModelConfigError (a ValueError) whose text is `<file>:<line>: <what is wrong and what is allowed>`."""
    raise NotImplementedError


def load_folder(folder: Path) -> dict[str, ModelConfig]:
    """Every model of a folder, by name (the file's stem)."""
    raise NotImplementedError
