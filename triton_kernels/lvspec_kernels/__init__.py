"""Kernels of LVSPEC. Each op is a torch definition, a Triton kernel and a test that compares them, of one name.

Imports torch and triton only. On a CPU tensor an op runs its definition, on a GPU tensor its kernel.
"""

from __future__ import annotations

from lvspec_kernels.accept_chain import accept_chain

__all__ = ["accept_chain"]
