"""Kernels of LVSPEC. Each op is a torch definition, a Triton kernel and a test that compares them, of one name.

Imports torch and triton only. On a CPU tensor an op runs its definition, on a GPU tensor its kernel.
"""

from __future__ import annotations

from lvspec_kernels.accept_chain import accept_chain
from lvspec_kernels.context_scores import context_scores
from lvspec_kernels.draft_rows import draft_rows
from lvspec_kernels.mass_from_lse import mass_from_lse
from lvspec_kernels.relax import Relaxed, RuleRows, StateRows, relax
from lvspec_kernels.row_choice import RowChoice, row_choice
from lvspec_kernels.select_context import select_context
from lvspec_kernels.visual_mass import visual_mass
from lvspec_kernels.visual_similarity import visual_similarity

__all__ = [
    "Relaxed",
    "RowChoice",
    "RuleRows",
    "StateRows",
    "accept_chain",
    "context_scores",
    "draft_rows",
    "mass_from_lse",
    "relax",
    "row_choice",
    "select_context",
    "visual_mass",
    "visual_similarity",
]
