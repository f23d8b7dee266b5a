"""Attention backends that LVSPEC brings. Today one: `lvspec_cpu`, because no CPU backend of SGLang 0.5.23 knows
both the target-verify forward and the draft's steps without AMX (srt/speculative/draft_utils.py:52)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sglang.srt.model_executor.model_runner import ModelRunner

    from sgl_lvspec.attention.cpu_backend import CpuAttnBackend

CPU_BACKEND = "lvspec_cpu"


def register() -> None:
    """Declare the backend's name; its code is imported when a runner asks for it."""
    from sglang.srt.arg_groups.choices import ATTENTION_BACKEND_CHOICES, add_attention_backend_choices
    from sglang.srt.layers.attention.attention_registry import register_attention_backend

    if CPU_BACKEND not in ATTENTION_BACKEND_CHOICES:
        add_attention_backend_choices([CPU_BACKEND])
    register_attention_backend(CPU_BACKEND)(_create)


def _create(model_runner: ModelRunner) -> CpuAttnBackend:
    from sgl_lvspec.attention.cpu_backend import CpuAttnBackend

    return CpuAttnBackend(model_runner)
