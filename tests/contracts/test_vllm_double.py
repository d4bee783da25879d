"""The double of vLLM, and a vLLM that is installed, have the interface that was recorded of 0.33.

``tests/data/vllm-0.33.0-interface.json`` holds the names of parameters, fields and members, read
from the package's sources.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

#: Prints the interface of the vllm package that the interpreter finds.
PRINT = """
import dataclasses, inspect, json, sys
from vllm import AsyncEngineArgs, SamplingParams, TokensPrompt
from vllm.exceptions import VLLMClientError, VLLMValidationError
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

def names(what):
    return [name for name in inspect.signature(what).parameters if name not in ("self", "kwargs")]

assert issubclass(VLLMValidationError, VLLMClientError)
assert not issubclass(EngineDeadError, VLLMClientError)
assert inspect.isasyncgenfunction(AsyncLLM.generate)
assert inspect.iscoroutinefunction(AsyncLLM.check_health)
of_prompt = getattr(TokensPrompt, "__annotations__", None)
print(json.dumps({
    "AsyncEngineArgs": [field.name for field in dataclasses.fields(AsyncEngineArgs)],
    "SamplingParams": names(SamplingParams),
    "StructuredOutputsParams": names(StructuredOutputsParams),
    "RequestOutputKind": [kind.name for kind in RequestOutputKind],
    "TokensPrompt": names(TokensPrompt) if inspect.isfunction(TokensPrompt) else list(of_prompt),
    "AsyncLLM.from_engine_args": names(AsyncLLM.from_engine_args),
    "AsyncLLM.generate": names(AsyncLLM.generate),
    "AsyncLLM.check_health": names(AsyncLLM.check_health),
    "AsyncLLM.shutdown": names(AsyncLLM.shutdown),
    "CompletionOutput": names(CompletionOutput),
    "RequestOutput": names(RequestOutput),
    "VLLMValidationError": names(VLLMValidationError),
}))
"""


def _interface(*folders: Path) -> dict[str, list[str]]:
    code = f"import sys; sys.path[:0] = {[str(folder) for folder in folders]!r}\n" + PRINT
    printed = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True
    )
    if "No module named 'vllm'" in printed.stderr:
        pytest.skip("vllm is not installed")
    assert printed.returncode == 0, printed.stderr
    lines = printed.stdout.splitlines()
    return dict(json.loads(lines[-1]))


def _recorded(root: Path) -> dict[str, list[str]]:
    path = root / "tests" / "data" / "vllm-0.33.0-interface.json"
    return dict(json.loads(path.read_text()))


def test_the_double_has_no_name_that_the_package_has_not(root: Path) -> None:
    recorded, double = _recorded(root), _interface(root / "tests" / "doubles")

    assert {what: set(names) - set(recorded[what]) for what, names in double.items()} == {
        what: set() for what in double
    }


@pytest.mark.timeout(300)
def test_an_installed_vllm_has_every_name_that_the_double_has(root: Path) -> None:
    installed = _interface()

    double = _interface(root / "tests" / "doubles")

    assert {what: set(names) - set(installed[what]) for what, names in double.items()} == {
        what: set() for what in double
    }
