"""What every test may use: the repository's folder, the demo model, free ports."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.postgres_server import Server

# Before torch is imported anywhere: the threads of a step wait for one another, and on a machine
# that does other work as well two of them can be ten times slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A build says whether a change is sound: it tries the same examples each time. New ones are sought
# wherever a person runs the tests.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's folder."""
    return ROOT


@pytest.fixture(scope="session")
def demo_folder() -> Path:
    """The demo model: config, tokenizer and weights."""
    return ROOT / "models" / "demo"


@pytest.fixture
def free_port() -> int:
    """A TCP port on loopback that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A PostgreSQL server, started when the first test asks for it."""
    server = Server()
    yield server
    server.close()


@pytest.fixture
def postgres_url(postgres: Server) -> Iterator[str]:
    """A database of the test's own, with the schema as it should be."""
    with postgres.database() as url:
        yield url
