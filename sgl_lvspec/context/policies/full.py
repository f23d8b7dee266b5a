"""`full`: the draft reads the whole video."""

from __future__ import annotations

from sgl_lvspec.context.policy import Policy, even

POLICY = Policy(even, mass_share=0.0, keeps_all=True)
