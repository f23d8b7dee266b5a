"""A real Chromium, headless, and the companion of `lvspec play` that it opens."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Playwright

from tests.server.serving import ROOT

NAMES = ("chromium", "chromium-browser", "google-chrome")
PATIENCE_MS = 60_000  # for one answer, on a machine that does other things, too
HOW = (
    "no Chromium: install one (apt-get install chromium, or python -m playwright install chromium), or name it in the "
    "environment: CHROMIUM=path"
)


def find_chromium(playwright: Playwright) -> str:
    """Path of a Chromium. Without one the test is skipped; on CI it fails."""
    own = playwright.chromium.executable_path
    named = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if not named and not Path(own).is_file():
        unavailable(HOW)
    return named or own


def unavailable(reason: str) -> NoReturn:
    """Skip, or fail on CI."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"the page must be tested on CI: {reason}")
    pytest.skip(reason)


@contextmanager
def launched(playwright: Playwright) -> Iterator[Browser]:
    """A running one. Root has no sandbox in most containers."""
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    browser = playwright.chromium.launch(executable_path=find_chromium(playwright), args=arguments)
    yield browser
    browser.close()


@dataclass
class Companion:
    """A starting `lvspec play`; `page_url` waits for it."""

    process: subprocess.Popen[str]
    told: list[str] = field(default_factory=list)

    @property
    def page_url(self) -> str:
        """Where its page is."""
        assert self.process.stdout is not None
        while len(self.told) < 2:
            line = self.process.stdout.readline()
            assert line, f"lvspec play ended: {self.told}"
            self.told.append(line)
        found = re.fullmatch(r"page +(http://\S+)\n", self.told[1])
        assert found, self.told
        return found.group(1)


@contextmanager
def companion(server_url: str, *arguments: str) -> Iterator[Companion]:
    """A companion of the server, on a free port."""
    command = [sys.executable, "-m", "sgl_lvspec.cli", "play", "--url", server_url, "--port", "0", *arguments]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    yield Companion(process)
    process.terminate()
    process.wait(timeout=30)
    assert process.stdout is not None
    rest = process.stdout.read()
    assert "Traceback" not in rest, rest


@contextmanager
def opened(browser: Browser, url: str, *, may_fail: bool = False, **context: Any) -> Iterator[Page]:
    """The page, once it knows the server and the clips.

    Whatever the browser complains of, and every request that leaves for another address, fails the test.

    Args:
        may_fail: failed requests, which the browser reports too, are what the test is about.
    """
    complaints: list[str] = []
    with browser.new_context(**context) as made:
        page = made.new_page()
        page.set_default_timeout(PATIENCE_MS)

        def on_console(message: ConsoleMessage) -> None:
            is_expected = may_fail and "Failed to load resource" in message.text
            if message.type in ("error", "warning") and not is_expected:
                complaints.append(message.text)

        page.on("console", on_console)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: None if is_own(request.url, url) else complaints.append(request.url))
        page.goto(url)
        page.locator("#server-text", has_text="·").wait_for()
        page.locator("#clips input:checked").wait_for()
        yield page
        assert complaints == []


def is_own(address: str, url: str) -> bool:
    """Whether a request stays with the companion."""
    return address.startswith((url + "/", f"blob:{url}/", "data:"))
