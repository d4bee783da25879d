"""A start that cannot work is refused with words, before anything runs."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from scheduler import app, startup
from scheduler.errors import StartupError
from scheduler.settings import Settings


def test_a_taken_port_is_named_with_its_option() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]

        with pytest.raises(StartupError, match=rf"port {port} on 127.0.0.1 is taken.*--http-port"):
            startup.check_port("127.0.0.1", port, "http-port")


def test_an_address_that_is_not_ours_is_named() -> None:
    with pytest.raises(StartupError, match=r"cannot listen on 192\.0\.2\.1:8700"):
        startup.check_port("192.0.2.1", 8700, "http-port")


def test_an_unknown_model_is_named_with_those_there_are(root: Path) -> None:
    settings = Settings(models=("demi",), model_configs=root / "model_configs")

    with pytest.raises(StartupError, match=r"no model 'demi'.*there are: demo, gemma-2b, minilm"):
        app.load_models(settings)


def test_a_wrong_model_file_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("minWorkers: 3\n")

    with pytest.raises(StartupError, match=r"bad\.yaml:1: minWorkers"):
        app.load_models(Settings(models=("bad",), model_configs=tmp_path))
