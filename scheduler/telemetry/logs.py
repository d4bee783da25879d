"""Logs: one line an event, named in the past tense, never a prompt, a result or a key.

Lines for a person when the output is a terminal, JSON otherwise.
"""

from __future__ import annotations

import logging
import sys
from typing import TextIO

import structlog


def configure(level: str, output: TextIO | None = None) -> None:
    """Send structlog's events of at least ``level`` to ``output`` (standard error by default)."""
    stream = output or sys.stderr
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer() if stream.isatty() else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=True,
    )
