"""The page of `lvspec play` in a real browser, beside real servers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from tests.server.browser import PATIENCE_MS, companion, launched, opened
from tests.server.oracle import LOOSENED
from tests.server.prompts import DESCRIBE, VIDEO, chat, payload
from tests.server.serving import Server

TOKENS = 96  # as prompts.payload
UPLOAD_MB = 1
PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
BY_KEYBOARD = 40  # presses of Tab that anything on the page takes, at most

expect.set_options(timeout=PATIENCE_MS)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright, launched(playwright) as browser:
        yield browser


class Pages(NamedTuple):
    """Addresses of companions, by the server that they stand beside."""

    loose: str
    strict: str
    plain: str


@pytest.fixture(scope="module")
def pages(
    browser: Browser, loose_server: Server, lvspec_server: Server, plain_server: Server, clips: Path
) -> Iterator[Pages]:
    flags = ("--clips", str(clips), "--max-tokens", str(TOKENS), "--max-upload-mb", str(UPLOAD_MB))
    with ExitStack() as stack:  # all three load their tokenizer at the same time
        servers = (loose_server, lvspec_server, plain_server)
        started = [stack.enter_context(companion(server.url, *flags)) for server in servers]
        yield Pages(*(each.page_url for each in started))


@pytest.fixture
def page(browser: Browser, pages: Pages) -> Iterator[Page]:
    """The page beside the loose server."""
    with opened(browser, pages.loose, viewport={"width": 1280, "height": 800}) as page:
        yield page


@pytest.fixture(scope="module")
def clip(clips: Path) -> Path:
    return sorted(clips.glob("*.mp4"))[0]


@pytest.fixture(scope="module")
def described(videos: list[str]) -> dict[str, Any]:
    """What the page asks about the clip, as a request."""
    return payload(chat(VIDEO + DESCRIBE), video_data=videos[0], max_new_tokens=TOKENS)


@pytest.fixture(scope="module")
def loose_answer(loose_server: Server, described: dict[str, Any]) -> dict[str, Any]:
    """What the loose server says to it, with labels."""
    sampling = {**described["sampling_params"], "custom_params": {"lvspec": {"labels": True}}}
    return loose_server.generate({**described, "sampling_params": sampling})


@pytest.fixture(scope="module")
def plain_text(plain_server: Server, described: dict[str, Any]) -> str:
    """What the target alone says."""
    text: str = plain_server.generate(described)["text"]
    return text


def upload(page: Page, path: Path) -> None:
    page.locator("#file").set_input_files(path)
    expect(page.locator("#clips label", has_text=path.name).locator("input")).to_be_checked()


def ask(page: Page, text: str = DESCRIBE) -> Locator:
    """The answer, once it is there."""
    page.locator("#question").fill(text)
    page.keyboard.press("Enter")
    return finished(page)


def finished(page: Page) -> Locator:
    answer = page.locator(".answer").last
    expect(page.locator("#stop")).to_be_hidden()
    expect(answer).not_to_have_attribute("aria-busy", "true")
    return answer


def number(page: Page, name: str) -> str:
    return page.locator(f"#number-{name}").inner_text()


def flip(page: Page) -> None:
    page.locator("label.switch").click()


def test_an_uploaded_clip_is_answered_token_by_token_in_colours(
    page: Page, clip: Path, loose_answer: dict[str, Any]
) -> None:
    upload(page, clip)
    assert page.locator("#stage video").get_attribute("src", timeout=0).startswith("blob:")
    page.locator("#question").fill(DESCRIBE)
    page.locator("#send").click()
    page.locator(".answer[aria-busy] .t").first.wait_for()  # tokens that come before the answer is finished
    expect(page.locator("#stop")).to_be_visible()
    answer = finished(page)
    assert answer.text_content() == loose_answer["text"]
    meta = loose_answer["meta_info"]
    shown = {label: answer.locator(f".t.{label}").count() for label in ("match", "filler", "shift", "bonus")}
    told = {**meta["lvspec"]["accepted"], "bonus": meta["lvspec"]["bonus"]}
    told[meta["lvspec_labels"][-1]] -= 1  # the end token has no text
    assert shown == told
    style = (
        "node => { const s = getComputedStyle(node); return [s.color, s.textDecorationLine, s.textDecorationStyle]; }"
    )
    looks = [answer.locator(f".t.{label}").first.evaluate(style) for label in ("match", "filler", "bonus")]
    assert len({color for color, *_ in looks}) == len({tuple(line) for _, *line in looks}) == 3
    assert number(page, "t") == f"{meta['lvspec']['T']:.2f}"
    assert number(page, "rounds") == str(meta["lvspec"]["rounds"])
    assert number(page, "loosened") == f"{100 * meta['lvspec']['divergence']:.1f} %"
    assert number(page, "against") == "–", "nobody has measured it"


@pytest.mark.parametrize("how", ["hover", "focus"])
def test_a_loosened_token_tells_what_the_target_would_have_said(
    page: Page, clip: Path, loose_answer: dict[str, Any], tokenizer: Any, how: str
) -> None:
    upload(page, clip)
    answer = ask(page)
    meta = loose_answer["meta_info"]
    at = next(i for i, label in enumerate(meta["lvspec_labels"]) if label in LOOSENED)
    first = answer.locator("mark.t").first
    if how == "hover":
        first.hover()
    else:
        answer.locator(".t").first.focus()
        page.keyboard.press("n")
        expect(first).to_be_focused()
    details = page.locator("#details")
    expect(details).to_contain_text(tokenizer.decode([loose_answer["output_ids"][at]]).strip())
    expect(details).to_contain_text(meta["lvspec_labels"][at])
    expect(details).to_contain_text(tokenizer.decode([meta["lvspec_choice"][at]]).strip())
    expect(details).to_contain_text(f"{meta['lvspec_given_up'][at]:.2f} nats")
    expect(details).to_contain_text(f"{meta['lvspec_relevance'][at]:.2f}")
    expect(details).to_have_attribute("aria-live", "polite" if how == "focus" else "off")
    page.keyboard.press("Escape")
    if how == "focus":
        expect(page.locator("#question")).to_be_focused()
    page.mouse.move(5, 5)
    expect(details).to_contain_text("Point at a word")


def test_strict_is_the_targets_own_answer(page: Page, clip: Path, plain_text: str) -> None:
    upload(page, clip)
    flip(page)
    expect(page.locator("#preset")).to_have_value("strict")
    answer = ask(page)
    assert answer.text_content() == plain_text
    assert answer.locator("mark, .filler, .shift").count() == 0 and answer.locator(".match").count() > 0
    assert number(page, "loosened") == "0.0 %"
    expect(page.locator(".status").last).to_contain_text("strict (asked for strict)")


def test_side_by_side_marks_what_differs_and_measures_both(
    page: Page, clip: Path, loose_answer: dict[str, Any], plain_text: str
) -> None:
    upload(page, clip)
    page.locator("#question").fill(DESCRIBE)
    page.locator("#both").click()
    card = page.locator(".comparison")
    expect(card.locator(".verdict")).to_contain_text("They differ in")
    strict, loose = card.locator(".side-text").all()
    assert (strict.text_content(), loose.text_content()) == (plain_text, loose_answer["text"])
    assert strict.locator("del").count() > 0 and strict.locator("ins").count() == 0
    assert loose.locator("ins").count() > 0 and loose.locator("del").count() == 0
    speeds = [float(re.findall(r"([\d.]+) tokens/s", head)[0]) for head in card.locator("h3").all_inner_texts()]
    ratio = float(re.findall(r"([\d.]+)×", card.locator(".verdict").inner_text())[0])
    assert ratio == pytest.approx(speeds[1] / speeds[0], abs=0.02)
    assert number(page, "against") == f"{ratio:.2f}×"


def test_a_second_turn_finds_the_first_in_the_cache(page: Page, clip: Path) -> None:
    upload(page, clip)
    ask(page)
    prompt = int(re.findall(r"of (\d+) prompt", page.locator("#numbers").inner_text())[0])
    answer = ask(page, "What happens first?")
    assert answer.text_content()
    assert int(number(page, "cached")) >= prompt, "the clip and the first question"
    assert page.locator(".turn").count() == 2
    page.locator("#clips label").nth(1).click()
    expect(page.locator(".divider")).to_contain_text("A new conversation")


def test_settings_follow_the_preset_and_the_slider(page: Page, clip: Path) -> None:
    page.locator("#preset").select_option("conservative")
    expect(page.locator("#relaxation-value")).to_have_text("0.50")
    upload(page, clip)
    ask(page)
    expect(page.locator(".status").last).to_contain_text("loose, conservative")
    page.locator("#relaxation").fill("0.2")
    ask(page)
    expect(page.locator(".status").last).to_contain_text("loose, custom")
    page.locator("#relaxation").fill("0")
    expect(page.locator("#loose-note")).to_contain_text("λ is 0, which is strict")


def tab_to(page: Page, selector: str, key: str = "Tab") -> None:
    """Move the focus there by keyboard."""
    for _ in range(BY_KEYBOARD):
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
        page.keyboard.press(key)
    raise AssertionError(f"{BY_KEYBOARD} times {key} do not lead to {selector}")


def test_everything_can_be_done_by_keyboard(page: Page) -> None:
    tab_to(page, "#clips input")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#clips label").nth(1).locator("input")).to_be_checked()
    tab_to(page, "#file")
    tab_to(page, "#loose")
    page.keyboard.press("Space")
    expect(page.locator("#preset")).to_have_value("strict")
    page.keyboard.press("Space")
    tab_to(page, "#relaxation")
    tab_to(page, "#question")
    page.keyboard.type(DESCRIBE)
    page.keyboard.press("Enter")
    answer = finished(page)
    expect(page.locator("#question")).to_be_focused()
    tab_to(page, ".answer .t", "Shift+Tab")
    page.keyboard.press("End")
    expect(answer.locator(".t").last).to_be_focused()
    page.keyboard.press("ArrowUp")
    assert page.evaluate("document.activeElement.tagName") == "MARK"
    expect(answer.locator("[tabindex='0']")).to_have_count(1)  # an answer is one stop of Tab, not a hundred
    expect(answer.locator("[tabindex='0']")).to_be_focused()
    expect(page.locator("#details")).to_contain_text("own choice")
    tab_to(page, ".actions button")
    page.keyboard.press("Enter")
    expect(page.locator(".verdict")).to_contain_text(re.compile("differ|same"))


# As quick as nobody is: on a machine that does other things, too, an answer may be finished before a mouse gets there.
STOP_AT_THE_FIRST_TOKEN = """() => new MutationObserver((_, observer) => {
  if (!document.querySelector(".answer .t")) return;
  observer.disconnect();
  document.getElementById("stop").click();
}).observe(document.getElementById("turn-list"), {childList: true, subtree: true})"""


def test_stop_ends_the_answer(page: Page, clip: Path, loose_answer: dict[str, Any]) -> None:
    upload(page, clip)
    page.locator("#question").fill(DESCRIBE)
    page.evaluate(STOP_AT_THE_FIRST_TOKEN)
    page.keyboard.press("Enter")
    page.locator(".answer .t").first.wait_for()
    answer = finished(page)
    expect(page.locator(".status").last).to_contain_text("Stopped")
    assert loose_answer["text"].startswith(answer.text_content() or "")
    assert len(answer.text_content() or "") < len(loose_answer["text"])
    expect(page.locator("#question")).to_be_focused()


def test_a_phone_needs_no_sideways_scrolling(browser: Browser, pages: Pages, clip: Path) -> None:
    def width() -> int:
        found: int = page.evaluate("document.documentElement.scrollWidth")
        return found

    with opened(browser, pages.loose, **PHONE) as page:
        assert width() == 360
        upload(page, clip)
        page.locator("#question").fill(DESCRIBE)
        page.locator("#both").tap()
        expect(page.locator(".verdict")).to_contain_text("differ")
        page.locator("#settings-fold summary").tap()
        assert width() == 360
        page.locator(".answer mark.t").first.tap()
        expect(page.locator("#details")).to_be_in_viewport()
        expect(page.locator("#details")).to_contain_text("own choice")
        assert width() == 360


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(browser: Browser, pages: Pages, clip: Path, scheme: str) -> None:
    with opened(browser, pages.loose, color_scheme=scheme, reduced_motion="reduce") as page:
        assert Axe().run(page).response["violations"] == []
        upload(page, clip)
        page.locator("#question").fill(DESCRIBE)
        page.locator("#both").click()
        expect(page.locator(".verdict")).to_contain_text("differ")
        page.locator(".answer mark.t").first.focus()
        found = Axe().run(page).response["violations"]
        assert found == [], [(each["id"], [node["html"] for node in each["nodes"]]) for each in found]


def test_without_lvspec_the_page_says_so_and_answers(
    browser: Browser, pages: Pages, clip: Path, plain_text: str
) -> None:
    with opened(browser, pages.plain) as page:
        expect(page.locator("#loose")).to_be_disabled()
        expect(page.locator("#loose-note")).to_contain_text("This server runs without LVSPEC")
        expect(page.locator("#both")).to_be_disabled()
        expect(page.locator("#legend")).to_be_hidden()
        expect(page.locator("#number-t")).to_be_hidden()
        expect(page.locator("#number-speed")).to_be_visible()
        upload(page, clip)
        answer = ask(page)
        assert answer.text_content() == plain_text
        assert answer.locator(".unlabelled").count() > 0 and answer.locator("mark").count() == 0
        expect(page.locator(".status").last).to_contain_text("no LVSPEC")


def test_a_strict_server_is_quoted(browser: Browser, pages: Pages, clip: Path, plain_text: str) -> None:
    with opened(browser, pages.strict) as page:
        expect(page.locator("#loose")).to_be_disabled()
        expect(page.locator("#loose-note")).to_contain_text("needs a server with a preset that loosens")
        upload(page, clip)
        assert ask(page).text_content() == plain_text


def test_text_alone_is_strict_and_says_why(page: Page) -> None:
    page.locator("#clips label", has_text="no clip").click()
    ask(page, "Hello, who are you?")
    expect(page.locator(".status").last).to_contain_text("strict (no image or video)")
    expect(page.locator(".actions").last).to_be_empty()  # both answers would be the strict one


def test_uploads_that_cannot_be_used_are_refused_in_words(browser: Browser, pages: Pages, tmp_path: Path) -> None:
    broken, large, other = tmp_path / "broken.mp4", tmp_path / "large.mp4", tmp_path / "notes.txt"
    broken.write_bytes(b"no video at all")
    large.write_bytes(bytes(UPLOAD_MB * 2**20 + 1))
    other.write_text("text")
    with opened(browser, pages.loose, may_fail=True) as page:
        page.locator("#file").set_input_files(large)
        expect(page.locator("#clip-note")).to_contain_text(f"An upload can have {UPLOAD_MB}.0 MB")
        page.locator("#file").set_input_files(other)
        expect(page.locator("#clip-note")).to_contain_text("A video or an image is needed; found notes.txt")
        upload(page, broken)
        expect(page.locator("#clip-note")).to_contain_text("This browser cannot show broken.mp4")
        page.locator("#question").fill(DESCRIBE)
        page.keyboard.press("Enter")
        expect(page.locator(".status.wrong")).to_be_visible()
        expect(page.get_by_role("button", name="Ask again")).to_be_visible()


def test_an_upload_that_the_companion_has_forgotten_is_sent_again(
    browser: Browser, pages: Pages, clip: Path, loose_answer: dict[str, Any]
) -> None:
    with opened(browser, pages.loose, may_fail=True) as page:
        upload(page, clip)
        for _ in range(20):
            page.request.post(f"{pages.loose}/api/uploads", data=b"x", headers={"Content-Type": "video/mp4"})
        assert ask(page).text_content() == loose_answer["text"]
