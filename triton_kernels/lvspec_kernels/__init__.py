"""Kernels of LVSPEC. Each op is a torch definition, a Triton kernel and a test that compares them, of one name.

Imports torch and triton only. On a CPU tensor an op runs its definition, on a GPU tensor its kernel.
"""

from __future__ import annotations

from lvspec_kernels.accept_chain import accept_chain
from lvspec_kernels.relax import Relaxed, RuleRows, StateRows, relax
from lvspec_kernels.row_choice import RowChoice, row_choice
from lvspec_kernels.visual_mass import visual_mass
from lvspec_kernels.visual_similarity import visual_similarity

__all__ = [
    "Relaxed",
    "RowChoice",
    "RuleRows",
    "StateRows",
    "accept_chain",
    "relax",
    "row_choice",
    "visual_mass",
    "visual_similarity",
]
