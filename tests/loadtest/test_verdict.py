from __future__ import annotations

import pytest

from loadtest.arms import BOUNDS
from loadtest.record import CUT_OFF, HUNG_UP, Record
from loadtest.verdict import allowed, is_tie, judge, longest_run
from tests.loadtest.hand_made import loose, played, record


def found(*arms: object, dtype: str = "float32") -> list[str]:
    return [str(problem) for problem in judge(arms, dtype).problems]  # type: ignore[arg-type]


def strict(**values: object) -> Record:
    return record(**{"loosened": 0, "mode": "strict", "preset": "strict", "rounds": 2, "accepted": 3, **values})


def test_equal_strict_answers_pass() -> None:
    assert not found(played("none", record()), played("strict", strict()))


def test_another_strict_answer_fails_with_request_and_token() -> None:
    problems = found(
        played("none", record(key="a"), record(key="b")),
        played("strict", strict(key="a"), strict(key="b", ids=[1, 2, 7, 4, 5])),
    )
    assert len(problems) == 1
    assert "1 of 2 differ" in problems[0] and "b turn 1" in problems[0] and "at token 3" in problems[0]
    for heading in ("required  ", "found     ", "do this   "):
        assert heading in problems[0]


def test_a_shorter_strict_answer_differs() -> None:
    assert found(played("none", record()), played("strict", strict(ids=[1, 2, 3, 4])))


def test_strict_answers_under_load_count_too_in_float32() -> None:
    plain, ours = record(phase="ramp"), strict(phase="ramp", ids=[9])
    assert found(played("none", plain), played("strict", ours))


def test_nothing_to_compare_is_no_pass() -> None:
    problems = found(played("none", record(key="a")), played("strict", strict(key="b")))
    assert "none that came whole in both arms" in problems[0]


def test_ties_may_fall_either_way_in_bfloat16_alone() -> None:
    near = [[(-0.1, 1), (-3.0, 8)], [(-0.69, 2), (-0.75, 7)], [(-0.1, 3), (-4.0, 9)]]
    plain = record(ids=[1, 2, 3], near=near)
    tie, other = strict(ids=[1, 7, 3]), strict(ids=[1, 2, 9])
    assert is_tie(tie, plain, 0.25) and not is_tie(other, plain, 0.25) and not is_tie(tie, plain, 0.0)
    assert not found(played("none", plain), played("strict", tie), dtype="bfloat16")
    assert "1 at a tie" in judge([played("none", plain), played("strict", tie)], "bfloat16").notes[0]
    assert found(played("none", plain), played("strict", tie), dtype="float32")
    assert found(played("none", plain), played("strict", other), dtype="bfloat16")


def test_an_answer_without_a_finish_reason_fails_unless_we_ended_it() -> None:
    assert "finish reason" in found(played("none", record(finish_reason=None)))[0]
    fine = (record(), record(finish_reason=None, ended_by_us=HUNG_UP), record(finish_reason=None, ended_by_us=CUT_OFF))
    assert not found(played("none", *fine))


def test_errors_fail_by_kind_with_a_count() -> None:
    broken = [record(key=f"{i}", error="HTTP 500", detail="oops", finish_reason=None) for i in range(3)]
    problems = found(played("none", record(), *broken))
    assert len(problems) == 1 and "HTTP 500, 3 of 4 requests" in problems[0] and "oops" in problems[0]


def test_an_arm_that_answers_nothing_fails() -> None:
    assert "none that came whole" in found(played("none"))[0]


def labels(pattern: str) -> list[str]:
    """m: match, f: filler, s: shift, b: bonus."""
    names = {"m": "match", "f": "filler", "s": "shift", "b": "bonus"}
    return [names[letter] for letter in pattern]


def test_loosening_within_bounds_passes() -> None:
    assert not found(played("balanced", loose(labels("b" + "mmfb" * 10))))
    assert not found(played("balanced", loose(labels("bffffb"))))  # 4 of 6, but 32 tokens count in a short answer


def test_too_large_a_share_fails() -> None:
    many = loose(labels("b" + "mfmfb" * 10))  # 20 of 51 where 15.3 are allowed
    assert "at most 0.3 of an answer" in found(played("balanced", many))[0]
    many.preset = "paper"
    assert not found(played("paper", many))


def test_share_is_of_32_tokens_in_short_answers() -> None:
    assert allowed(BOUNDS["balanced"], 10) == pytest.approx(9.6) and allowed(BOUNDS["balanced"], 100) == 30
    assert found(played("balanced", loose(labels("bf" + "ffm" * 6))))  # 13 of 20


def test_too_long_a_run_fails() -> None:
    assert longest_run(labels("bffsmff")) == 3 and longest_run([]) == 0
    assert "at most 4 loosened tokens in a row" in found(played("balanced", loose(labels("bfffffm" + "m" * 30))))[0]


def test_text_only_requests_must_be_strict() -> None:
    quiet = loose(labels("bmmb"), has_media=False, medium="")
    assert "text-only" in found(played("balanced", quiet))[0]  # its mode is loose
    quiet.mode = "strict"
    assert not found(played("balanced", quiet))


def test_a_strict_arm_may_loosen_nothing() -> None:
    assert found(played("none", record()), played("strict", strict(loosened=1)))


def test_a_loosened_digit_fails_where_digits_are_protected() -> None:
    arm = played("balanced", loose(labels("bmfb")))  # its ids are 0..3
    arm.words = {2: " seven"}
    assert not found(arm)
    arm.words = {2: " 7"}
    assert "digit" in found(arm)[0]


def test_labels_must_agree_with_the_summary() -> None:
    odd = loose(labels("bmfb"))
    odd.loosened = 2
    assert "a label for each token" in found(played("balanced", odd))[0]
