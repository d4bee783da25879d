"""Logs: one line an event, named in the past tense, never a prompt, a result or a key.

Lines for a person when the output is a terminal, JSON otherwise. A line that cannot be written,
because the disk is full or broken, is given up: whoever logs it may be the one who keeps the rest
going. The next line that can be written says how many were lost.
"""

from __future__ import annotations

import logging
import sys
from typing import TextIO

import structlog


class Output:
    """Where lines go, if they can."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        #: Lines given up since one was written.
        self.num_lost = 0

    def write(self, line: str) -> None:
        if self.num_lost:
            # What was lost may have been written in part.
            line = "\n" + line
        try:
            self._stream.write(line)
            self._stream.flush()
        except OSError:
            # There is nowhere else to tell it; it is counted and told later.
            self.num_lost += 1
        else:
            self.num_lost = 0

    def flush(self) -> None:
        """Every line is flushed as it is written."""

    def add_lost(
        self, _logger: object, _method: str, event: structlog.typing.EventDict
    ) -> structlog.typing.EventDict:
        """Say in an event how many were given up before it."""
        if self.num_lost:
            event["num_lines_lost"] = self.num_lost
        return event


def configure(level: str, output: TextIO | None = None) -> None:
    """Send structlog's events of at least ``level`` to ``output`` (standard error by default)."""
    stream = output or sys.stderr
    lines = Output(stream)
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer() if stream.isatty() else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            lines.add_lost,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        # It needs a stream to write to and to flush, and no more of one.
        logger_factory=structlog.WriteLoggerFactory(lines),  # type: ignore[arg-type]  # see above
        cache_logger_on_first_use=True,
    )
