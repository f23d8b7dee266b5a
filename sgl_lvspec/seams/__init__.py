"""Every SGLang symbol, signature and line of behaviour that the plugin relies on, as data that can be checked.

SGLang changes weekly and promises a plugin nothing, so what we rely on is written down once: `lvspec doctor` and
`tests/sgl_lvspec/test_seams.py` compare it with the installed sources without importing them. New code that touches
SGLang adds its seams to the file of its stage here; a test refuses imports and attributes that are not listed.
"""

from __future__ import annotations

from sgl_lvspec.seams import (
    attention,
    calibrate,
    context,
    drafting,
    flashinfer,
    frontend,
    graphs,
    media,
    modes,
    plugin,
    relevance,
    settings,
    sight,
    startup,
    verification,
)
from sgl_lvspec.seams.check import check, find_broken, version_misfit
from sgl_lvspec.seams.expectation import Seam
from sgl_lvspec.seams.flashinfer import FLASHINFER_SEAMS
from sgl_lvspec.seams.source import SourceTree

__all__ = ["FLASHINFER_SEAMS", "SEAMS", "Seam", "SourceTree", "check", "find_broken", "version_misfit"]

SEAMS: tuple[Seam, ...] = (
    plugin.SEAMS
    + startup.SEAMS
    + modes.SEAMS
    + drafting.SEAMS
    + graphs.SEAMS
    + context.SEAMS
    + media.SEAMS
    + relevance.SEAMS
    + verification.SEAMS
    + settings.SEAMS
    + attention.SEAMS
    + flashinfer.SEAMS
    + sight.SEAMS
    + calibrate.SEAMS
    + frontend.SEAMS
)
