"""What a replica's engine writes of itself reaches who looks, and broken files reach nobody."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scheduler.dispatcher.messages import replica_views
from scheduler.rpc import plait_pb2 as pb
from scheduler.runner.engine_status import MAX_STATUS_BYTES, read_status
from scheduler.torchserve.archive import STATUS_FILE


def test_a_status_is_passed_on_as_compact_json(tmp_path: Path) -> None:
    (tmp_path / STATUS_FILE).write_text(json.dumps({"epoch": 3, "lanes": 2}, indent=2))

    assert read_status(tmp_path) == '{"epoch":3,"lanes":2}'


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b'{"epoch": 3',
        b"[1]",
        b"\xff\xfe",
        b'{"epoch": NaN}',
        b'{"epoch": 1e999}',
        b"[" * 10_000,
        json.dumps({"text": "x" * MAX_STATUS_BYTES}).encode(),
    ],
)
def test_a_file_that_is_torn_or_too_large_is_nothing_to_show(tmp_path: Path, body: bytes) -> None:
    (tmp_path / STATUS_FILE).write_bytes(body)

    assert read_status(tmp_path) == ""


def test_a_missing_folder_is_nothing_to_show(tmp_path: Path) -> None:
    assert read_status(tmp_path / "none") == ""


@pytest.mark.parametrize(
    ("told", "expected"),
    [("", None), ('{"epoch":3}', {"epoch": 3}), ("[3]", None), ("{", None), ("x" * 20_000, None)],
)
def test_the_control_plane_shows_what_is_an_object(told: str, expected: object) -> None:
    (view,) = replica_views([pb.Replica(name="demo__r0", model="demo", engine_json=told)])

    assert view.engine == expected
