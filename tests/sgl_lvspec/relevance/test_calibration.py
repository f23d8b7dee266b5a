"""The calibration file: what comes back is what was written, and nothing else is taken for one."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from sgl_lvspec.config import SCORERS
from sgl_lvspec.relevance import calibration, make_relevance
from sgl_lvspec.relevance.calibration import (
    CALIBRATED_WEIGHT,
    N_BINS,
    RANGES,
    Calibration,
    HeadWeight,
    default_prior,
    examine_calibration,
    read_calibration,
    write_calibration,
)
from sgl_lvspec.relevance.identity import ModelIdentity

TARGET = ModelIdentity("Qwen2_5_VLForConditionalGeneration", 256, 4, 8, 1152, "ab" * 32)
DRAFT = ModelIdentity("Qwen2_5_VLForConditionalGeneration", 128, 2, 2, 1152, "cd" * 32)
FULL = Calibration(
    TARGET,
    DRAFT,
    heads=(HeadWeight(3, 0, 1.0), HeadWeight(0, 7, -0.25, 0.5)),
    bias=0.75,
    priors={"attention": tuple(edge / 100 for edge in range(N_BINS + 1)), "similarity": (0.5,) * (N_BINS + 1)},
    combined={"slope": -2.5},
    statistics={"clips": 200, "tokens": 31_000, "date": "2026-11-21", "auc": 0.93},
)

finite = st.floats(allow_nan=False, allow_infinity=False)
calibrations = st.builds(
    Calibration,
    target=st.just(TARGET),
    draft=st.just(DRAFT),
    heads=st.lists(
        st.builds(HeadWeight, st.integers(0, 3), st.integers(0, 7), finite, finite),
        unique_by=lambda entry: entry[:2],
        max_size=6,
    ).map(tuple),
    priors=st.dictionaries(
        st.sampled_from(SCORERS), st.lists(finite, min_size=N_BINS + 1, max_size=N_BINS + 1).map(sorted).map(tuple)
    ),
    combined=st.dictionaries(st.text(max_size=5), finite, max_size=3),
    statistics=st.dictionaries(st.text(max_size=5), st.one_of(st.text(), st.integers(), finite), max_size=3),
)


@given(calibrations)
def test_a_written_file_is_read_back_exactly(tmp_path_factory: pytest.TempPathFactory, written: Calibration) -> None:
    path = tmp_path_factory.getbasetemp() / "calibration.json"
    write_calibration(written, path)
    assert read_calibration(path) == written
    json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_no_half_written_file_takes_the_place_of_a_good_one(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    write_calibration(FULL, path)
    with pytest.raises(ValueError, match="JSON compliant"):
        write_calibration(dataclasses.replace(FULL, statistics={"auc": float("nan")}), path)
    assert read_calibration(path) == FULL
    assert list(tmp_path.iterdir()) == [path]


# name: what is changed in a good document, a part of the message
BROKEN: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "other format": (lambda d: d.update(format=2), "format 1; found 2"),
    "field missing": (lambda d: d.pop("draft"), "fields format, target, draft"),
    "field too many": (lambda d: d.update(lambda_=0.7), "found .*lambda_"),
    "layer too high": (lambda d: d["heads"].append([4, 0, 1.0, 0.0]), r"4 layers of 8 heads\); found layer 4, head 0"),
    "head too high": (lambda d: d["heads"].append([0, 8, 1.0, 0.0]), "found layer 0, head 8"),
    "negative layer": (lambda d: d["heads"].append([-1, 0, 1.0, 0.0]), "found layer -1, head 0"),
    "head twice": (lambda d: d["heads"].append([3, 0, 2.0, 0.0]), "layer 3, head 0 twice"),
    "weight as text": (lambda d: d["heads"].append([1, 0, 1.0, "1"]), "numbers for weights; found '1'"),
    "layer as a fraction": (lambda d: d["heads"].append([1.5, 0, 1, 1]), "whole numbers for layers; found 1.5"),
    "layer as a truth value": (lambda d: d["heads"].append([True, 0, 1, 1]), "whole numbers for layers; found True"),
    "weights missing": (lambda d: d["heads"].append([1, 0]), "layer, head, weight and log_weight"),
    "bias as text": (lambda d: d.update(bias="0"), "numbers for the bias"),
    "heads as an object": (lambda d: d.update(heads={}), "a list for heads"),
    "prior of an unknown scorer": (lambda d: d["priors"].update(entropy=[0.0] * 33), "found 'entropy'"),
    "one quantile short": (lambda d: d["priors"]["attention"].pop(), "33 quantiles .* found 32"),
    "quantiles in disorder": (lambda d: d["priors"]["attention"].reverse(), "ascending order"),
    "prior as a number": (lambda d: d["priors"].update(attention=0.5), "a list for the prior of attention"),
    "parameter as text": (lambda d: d["combined"].update(slope="1"), "numbers for combined slope"),
    "statistics of statistics": (lambda d: d["statistics"].update(versions={}), "numbers for statistics versions"),
    "target without a width": (lambda d: d["target"].pop("hidden_size"), "hidden_size.* in target"),
    "width as text": (lambda d: d["target"].update(hidden_size="256"), "target.hidden_size; found '256'"),
    "fingerprint as a number": (lambda d: d["draft"].update(fingerprint=7), "a text in draft.fingerprint"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_document_that_is_no_calibration_is_refused(name: str, tmp_path: Path) -> None:
    change, message = BROKEN[name]
    path = tmp_path / "calibration.json"
    write_calibration(FULL, path)
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match=message) as refusal:
        read_calibration(path)
    assert str(path) in str(refusal.value), "which file"
    assert "lvspec calibrate" in str(refusal.value), "what to do"


# name: text of the file, a part of the message
NO_JSON = {
    "empty": ("", "Expecting value"),
    "python": ("{'format': 1}", "Expecting property name"),
    "not a number": ('{"format": NaN}', "NaN is no number of JSON"),
    "infinite": ('{"format": -Infinity}', "-Infinity is no number"),
    "field twice": ('{"format": 1, "format": 1}', "twice"),
    "a list": ("[]", "an object for a calibration"),
}


@pytest.mark.parametrize("name", NO_JSON)
def test_a_file_that_is_no_strict_json_is_refused(name: str, tmp_path: Path) -> None:
    text, message = NO_JSON[name]
    path = tmp_path / "calibration.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_calibration(path)


def test_an_absent_file_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--lvspec-calibration must name .*absent.json.*`lvspec calibrate`"):
        read_calibration(tmp_path / "absent.json")


def test_numbers_beyond_floats_are_refused() -> None:
    with pytest.raises(ValueError, match="finite quantiles"):
        dataclasses.replace(FULL, priors={"attention": (0.0,) * N_BINS + (float("inf"),)})
    with pytest.raises(ValueError, match="finite parameters"):
        dataclasses.replace(FULL, combined={"slope": float("nan")})
    with pytest.raises(ValueError, match="finite weights"):
        dataclasses.replace(FULL, heads=(HeadWeight(0, 0, float("inf")),))
    with pytest.raises(ValueError, match="a finite bias"):
        dataclasses.replace(FULL, bias=float("nan"))


def test_a_file_of_this_pair_fits() -> None:
    assert FULL.misfit(TARGET, DRAFT) is None


def test_a_file_of_another_pair_says_which_model_and_what_differs() -> None:
    wider = dataclasses.replace(TARGET, hidden_size=512, fingerprint="ef" * 32)
    message = FULL.misfit(wider, DRAFT) or ""
    assert "another target (hidden_size 256 instead of 512)" in message
    tuned = dataclasses.replace(DRAFT, fingerprint="ef" * 32)
    assert "another draft (other weights)" in (FULL.misfit(TARGET, tuned) or "")


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModelIdentity]:
    """Checkpoints by path, as `identify` would find them."""
    models = {"target": TARGET, "draft": DRAFT}

    def identify(path: str, _revision: str | None) -> ModelIdentity:
        if path not in models:
            raise ValueError(f"nothing at {path}")
        return models[path]

    monkeypatch.setattr(calibration, "identify", identify)
    return models


def test_a_server_is_told_about_a_file_of_other_models_and_starts(
    tmp_path: Path, served: dict[str, ModelIdentity]
) -> None:
    path = tmp_path / "calibration.json"
    write_calibration(FULL, path)
    assert examine_calibration(path, "target", "draft") is None
    served["tuned"] = dataclasses.replace(TARGET, fingerprint="ef" * 32)
    assert "found one of another target (other weights)" in (examine_calibration(path, "tuned", "draft") or "")
    assert "found one of another draft" in (examine_calibration(path, "target", "target") or "")
    assert "cannot tell whether" in (examine_calibration(path, "target", "elsewhere") or "")
    served["target"] = dataclasses.replace(TARGET, num_layers=5, num_heads=9)
    assert "num_layers 4 instead of 5, num_heads 8 instead of 9" in (examine_calibration(path, "target", "draft") or "")


@pytest.mark.parametrize(
    ("field", "value", "head"), [("num_layers", 3, "layer 3, head 0"), ("num_heads", 7, "layer 0, head 7")]
)
def test_heads_that_the_served_target_lacks_are_refused(
    field: str, value: int, head: str, tmp_path: Path, served: dict[str, ModelIdentity]
) -> None:
    path = tmp_path / "calibration.json"
    write_calibration(FULL, path)
    served["target"] = dataclasses.replace(TARGET, **{field: value})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=rf"found {head} in .*calibration.json\. Calibrate for this target"):
        examine_calibration(path, "target", "draft")


def test_without_a_measurement_scores_are_expected_anywhere_and_that_counts_nothing() -> None:
    assert set(RANGES) == set(SCORERS)
    attention, similarity = default_prior("attention"), default_prior("similarity")
    assert (attention.edges[0], attention.edges[16], attention.edges[-1]) == (0.0, 0.5, 1.0)
    assert (similarity.edges[0], similarity.edges[16], similarity.edges[-1]) == (-1.0, 0.0, 1.0)
    assert len(attention.edges) == N_BINS + 1
    assert attention.weight == similarity.weight == 0


def test_a_measured_prior_counts_and_an_unmeasured_one_beside_it_does_not() -> None:
    assert FULL.prior("attention") == (FULL.priors["attention"], CALIBRATED_WEIGHT)
    assert FULL.prior("combined") == default_prior("combined")


def test_the_chosen_heads_reach_the_scorer() -> None:
    assert vars(make_relevance("attention", FULL)).items() >= {"_chosen": FULL.heads, "_bias": 0.75}.items()
    every = dataclasses.replace(FULL, heads=())
    assert make_relevance("combined", every)._chosen is None, "no choice is every head"  # type: ignore[attr-defined]


def test_a_file_is_small(tmp_path: Path) -> None:
    heads = tuple(HeadWeight(layer, head, 1 / 3) for layer in range(4) for head in range(8))
    path = tmp_path / "calibration.json"
    calibration.write_calibration(dataclasses.replace(FULL, heads=heads), path)
    assert path.stat().st_size < 10_000
