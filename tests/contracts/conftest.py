"""Engines that are started once, when the first test asks for them; stores, one for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from scheduler.stores.base import Store
from tests.contracts.store_subjects import OPENERS

if TYPE_CHECKING:
    from tests.contracts.engine_subjects import Subject


@pytest.fixture(scope="session")
def start_subject(
    root: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Subject]]:
    """The engine of a name, which is started the first time."""
    from tests.contracts.engine_subjects import Subject

    subjects: dict[str, Subject] = {}
    folder = tmp_path_factory.mktemp("engines") / "model"

    def start(name: str) -> Subject:
        if name not in subjects:
            subjects[name] = Subject(name, root, folder)
        return subjects[name]

    yield start
    for subject in subjects.values():
        subject.engine.close()


@pytest_asyncio.fixture(params=sorted(OPENERS))
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    """Each kind of store, empty."""
    opened = OPENERS[request.param](request)
    yield opened
    await opened.close()
