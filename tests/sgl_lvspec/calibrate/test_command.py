"""`lvspec calibrate`: what is refused before a model is loaded, and where its parts come from."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from sgl_lvspec.calibrate import command


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(["--model-path", "t", "--speculative-draft-model-path", "d", "--clips", "c", *words])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.mp4", "a.MP4", "c.mp4", "d.mp4", "e.mp4", "f.mp4", "notes.txt"):
        (tmp_path / name).touch()
    return tmp_path


def test_what_follows_two_dashes_goes_to_sglang() -> None:
    options = parse("--limit", "7", "--", "--device", "cpu", "--tp-size", "2")
    assert options.server_flags == ["--device", "cpu", "--tp-size", "2"]
    assert options.limit == 7
    assert parse().server_flags == []


def test_clips_are_taken_by_name(folder: Path) -> None:
    assert [clip.name for clip in command.find_clips(folder, None)] == [
        "a.MP4", "b.mp4", "c.mp4", "d.mp4", "e.mp4", "f.mp4",
    ]  # fmt: skip
    assert [clip.name for clip in command.find_clips(folder, 5)][-1] == "e.mp4"
    assert all(clip.is_absolute() for clip in command.find_clips(folder, None)), "SGLang loads them elsewhere"


@pytest.mark.parametrize(
    ("name", "limit", "found"),
    [(".", 4, r"found 4 in \S+\. "), ("absent", None, r"found 0 in \S+, which is no folder\. ")],
)
def test_too_few_clips_are_refused(name: str, limit: int | None, found: str, folder: Path) -> None:
    with pytest.raises(ValueError, match=f"^--clips needs a folder of 5 mp4 files at least.*{found}Name another"):
        command.find_clips(folder / name, limit)


def test_the_file_goes_to_the_targets_folder_unless_named(tmp_path: Path) -> None:
    assert command.find_place(None, str(tmp_path)) == tmp_path / "lvspec.json"
    assert command.find_place(tmp_path / "own.json", "owner/name") == tmp_path / "own.json"


@pytest.mark.parametrize(("named", "target"), [(None, "owner/name"), (Path("absent/own.json"), ".")])
def test_a_place_that_cannot_be_written_to_is_refused(named: Path | None, target: str) -> None:
    with pytest.raises(ValueError, match=r"which is no folder here\. Name another file with --out"):
        command.find_place(named, target)


def test_a_read_only_target_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command.os, "access", lambda _path, _mode: False)
    with pytest.raises(ValueError, match=r"which is read-only\. Name another file with --out"):
        command.find_place(None, str(tmp_path))


def test_questions_are_lines(tmp_path: Path) -> None:
    file = tmp_path / "questions.txt"
    file.write_text("What happens?\n\n  Who is there?  \n")
    assert command.read_questions(file) == ["What happens?", "Who is there?"]
    file.write_text("\n")
    with pytest.raises(ValueError, match="one question a line; found none in"):
        command.read_questions(file)
    with pytest.raises(ValueError, match="--questions must name a text file; found"):
        command.read_questions(tmp_path / "absent.txt")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--limit", "0"), "--limit must be 1 or more; found 0"),
        (("--tokens", "-3"), "--tokens must be 1 or more; found -3"),
        (("--heads", "0"), "--heads must be 1 or more; found 0"),
        (("--slope", "-1"), "--slope must be a number of 0 or more; found -1.0"),
        (("--slope", "nan"), "--slope must be a number of 0 or more; found nan"),
        ((), "The file needs a folder that can be written to; found t, which is no folder here"),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(
    words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.run(parse(*words)) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"lvspec calibrate: {message}")
    assert said.count("\n") == 1
