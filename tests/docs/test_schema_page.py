"""docs/schema.md shows the tables the database has."""

from __future__ import annotations

from tests.docs.pages import text_of
from tests.docs.schema_block import block, generated_part


def test_the_tables_are_the_database_s() -> None:
    hint = "run: .venv/bin/python -m tests.docs.schema_block"

    assert generated_part(text_of("schema.md")) == block(), hint
