"""The page's files: nothing from elsewhere, nothing that the content security policy would block, nothing missing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sgl_lvspec.play.app import STATIC

FILES = sorted(STATIC.iterdir())
HTML = (STATIC / "index.html").read_text()
NAMESPACE = "http://www.w3.org/2000/svg"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_no_file_names_another_host(file: Path) -> None:
    text = file.read_text().replace(NAMESPACE, "")
    assert not re.search(r"https?://\w|//cdn|@import|url\(", text)


def test_no_script_and_no_style_stand_in_the_markup() -> None:
    assert re.findall(r"<script[^>]*>[^<]", HTML) == []
    assert "<style" not in HTML and not re.search(r"\s(style|on\w+)=", HTML)


def test_what_the_page_loads_is_there() -> None:
    named = re.findall(r'(?:src|href)="static/([^"]+)"', HTML)
    assert len(named) >= 4
    for script in STATIC.glob("*.js"):
        named += re.findall(r'from "\./([^"]+)"', script.read_text())
    assert {name for name in named if not (STATIC / name).is_file()} == set()
    assert {file.name for file in FILES} - {"index.html"} == set(named), "and nothing else is shipped"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_the_page_may_stand_under_any_path(file: Path) -> None:
    """Behind a proxy that gives it a folder of its own."""
    assert not re.search(r"""["'`]/(static|api)/""", file.read_text())


def test_every_element_that_a_script_looks_up_is_in_the_markup() -> None:
    ids = set(re.findall(r'\sid="([^"]+)"', HTML))
    sought = {name for script in STATIC.glob("*.js") for name in re.findall(r'byId\("([^"]+)"\)', script.read_text())}
    assert sought and sought <= ids


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_files_are_short(file: Path) -> None:
    assert file.read_text().count("\n") <= 200
