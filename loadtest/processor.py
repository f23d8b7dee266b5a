"""This machine's processor: what it is called, and what it multiplies with."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

# The best first. Whether checking several rows costs more than one depends on it, and so does whether speculation pays.
VECTORS = (("amx_bf16", "AMX"), ("avx512_bf16", "AVX-512 with bf16"), ("avx512f", "AVX-512"), ("avx2", "AVX2 alone"))
BFLOAT16 = {"amx_bf16", "avx512_bf16", "bf16"}  # the last one is ARM's


@dataclass(frozen=True)
class Processor:
    """Its model with its widest instructions; whether it multiplies bfloat16 itself, or has it emulated."""

    name: str
    has_bfloat16: bool


def read(info: str) -> Processor:
    """From the text of /proc/cpuinfo; '' where there is none."""
    told = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in info.splitlines())}
    flags = set(told.get("flags", told.get("Features", "")).split())
    widest = next((name for flag, name in VECTORS if flag in flags), "")
    named = told.get("model name") or platform.processor() or platform.machine()
    return Processor(f"{named}, {widest}" if widest else named, bool(flags & BFLOAT16))


def this_processor() -> Processor:
    """The one that this runs on."""
    info = Path("/proc/cpuinfo")
    return read(info.read_text() if info.exists() else "")
