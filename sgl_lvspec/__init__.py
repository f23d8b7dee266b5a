"""sgl-lvspec: speculative decoding for video LLMs in unmodified SGLang.

Importing this package imports neither torch nor SGLang; the entry point `sgl_lvspec.plugin:load` does the work.
"""

from __future__ import annotations

__version__ = "0.1.0"

SGLANG_TESTED = "0.5.23"  # the SGLang release that every seam was read from and is tested against
