"""Errors of the engine itself."""

from vllm.exceptions import VLLMServerError


class EngineGenerateError(VLLMServerError):
    """One request could not go on; the engine can."""


class EngineDeadError(VLLMServerError):
    """The engine's processes are gone."""

    def __init__(self) -> None:
        super().__init__("EngineCore encountered an issue. See stack trace (above).")
