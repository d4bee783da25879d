"""Engines that are started once for all contract tests, when the first one asks for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

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
