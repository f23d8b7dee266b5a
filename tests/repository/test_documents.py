"""What the README and docs/ point to is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("*/README.md"))]
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
FENCE = re.compile(r"```.*?```", re.DOTALL)


def anchors_of(page: Path) -> set[str]:
    """Anchors of its headings, as the usual renderers make them."""
    titles = HEADING.findall(FENCE.sub("", page.read_text()))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_leads_somewhere(page: Path) -> None:
    for name, anchor in LINK.findall(page.read_text()):
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{page.name} points to {name}, which is not there"
        if anchor:
            assert anchor in anchors_of(target), f"{page.name} points to {name}#{anchor}, which has no such heading"


def test_the_pages_are_there() -> None:
    """A pattern that finds nothing would let everything pass."""
    assert {page.name for page in PAGES} >= {"README.md", "lossless.md", "settings.md", "serving.md"}
    assert any(LINK.search(page.read_text()) for page in PAGES)


def test_a_make_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        named = set(re.findall(r"(?<![\w-])make ([a-z][a-z-]+)(?=[`\s]|$)", page.read_text(), re.MULTILINE))
        code = {name for name in named if re.search(rf"(`|^    )make {name}", page.read_text(), re.MULTILINE)}
        assert code <= targets, f"{page.name} names make {', '.join(code - targets)}"
