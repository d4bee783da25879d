"""A log that cannot be written takes nobody down."""

from __future__ import annotations

import errno
import io
import json
from collections.abc import Iterator

import pytest
import structlog

from scheduler.telemetry import logs


class Disk(io.StringIO):
    """A file whose disk is full for a while."""

    is_full = False

    def write(self, text: str) -> int:
        if self.is_full:
            super().write(text[:9])
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(text)


@pytest.fixture
def disk() -> Iterator[Disk]:
    before = structlog.get_config()
    disk = Disk()
    logs.configure("info", disk)
    yield disk
    structlog.configure(**before)


def lines(disk: Disk) -> list[dict[str, object]]:
    """Those that are whole."""
    whole = [line for line in disk.getvalue().splitlines() if line.endswith("}")]
    return [json.loads(line) for line in whole]


def test_an_event_is_a_line(disk: Disk) -> None:
    structlog.get_logger("for the test").info("task_claimed", fence=1)

    [line] = lines(disk)
    assert (line["event"], line["fence"], line["level"]) == ("task_claimed", 1, "info")
    assert "num_lines_lost" not in line


def test_a_line_that_cannot_be_written_raises_nothing_and_is_counted(disk: Disk) -> None:
    log = structlog.get_logger("for the test")
    disk.is_full = True
    log.info("first")
    log.exception("second")
    disk.is_full = False

    log.info("third")
    log.info("fourth")

    assert [(line["event"], line.get("num_lines_lost")) for line in lines(disk)] == [
        ("third", 2),
        ("fourth", None),
    ]
