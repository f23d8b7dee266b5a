"""What the plugin relies on in SGLang still holds.

Reads the installed sources and imports none of them, so it also runs where SGLang cannot be imported.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import pytest

import sgl_lvspec
from sgl_lvspec.seams import SEAMS, Seam, SourceTree, check, find_broken, version_misfit

PLUGIN = Path(sgl_lvspec.__file__).parent
ROOT = PLUGIN.parent

try:
    TREE = SourceTree.installed()
except ModuleNotFoundError:
    pytest.skip("the sources of sglang are not installed", allow_module_level=True)


@pytest.mark.parametrize("seam", SEAMS, ids=lambda seam: seam.name)
def test_seam_holds(seam: Seam) -> None:
    message = check(seam, TREE)
    assert message is None, message


def test_installed_release_is_the_one_the_seams_were_read_from() -> None:
    assert version("sglang") == sgl_lvspec.SGLANG_TESTED
    assert version_misfit() is None


def test_setup_installs_the_release_the_seams_were_read_from() -> None:
    pinned = [
        line.partition("#")[0].strip()
        for file in (ROOT / "requirements").glob("*.txt")
        for line in file.read_text().splitlines()
        if line.startswith("sglang==")
    ]
    assert set(pinned) == {f"sglang=={sgl_lvspec.SGLANG_TESTED}"}


def test_seams_name_files_of_ours_and_have_names_of_their_own() -> None:
    assert {seam.used_in for seam in SEAMS if not (PLUGIN / seam.used_in).is_file()} == set()
    names = [seam.name for seam in SEAMS]
    assert len(names) == len(set(names))
    assert not [seam for seam in SEAMS if not seam.why or seam.why.endswith(".")], "the message adds the full stop"


def test_a_real_change_of_sglang_is_detected(tmp_path: Path) -> None:
    """The sampler applies penalties after it chose, in a copy of SGLang's own source."""
    package = tmp_path / "sglang" / "srt" / "speculative"
    package.mkdir(parents=True)
    for folder in (package, *package.parents[:2]):
        (folder / "__init__.py").write_text("")
    source = (TREE.root / "sglang/srt/speculative/eagle_utils.py").read_text()
    seams = [seam for seam in SEAMS if seam.target == "sglang.srt.speculative.eagle_utils.eagle_sample"]
    assert len(seams) == 3
    (package / "eagle_utils.py").write_text(source)
    assert find_broken(seams, SourceTree(tmp_path)) == []
    penalized = "grammar_mask.apply(next_token_logits)"
    assert source.count(penalized) == 1
    (package / "eagle_utils.py").write_text(source.replace(penalized, "grammar_mask.apply(next_token_logits.clone())"))
    [message] = find_broken(seams, SourceTree(tmp_path))
    assert "grammar_mask.apply(next_token_logits)" in message
    assert "sgl_lvspec/verification/commit.py" in message
