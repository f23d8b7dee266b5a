"""The page in a real Chromium beside a scripted server: what a real one does rarely."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

from sgl_lvspec.client.chat import ChatFormat
from tests.server.browser import launched, opened
from tests.sgl_lvspec.client.fake_sglang import Script, chunk, fake_sglang
from tests.sgl_lvspec.play.companion import ABOUT_DEMO, TARGET, beside, companion

PATIENCE_MS = 30_000
SAID = "The video shows two red circles."


expect.set_options(timeout=PATIENCE_MS)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright, launched(playwright) as browser:
        yield browser


@pytest.fixture(scope="module")
def chunks() -> list[dict[str, Any]]:
    """An answer with each label."""
    ids = ChatFormat.load(TARGET)._tokenizer(SAID)["input_ids"]
    labels = ("bmfs" + "m" * len(ids))[: len(ids)]
    return [chunk(ids[:n], labels[:n], finish="stop" if n == len(ids) else None) for n in range(1, len(ids) + 1)]


class Held:
    """The first three chunks, and the rest once somebody lets them go."""

    def __init__(self, chunks: list[Any]) -> None:
        self.chunks = chunks
        self.go_on = threading.Event()

    def __iter__(self) -> Iterator[Any]:
        yield from self.chunks[:3]
        self.go_on.wait(60)
        yield from self.chunks[3:]


def test_each_kind_of_token_has_a_line_of_its_own(browser: Browser, chunks: list[dict[str, Any]]) -> None:
    with companion(Script(chunks, about=ABOUT_DEMO)) as client, opened(browser, str(client.base_url)) as page:
        page.locator("#suggestions button").first.click()
        expect(page.locator(".answer")).to_have_text(SAID)
        style = "node => { const s = getComputedStyle(node); return s.textDecorationLine + s.textDecorationStyle; }"
        kinds = ("match", "filler", "shift", "bonus")
        lines = [page.locator(f".answer .{kind}").first.evaluate(style) for kind in kinds]
        assert len(set(lines)) == 4
        expect(page.locator("#legend .count")).to_have_text([str(len(chunks) - 3), "1", "1", "1"])
        page.locator(".answer .shift").hover()
        expect(page.locator("#details")).to_contain_text("a word that the target says nearby")


def test_tokens_show_while_the_rest_is_still_to_come(browser: Browser, chunks: list[dict[str, Any]]) -> None:
    script = Script(chunks, about=ABOUT_DEMO)
    with companion(script) as client, opened(browser, str(client.base_url)) as page:
        script.chunks = held = Held(chunks)  # type: ignore[assignment]
        page.locator("#suggestions button").first.click()
        expect(page.locator(".answer .t")).to_have_count(3)
        expect(page.locator(".answer")).to_have_attribute("aria-busy", "true")
        expect(page.locator("#number-t")).to_have_text("2.00")
        page.locator("#clips label").nth(1).click()  # another clip, while the answer about the first one comes
        held.go_on.set()
        expect(page.locator(".answer")).to_have_text(SAID)
        expect(page.locator(".divider")).to_contain_text("about passing")
        page.locator("#question").fill("And now?")
        page.keyboard.press("Enter")
        expect(page.locator(".answer").last).to_have_text(SAID)
    assert len(script.asked[-1]["video_data"]) == 1 and SAID not in script.asked[-1]["text"]


def test_an_error_in_the_middle_keeps_what_came_and_can_be_asked_again(
    browser: Browser, chunks: list[dict[str, Any]]
) -> None:
    script = Script(chunks, about=ABOUT_DEMO)
    with companion(script) as client, opened(browser, str(client.base_url)) as page:
        script.chunks = [*chunks[:3], b'data: {"error": {"message": "out of memory"}}\n\n']
        page.locator("#suggestions button").first.click()
        expect(page.locator(".status.wrong")).to_have_text("out of memory")
        expect(page.locator(".answer .t")).to_have_count(3)
        script.chunks = chunks
        page.get_by_role("button", name="Ask again").click()
        expect(page.locator(".answer")).to_have_text(SAID)
        expect(page.locator(".turn")).to_have_count(1)


def test_a_server_that_goes_and_comes_back(browser: Browser, chunks: list[dict[str, Any]]) -> None:
    script = Script(chunks, about=ABOUT_DEMO)
    with fake_sglang(script) as url, beside(url) as client:
        address = str(client.base_url)
        with opened(browser, address, may_fail=True) as page:
            script.about = b"gone"
            script.status, script.body = 503, b'{"error": {"message": "shutting down"}}'
            page.locator("#suggestions button").first.click()
            expect(page.locator(".status.wrong")).to_have_text("shutting down")
            expect(page.locator("#banner")).to_contain_text("This page looks for it every few seconds")
            expect(page.locator("#server-text")).to_have_text("No server")
            script.about, script.status = {**ABOUT_DEMO, "speculative_algorithm": None}, 200
            expect(page.locator("#banner")).to_be_hidden()
            expect(page.locator("#loose-note")).to_contain_text("This server runs without LVSPEC")


def test_the_companion_that_ends_is_said(browser: Browser, chunks: list[dict[str, Any]]) -> None:
    with fake_sglang(Script(chunks, about=ABOUT_DEMO)) as url:
        with beside(url) as client:
            address = str(client.base_url)
            context = browser.new_context()
            page = context.new_page()
            page.goto(address)
            page.locator("#server-text", has_text="·").wait_for()
        page.locator("#suggestions button").first.click()
        expect(page.locator(".status.wrong")).to_contain_text("Is lvspec play (make play) still running?")
        context.close()
