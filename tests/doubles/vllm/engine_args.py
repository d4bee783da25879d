"""Engine arguments; in the package they are many more, in ``vllm.engine.arg_utils``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class AsyncEngineArgs:
    model: str = "Qwen/Qwen3-0.6B"
    dtype: str = "auto"
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    pipeline_parallel_size: int = 1
    tensor_parallel_size: int = 1
    gpu_memory_utilization: float = 0.92
    enable_prefix_caching: bool | None = None
    enable_log_requests: bool = False
