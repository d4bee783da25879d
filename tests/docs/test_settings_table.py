"""The table of settings says what the code says."""

from __future__ import annotations

from pathlib import Path

import pytest

from scheduler.settings import PREFIX, Settings


@pytest.mark.parametrize("name", Settings.model_fields)
def test_the_table_has_every_setting_with_its_sentence_and_default(name: str, root: Path) -> None:
    field = Settings.model_fields[name]
    default = field.default
    text = ",".join(default) if isinstance(default, tuple) else str(default)
    row = (
        f"| `{PREFIX}{name.upper()}` | {f'`{text}`' if text else '(empty)'} | {field.description} |"
    )

    assert row in (root / "docs" / "settings.md").read_text()
