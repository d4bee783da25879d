"""Errors by whose fault they are."""

from __future__ import annotations

from typing import Any


class VLLMError(Exception):
    """Not a ValueError."""


class VLLMClientError(VLLMError):
    """The request is at fault."""


class VLLMServerError(VLLMError):
    """The server is."""


class VLLMValidationError(VLLMClientError):
    def __init__(self, message: str, *, parameter: str | None = None, value: Any = None) -> None:
        super().__init__(message)
        self.parameter = parameter
        self.value = value

    def __str__(self) -> str:
        given = {"parameter": self.parameter, "value": self.value}
        extras = [f"{name}={value}" for name, value in given.items() if value is not None]
        base = super().__str__()
        return f"{base} ({', '.join(extras)})" if extras else base
