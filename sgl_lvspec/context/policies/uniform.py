"""`uniform`: every so-manieth token, whatever it shows. What SpecVLM's authors recommend as the simple choice."""

from __future__ import annotations

from sgl_lvspec.context.policy import Policy, even

POLICY = Policy(even, mass_share=0.0)
