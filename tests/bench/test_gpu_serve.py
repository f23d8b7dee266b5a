"""`bench.gpu.serve` without a GPU: the commands of a dry run, the folders that SGLang would read, the arguments."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from bench.gpu.models import QWEN_7B, QWEN_32B
from bench.gpu.serve import LENGTHS, measured_lengths, parse, request, write_calibration_file, write_model
from sgl_lvspec.relevance.calibration import examine_calibration, read_calibration

ROOT = Path(__file__).parents[2]
PAIR = ROOT / "demo/pair"


def test_a_dry_run_prints_three_servers_that_differ_in_speculation_and_forced_length() -> None:
    command = [sys.executable, "-m", "bench.gpu.serve", "--dry-run", "--server-flag=--tp", "--server-flag=2"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    none, strict, loose = (shlex.split(line) for line in result.stdout.splitlines())
    for line in (none, strict, loose):
        assert "--load-format dummy --dtype bfloat16" in " ".join(line) and " ".join(line).count("--tp 2") == 1
    assert not [word for word in none if "SIMULATE" in word or word == "LVSPEC"]
    for line, preset, tokens in ((strict, "strict", 4.41523), (loose, "balanced", 6.73572)):
        assert line[1] == f"SGLANG_SIMULATE_ACC_LEN={tokens:g}"
        assert f"--speculative-num-steps 10 --lvspec-preset {preset}" in " ".join(line)
        assert [word for word in line if word in none] == [word for word in none if not word.startswith("fixed")
                                                          and word != "--lvspec-video-time"]  # fmt: skip


def test_sglang_has_the_switch_and_uses_it_where_a_strict_result_comes_from() -> None:
    from sglang.srt.environ import envs
    from sglang.srt.speculative import eagle_utils, spec_utils

    assert envs.SGLANG_SIMULATE_ACC_LEN.get() < 0, "this process must not force a length"
    assert envs.SGLANG_SIMULATE_ACC_METHOD.get() == "match-expected"  # whose mean is what was asked for
    source = Path(eagle_utils.__file__).read_text()
    assert "if SIMULATE_ACC_LEN > 0:" in source[source.index("def eagle_sample(") :]
    lengths = [spec_utils.sample_simulated_acc_len(4.4, "match-expected", 11) for _ in range(200)]
    assert set(lengths) == {4, 5} and 4.2 < sum(lengths) / 200 < 4.6


def test_a_written_model_is_one_that_transformers_and_a_calibration_know(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer

    for model, name in ((QWEN_32B, "target"), (QWEN_7B, "draft")):
        write_model(model, PAIR / name, tmp_path / name)
        config = AutoConfig.from_pretrained(tmp_path / name)
        text = config.text_config
        assert (text.hidden_size, text.num_hidden_layers, text.vocab_size) == (model.hidden, model.layers, 152_064)
        assert text.num_attention_heads * model.head_dim == (model.hidden if name == "draft" else 5120)
        assert sum(text.rope_parameters["mrope_section"]) * 2 == model.head_dim
        assert config.vision_config.out_hidden_size == model.hidden and config.image_token_id == 1099
        assert not list((tmp_path / name).glob("*.safetensors")) and not (tmp_path / name / "lvspec.json").exists()
        assert len(AutoTokenizer.from_pretrained(tmp_path / name)) <= model.vocabulary
    write_calibration_file(tmp_path / "target", tmp_path / "draft", QWEN_32B)
    heads = read_calibration(tmp_path / "target" / "lvspec.json").heads
    assert len(heads) == 16 and {head.layer for head in heads} == {12, 25, 38, 51}
    path, models = tmp_path / "target" / "lvspec.json", (str(tmp_path / "target"), str(tmp_path / "draft"))
    assert examine_calibration(path, *models) is None


def test_lengths_are_those_measured_and_one() -> None:
    arms = {arm["name"]: arm["T"] for arm in json.loads((ROOT / LENGTHS).read_text())["arms"]}
    assert measured_lengths(ROOT / LENGTHS) == {"none": 1, "strict": arms["strict"] + 1, "loose": arms["balanced"] + 1}


def test_requests_are_text_of_the_pairs_tokenizer_without_a_common_prefix() -> None:
    first, second = request(1, 500, 9), request(2, 500, 9)
    assert len(first["input_ids"]) == 500 and 200 <= min(first["input_ids"]) <= max(first["input_ids"]) < 1000
    assert first["input_ids"][:20] != second["input_ids"][:20] and first == request(1, 500, 9)
    assert first["sampling_params"] == {"temperature": 0, "max_new_tokens": 9, "ignore_eos": True}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--layers", "7"], "--layers needs at least 8"),
        (["--draft-layers", "0"], "--draft-layers needs at least 1"),
        (["--tokens", "-1"], "--tokens needs at least 1"),
        (["--requests", "1", "1"], "--requests needs different numbers"),
        (["--lengths", "none.json"], "--lengths needs a file of make bench-fidelity"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(
    given: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit):
        parse(given)
    assert message in capsys.readouterr().err
