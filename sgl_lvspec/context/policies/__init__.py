"""The policies by name, one file each."""

from __future__ import annotations

from sgl_lvspec.context.policies import full, random, specvlm, uniform, uvprune
from sgl_lvspec.context.policy import Policy

POLICIES: dict[str, Policy] = {
    "full": full.POLICY,
    "uniform": uniform.POLICY,
    "random": random.POLICY,
    "specvlm": specvlm.POLICY,
    "uvprune": uvprune.POLICY,
}
