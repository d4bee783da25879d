"""What is used of the vllm package, and how Plait's requests and settings are said in its words.

Written for vLLM 0.33 (``vllm/v1/engine/async_llm.py``, ``vllm/sampling_params.py``,
``vllm/engine/arg_utils.py``). Nothing of it is imported until an engine is started: the package is
no dependency of Plait's.

Three things are not left to vLLM, so that an answer means the same with every engine: text and
stop strings are made from the tokens here; which tokens end an answer is told by us; and the
``n`` answers to a prompt are ``n`` requests, which may each go on from tokens of its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import hashlib
import importlib
import importlib.metadata
import importlib.util
import multiprocessing
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from handlers.model_config import ModelConfig
from handlers.pipeline import process
from handlers.pipeline.generation import Limits
from handlers.pipeline.step import Draw
from handlers.wire import BadRequest, GenerationRequest

#: The version whose interface this is.
WRITTEN_FOR: Final = "0.33"
#: Arguments that would make vLLM span nodes or start copies of itself: TorchServe's part.
_NOT_HERE: Final = ("model", "nnodes", "node_rank", "data_parallel_size")
#: What torchrun tells the processes it starts. vLLM's own would take it for theirs: with
#: TORCHELASTIC_USE_AGENT_STORE torch.distributed waits for a store that torchrun does not have.
_TORCHRUN_PREFIXES: Final = ("TORCHELASTIC_", "GROUP_", "ROLE_")
_TORCHRUN_NAMES: Final = (
    "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
)  # fmt: skip
#: What is used, and where it is.
_USED: Final[Mapping[str, tuple[str, str]]] = {
    "AsyncLLM": ("vllm.v1.engine.async_llm", "AsyncLLM"),
    "AsyncEngineArgs": ("vllm", "AsyncEngineArgs"),
    "SamplingParams": ("vllm", "SamplingParams"),
    "StructuredOutputsParams": ("vllm.sampling_params", "StructuredOutputsParams"),
    "RequestOutputKind": ("vllm.sampling_params", "RequestOutputKind"),
    "TokensPrompt": ("vllm", "TokensPrompt"),
    "EngineDeadError": ("vllm.v1.engine.exceptions", "EngineDeadError"),
    "ClientError": ("vllm.exceptions", "VLLMClientError"),
}
#: Set for vLLM's processes: they belong to a worker and end with it.
OWNED: Final = "PLAIT_OWNS_VLLM"


@dataclass(frozen=True, slots=True)
class Library:
    """The names of the vllm package that are used, wherever a version has them."""

    AsyncLLM: Any
    AsyncEngineArgs: Any
    SamplingParams: Any
    StructuredOutputsParams: Any
    RequestOutputKind: Any
    TokensPrompt: Any
    #: The engine's processes are gone; nothing can be asked of it any more.
    EngineDeadError: type[Exception]
    #: The request is at fault; ``parameter`` may name what of it.
    ClientError: type[Exception]

    @classmethod
    def load(cls) -> Library:
        """Import the package, which takes seconds.

        Raises:
            ValueError: it is not installed, or is another version than this was written for.
        """
        if importlib.util.find_spec("vllm") is None:
            raise ValueError(
                "engine vllm needs the package vllm, which is not installed here: install "
                f"vllm {WRITTEN_FOR}, or use engine pipelined"
            )
        try:
            return cls(**{name: _import(*where) for name, where in _USED.items()})
        except (ImportError, AttributeError) as error:
            raise ValueError(
                f"engine vllm is written for vllm {WRITTEN_FOR}; {_installed()} is installed and "
                f"does not fit: {error}"
            ) from error

    def engine_args(self, config: ModelConfig, model_dir: Path) -> Any:
        """The ``AsyncEngineArgs`` of a model.

        Raises:
            ValueError: ``engine_options`` has what vLLM does not know or Plait decides.
        """
        known = {field.name for field in dataclasses.fields(self.AsyncEngineArgs)}
        arguments = engine_arguments(config, model_dir)
        for name in arguments.keys() - known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]}" if near else ""
            raise ValueError(
                f"{config.name}: plait.engine_options.{name}: vllm {_installed()} has no such "
                f"engine argument{hint}"
            )
        return self.AsyncEngineArgs(**arguments)

    def sampling_params(
        self, request: GenerationRequest, index: int, num_prompt: int, limits: Limits
    ) -> Any:
        """The ``SamplingParams`` of the answer ``index`` to a prompt of ``num_prompt`` tokens.

        Raises:
            BadRequest: vLLM does not take a value, such as a temperature above 2.
        """
        num_known = len(request.generated_of(index))
        most = min(request.max_new_tokens, limits.max_context - num_prompt)
        try:
            return self.SamplingParams(
                temperature=request.temperature,
                top_k=request.top_k,
                top_p=request.top_p,
                min_p=request.min_p,
                seed=_seed(request.seed or 0, index, num_known),
                repetition_penalty=request.repetition_penalty,
                presence_penalty=request.presence_penalty,
                frequency_penalty=request.frequency_penalty,
                logit_bias=dict(request.logit_bias) or None,
                logprobs=request.logprobs,
                max_tokens=most - num_known,
                # Its own idea of what ends an answer is not asked for.
                ignore_eos=True,
                stop_token_ids=[] if request.ignore_eos else sorted(limits.eos_token_ids),
                structured_outputs=self._structured(request),
                detokenize=False,
                output_kind=self.RequestOutputKind.DELTA,
            )
        except (ValueError, self.ClientError) as error:
            raise refusal(error) from None

    def _structured(self, request: GenerationRequest) -> Any:
        if request.json_schema is not None:
            return self.StructuredOutputsParams(json=request.json_schema)
        if request.regex is not None:
            return self.StructuredOutputsParams(regex=request.regex)
        return None


def engine_arguments(config: ModelConfig, model_dir: Path) -> dict[str, Any]:
    """What a model's YAML says, as vLLM's engine arguments; ``engine_options`` go before.

    Raises:
        ValueError: options that Plait decides, or a split that does not make up the ranks.
    """
    options = config.engine_options
    if refused := sorted(set(options) & set(_NOT_HERE)):
        raise ValueError(
            f"{config.name}: plait.engine_options.{refused[0]} cannot be set: a replica is one "
            "copy of its model on one node; plait.replicas makes more of them"
        )
    return {
        "dtype": config.dtype,
        "max_model_len": config.max_context,
        "max_num_seqs": config.max_batch,
        **options,
        **_split(config, options),
        "model": str(model_dir),
    }


def _split(config: ModelConfig, options: Mapping[str, Any]) -> dict[str, int]:
    """How many stages, and how many devices in each: together the replica's ranks."""
    tensor = options.get("tensor_parallel_size", 1)
    is_size = isinstance(tensor, int) and tensor > 0
    stages = options.get("pipeline_parallel_size", config.num_stages // tensor if is_size else 1)
    if not is_size or tensor * stages != config.num_stages:
        raise ValueError(
            f"{config.name}: pipeline_parallel_size {stages} times tensor_parallel_size {tensor} "
            f"must be torchrun.nproc-per-node, which is {config.num_stages}"
        )
    return {"pipeline_parallel_size": stages, "tensor_parallel_size": tensor}


def _seed(seed: int, index: int, num_known: int) -> int:
    """A seed for one answer from one place on: 0 to 2**63 - 1.

    vLLM's generator starts anew with each request. With the same seed an answer that is resumed
    would be drawn with the noise its first tokens had.
    """
    digest = hashlib.blake2b(f"{seed} {index} {num_known}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def draws_of(output: Any, num_top: int | None) -> list[Draw]:
    """The tokens of a ``CompletionOutput`` with kind DELTA, in order."""
    if num_top is None:
        return [Draw(token_id) for token_id in output.token_ids]
    pairs = zip(output.token_ids, output.logprobs, strict=True)
    return [_draw(token_id, likely, num_top) for token_id, likely in pairs]


def _draw(token_id: int, likely: Mapping[int, Any], num_top: int) -> Draw:
    """``likely`` holds the drawn token and the likeliest ones, with their ranks from 1."""
    ranked = sorted((each.rank, token) for token, each in likely.items())
    top = [(token, likely[token].logprob) for rank, token in ranked if rank <= num_top]
    return Draw(token_id, likely[token_id].logprob, tuple(top[:num_top]))


def refusal(error: Exception) -> BadRequest:
    """What vLLM has against a request, as everybody else would say it."""
    message = str(error.args[0]) if error.args else str(error)
    return BadRequest(str(getattr(error, "parameter", None) or ""), f"vllm: {message}")


def end_with_worker() -> None:
    """Let one of vLLM's processes end when the one that started it does.

    vLLM calls this in each of them, as an entry point of its group ``vllm.general_plugins``. Its
    engine process has no eye on its parent: when a worker was killed it would keep the devices.
    """
    parent = multiprocessing.parent_process()
    if parent is None or os.environ.get(OWNED) != "1":
        return
    if os.getppid() != parent.pid:
        process.end(f"the worker {parent.pid} was gone before this process had begun")
    if all(thread.name != "parent-watch" for thread in threading.enumerate()):
        process.die_with_parent(is_forked_by_a_lasting_thread=False)


@contextlib.contextmanager
def own_environment() -> Iterator[None]:
    """Start processes that know nothing of torchrun, and that end with this one."""
    before = dict(os.environ)
    for name in before:
        if name in _TORCHRUN_NAMES or name.startswith(_TORCHRUN_PREFIXES):
            del os.environ[name]
    # This process has threads; what is forked from it may find their locks held for ever.
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    os.environ[OWNED] = "1"
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _import(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)


def _installed() -> str:
    try:
        return importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        return "of an unknown version"
