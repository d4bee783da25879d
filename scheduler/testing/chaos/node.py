"""A node as ``plait node`` runs it, with the light model server in TorchServe's place."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from rich.console import Console

from scheduler.app import run_node
from scheduler.settings import Settings, load
from scheduler.supervisor import Program


def _model_server(settings: Settings) -> Program:
    return Program(
        name="model-server",
        command=lambda: [sys.executable, "-m", "scheduler.testing.chaos.model_server"],
        environment=os.environ,
        cwd=Path.cwd(),
        log_file=settings.state.absolute() / "logs" / "model-server.log",
    )


if __name__ == "__main__":
    settings = load()
    run_node(settings, Console(), model_server=_model_server(settings))
