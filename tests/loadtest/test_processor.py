"""What /proc/cpuinfo tells of a processor."""

from __future__ import annotations

import pytest

from loadtest.processor import read

CPUINFO = "processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu sse2 {}\n\nprocessor\t: 1\nmodel name\t: Some CPU\n"


@pytest.mark.parametrize(
    ("flags", "name", "has_bfloat16"),
    [
        ("avx2", "Some CPU, AVX2 alone", False),
        ("avx2 avx512f", "Some CPU, AVX-512", False),
        ("avx2 avx512f avx512_bf16", "Some CPU, AVX-512 with bf16", True),
        ("avx2 avx512f avx512_bf16 amx_bf16", "Some CPU, AMX", True),
        ("", "Some CPU", False),
    ],
)
def test_widest_instructions_are_named(flags: str, name: str, has_bfloat16: bool) -> None:
    found = read(CPUINFO.format(flags))
    assert (found.name, found.has_bfloat16) == (name, has_bfloat16)


def test_another_system_is_named_somehow() -> None:
    assert read("").name and not read("").has_bfloat16
    assert read("Features\t: fp asimd bf16\n").has_bfloat16
