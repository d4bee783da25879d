"""A double of the vllm package: what Plait's engine uses of vLLM 0.33, with its names, defaults and
checks, on top of a model that transformers runs in this process.

It is not vLLM's code, and only as fast as a test needs. ``tests/contracts/test_vllm_double.py``
holds its signatures to those of the package. Put ``tests/doubles`` on the path to import it.
"""

from vllm.engine_args import AsyncEngineArgs
from vllm.sampling_params import SamplingParams

__all__ = ["AsyncEngineArgs", "SamplingParams", "TokensPrompt"]


def TokensPrompt(*, prompt_token_ids: list[int]) -> dict[str, list[int]]:
    """A typed dictionary in the package."""
    return {"prompt_token_ids": prompt_token_ids}
