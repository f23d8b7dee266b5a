"""The kit finds every fault that it claims to find, and finds none where there is none."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sgl_lvspec.testing import video_parity_kit
from sgl_lvspec.testing.endpoint import Answer
from sgl_lvspec.testing.reference import find_parting
from tests.sgl_lvspec.testing.stub_server import StubServer, stub_server

CHECKS = {
    line: f"test_{name}"
    for name, line in {
        "video": "Each video, chat",
        "image": "Each image, chat",
        "two_videos": "Two videos in one question, chat",
        "multi_turn_with_cached_video": "A second turn about the same video, chat",
        "second_question_reads_video_from_cache": "A second question about the same video finds it cached",
        "generate_endpoint": "Video, image and both, /generate",
        "stream": "A streamed chat about each video",
        "concurrent_requests": "The same questions at once, sharing their videos' cache",
        "acceptance_length": "Tokens a verify round about the videos",
    }.items()
}
COMPARING = frozenset(CHECKS.values()) - {"test_acceptance_length"}


@pytest.fixture
def media(tmp_path: Path) -> list[str]:
    """Two videos and an image, as options."""
    options = []
    for option, name in (("--video", "a.mp4"), ("--video", "b.mp4"), ("--image", "c.png")):
        (tmp_path / name).write_bytes(name.encode())
        options += [option, str(tmp_path / name)]
    return options


def run(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, set[str], str]:
    """Exit status of the command line, the checks that failed, and what it printed."""
    status = video_parity_kit.main(options)
    output = "".join(capsys.readouterr())
    failed = {line.split(": ", 1)[1] for line in output.splitlines() if line.startswith(("FAIL: ", "ERROR: "))}
    return status, {name for line, name in CHECKS.items() if any(line in found for found in failed)}, output


def against(server: StubServer, reference: StubServer, media: list[str]) -> list[str]:
    return ["--url", server.url, "--reference-url", reference.url, *media]


def test_a_server_in_parity_passes(capsys: pytest.CaptureFixture[str], media: list[str]) -> None:
    with stub_server() as server, stub_server(tokens_per_round=0) as reference:
        status, failed, output = run(capsys, *against(server, reference, media))
    assert (status, failed) == (0, set()), output
    assert all(f"{line} ... ok" in output for line in CHECKS)
    assert "acceptance length about the videos: 3.6667" in output
    assert "cached tokens, second question: 64, as without speculation" in output


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("one_other_token", COMPARING),
        ("ends_early", COMPARING),
        ("server_error", frozenset(CHECKS.values())),
        ("stream_loses_last_token", {"test_stream"}),
        ("caches_nothing", {"test_second_question_reads_video_from_cache", "test_multi_turn_with_cached_video"}),
        ("mixes_up_rows", {"test_concurrent_requests"}),
        ("forgets_first_turn", {"test_multi_turn_with_cached_video", "test_concurrent_requests"}),
        ("reads_one_video", {"test_two_videos", "test_generate_endpoint", "test_concurrent_requests"}),
    ],
)
def test_a_fault_fails_the_checks_that_meet_it(
    fault: str, expected: set[str], capsys: pytest.CaptureFixture[str], media: list[str]
) -> None:
    with stub_server(fault) as server, stub_server(tokens_per_round=0) as reference:
        status, failed, output = run(capsys, *against(server, reference, media))
    assert (status, failed) == (1, set(expected)), output


@pytest.mark.parametrize(
    ("tokens_per_round", "message"), [(1, "1.0000 tokens a round; required: more than 1.5"), (0, "does not speculate")]
)
def test_a_useless_draft_fails_the_acceptance_length_alone(
    tokens_per_round: int, message: str, capsys: pytest.CaptureFixture[str], media: list[str]
) -> None:
    with stub_server(tokens_per_round=tokens_per_round) as server, stub_server(tokens_per_round=0) as reference:
        status, failed, output = run(capsys, *against(server, reference, media))
    assert (status, failed) == (1, {"test_acceptance_length"}), output
    assert message in output


def test_a_finding_says_where_and_what(capsys: pytest.CaptureFixture[str], media: list[str]) -> None:
    with stub_server("one_other_token") as server, stub_server(tokens_per_round=0) as reference:
        _, _, output = run(capsys, *against(server, reference, media))
    assert "video 0, answer 1: token 5 of 33 is " in output
    assert re.search(r"which the reference preferred by 0\.0500: '.*word.*' against '.*word", output)


@pytest.mark.parametrize(("margin", "status"), [("0.049", 1), ("0.051", 0)])
def test_a_near_tie_is_accepted_within_the_margin_only(
    margin: str, status: int, capsys: pytest.CaptureFixture[str], media: list[str]
) -> None:
    with stub_server("one_other_token") as server, stub_server(tokens_per_round=0) as reference:
        found, failed, output = run(capsys, *against(server, reference, media), "--tie-margin", margin)
    assert found == status, output
    assert failed == (COMPARING if status else set())
    assert ("parted at a near-tie" in output) == (status == 0)


@pytest.mark.parametrize(("fault", "status"), [("", 0), ("one_other_token", 1)])
def test_a_captured_reference_replaces_its_server(
    fault: str, status: int, capsys: pytest.CaptureFixture[str], media: list[str], tmp_path: Path
) -> None:
    path = str(tmp_path / "answers.json")
    with stub_server(tokens_per_round=0) as reference:
        captured, _, output = run(capsys, "--reference-url", reference.url, "--save-reference", path, *media)
    assert captured == 0, output
    with stub_server(fault) as server:
        found, failed, output = run(capsys, "--url", server.url, "--reference", path, *media)
    assert (found, failed) == (status, set(COMPARING) if status else set()), output


def test_a_reference_of_other_videos_is_refused(
    capsys: pytest.CaptureFixture[str], media: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "answers.json"
    with stub_server() as server:
        run(capsys, "--reference-url", server.url, "--save-reference", str(path), *media)
        (tmp_path / "a.mp4").write_bytes(b"another clip")
        status, failed, output = run(capsys, "--url", server.url, "--reference", str(path), *media)
        assert status == 1
        assert "test_video" in failed
        assert "the reference file must hold 'video 0' with these media" in output
        path.write_text(json.dumps({"format": 0}))
        assert run(capsys, "--url", server.url, "--reference", str(path), *media)[0] == 1


def test_without_image_or_second_video_the_checks_are_skipped_with_a_reason(
    capsys: pytest.CaptureFixture[str], media: list[str]
) -> None:
    with stub_server() as server:
        status, _, output = run(capsys, "--url", server.url, "--reference-url", server.url, *media[:2])
    assert status == 0, output
    assert "skipped 'no image was given'" in output
    assert "skipped 'only one video was given'" in output


def test_a_server_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str], media: list[str]) -> None:
    with stub_server() as server:
        gone = server.url
    status, _, output = run(capsys, "--url", gone, "--reference-url", gone, *media)
    assert status == 2
    assert f"the checks could not be made: {gone} cannot be reached" in output


@pytest.mark.parametrize("options", [["--reference-url", "http://x"], ["--url", "http://x"], []])
def test_missing_options_are_named(options: list[str], media: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        video_parity_kit.main([*options, *media])


def test_the_kit_imports_requests_and_nothing_else() -> None:
    """So it runs on a laptop against servers elsewhere."""
    code = "import sys, sgl_lvspec.testing.video_parity_kit; print(*sys.modules)"
    folder = Path(video_parity_kit.__file__).parent
    imported = set()
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add((node.module or "").split(".")[0])
    assert imported - sys.stdlib_module_names == {"requests", "sgl_lvspec"}
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert not {"torch", "sglang", "transformers", "numpy"} & set(done.stdout.split())


def test_where_two_answers_part() -> None:
    theirs = Answer("a b c", [1, 2, 3], "stop", 0, 0, [[(-0.1, 1), (-2.0, 5)], [(-0.3, 2), (-0.4, 7)], [(-0.1, 3)]])
    assert find_parting(Answer("a b c", [1, 2, 3], "stop", 9, 9), theirs) is None
    parting = find_parting(Answer("a x", [1, 7], "stop", 0, 0), theirs)
    assert parting is not None
    assert (parting.position, parting.ours, parting.theirs) == (1, 7, 2)
    assert parting.gap == pytest.approx(0.1)
    shorter = find_parting(Answer("a b", [1, 2], "length", 0, 0), theirs)
    assert shorter is not None
    assert (shorter.position, shorter.ours, shorter.theirs, shorter.gap) == (2, None, 3, None)
    other_text = find_parting(Answer("a b d", [1, 2, 3], "stop", 0, 0), theirs)
    assert other_text is not None
    assert other_text.gap is None
