"""Every page can be reached, its links lead somewhere, and its code is code."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from tests.docs.pages import DOCS, PAGES, ROOT, Block, anchors, blocks, prose, text_of


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_between_pages_leads_to_a_file_and_a_heading(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text("utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        there = file.exists()
        if not there or (anchor and anchor not in anchors(file.read_text("utf-8"))):
            broken.append(target)

    assert not broken


def test_the_index_names_every_page() -> None:
    linked = set(re.findall(r"\]\(([\w./-]+\.md)\)", text_of("README.md")))

    assert {page.name for page in DOCS.glob("*.md")} - {"README.md"} <= linked


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_python_in_the_pages_compiles(block: Block) -> None:
    compile(block.code, str(block), "exec")


@pytest.mark.parametrize("block", blocks("json"), ids=str)
def test_json_in_the_pages_is_json(block: Block) -> None:
    json.loads(block.code)


@pytest.mark.parametrize("block", blocks("yaml"), ids=str)
def test_yaml_in_the_pages_is_yaml(block: Block) -> None:
    assert isinstance(yaml.safe_load(block.code), dict)


def test_no_page_ends_without_a_line_end_or_holds_a_tab() -> None:
    bad = [p.name for p in PAGES if not p.read_text().endswith("\n") or "\t" in p.read_text()]

    assert not bad
