"""What this package says about names it does not have, in the exception that each kind of look-up expects.

SGLang probes `sgl_kernel` in three ways: `hasattr` (expects AttributeError), `from sgl_kernel import x` inside
`try/except ImportError`, and calls of ops that it found. The first two are answered here, the third in `schemas.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType


def describe_absence(name: str) -> str:
    """Say that `name` (dotted) does not exist, and where it does."""
    return (
        f"{name} is not in the CPU engine of sgl-lvspec, which has only the ops of SGLang's CPU text, image, video and "
        "speculation paths; use a model or option that does without it, or a machine with a GPU and sglang-kernel."
    )


class AbsentSubmoduleFinder:
    """Last meta-path finder: turns a failed import below `sgl_kernel` into an ImportError that explains itself.

    `from sgl_kernel import x` ends here as well: for a package, Python looks for a submodule `sgl_kernel.x` when there
    is no such attribute.
    """

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> None:
        """Raise for any name below `sgl_kernel`; every finder before this one has already given up on it."""
        if name.startswith("sgl_kernel."):
            # No `name=`: Python swallows a ModuleNotFoundError that carries exactly the name it asked for.
            raise ModuleNotFoundError(describe_absence(name))
