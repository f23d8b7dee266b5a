"""The arms of a run: which rules answer the same questions. Plain data, so that worker processes can be told."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench.fidelity.baselines import ENTROPY, WINDOW, Baseline, Loosen, by_chance, by_entropy, by_probability, fly
from bench.fidelity.engine import Decide, Exam
from bench.fidelity.server_rule import ServerRule, protected_tokens
from sgl_lvspec.config import DEFAULT_SCORER, SCORERS
from sgl_lvspec.presets import PRESETS, Rule
from sgl_lvspec.relevance.calibration import Calibration, read_calibration
from sgl_lvspec.verification.protected import ORDINARY, PROTECTED

NONE, STRICT, MAIN = "none", "strict", "balanced"
RELAXATIONS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.9)
CHANCES = (0.25, 0.5, 0.75, 1.0)
FLY_PLUS, FLY = "entropy ≥ 0.3 (FLy+)", "FLy window=6 (published)"
MATCHED = "random matched"  # to the share of tokens that MAIN loosens
PROBABILITY_SHARES = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9)  # of the mismatches of the tuning clips, accepted
ENTROPIES = (0.01, 0.1, ENTROPY, 0.6, 0.9)  # nats; three tokens have at most ln 3 = 1.1
WINDOWS = (2, 3, 4, WINDOW)


@dataclass(frozen=True)
class Arm:
    """One rule.

    Attributes:
        name: unique in a run.
        family: arms of one family differ in how loose they are; they make one line of the plot.
        kind: `none`, `server`, or a baseline: `random`, `probability`, `entropy`, `fly`.
        settings: what the kind needs.
    """

    name: str
    family: str
    kind: str
    settings: dict[str, Any] = field(default_factory=dict)

    def with_stop(self, stop: float) -> Arm:
        """The arm with chains that end as on a server with this --lvspec-draft-stop; a baseline's are whole."""
        return self if self.kind != "server" else dataclasses.replace(self, settings={**self.settings, "stop": stop})


@dataclass(frozen=True)
class Tables:
    """What all arms read: built once a process."""

    calibration: Calibration
    token_class: torch.Tensor  # uint8 [V]

    @classmethod
    def of(cls, target: Path, calibration: Path) -> Tables:
        """For the target at `target`."""
        return cls(read_calibration(calibration), protected_tokens(target))

    @property
    def is_ordinary(self) -> torch.Tensor:
        """Bool [V]: tokens that MAIN may loosen, and so every baseline."""
        if PRESETS[MAIN].protect_digits:
            return self.token_class == ORDINARY
        return self.token_class != PROTECTED


def decider(arm: Arm, exam: Exam, tables: Tables, clips: Sequence[int]) -> Decide:
    """A fresh decision for one run of `exam`, whose rows are the clips of these numbers."""
    settings = arm.settings
    if arm.kind == "server":
        rule = Rule(**settings["rule"])
        return ServerRule(
            exam, rule, settings["scorer"], tables.calibration, tables.token_class, settings.get("stop", 0.0)
        )
    loosen: Loosen
    if arm.kind == "random":
        loosen = by_chance(settings["share"], clips, settings["seed"])
    elif arm.kind == "probability":
        loosen = by_probability(settings["least_logprob"])
    elif arm.kind == "entropy":
        loosen = by_entropy(settings["threshold"])
    else:
        loosen = fly(settings["window"], settings["threshold"])
    return Baseline(loosen, tables.is_ordinary)


def by_server(name: str, family: str, rule: Rule, scorer: str) -> Arm:
    """An arm of the server's rule."""
    return Arm(name, family, "server", {"scorer": scorer, "rule": dataclasses.asdict(rule)})


def presets(scorer: str = DEFAULT_SCORER) -> list[Arm]:
    """The plugin's presets, strict first."""
    return [by_server(name, "presets" if name != STRICT else STRICT, rule, scorer) for name, rule in PRESETS.items()]


def by_random(name: str, share: float, seed: int) -> Arm:
    """An arm of random relaxation."""
    return Arm(name, "random", "random", {"share": share, "seed": seed})


def main_question(scorer: str, thresholds: dict[float, float], matched: float, seed: int) -> list[Arm]:
    """All arms of the describing question.

    Args:
        scorer: of the presets.
        thresholds: log-probability that this share of the mismatches of the tuning clips reaches.
        matched: chance at which as many tokens of the tuning clips are loosened as by MAIN.
        seed: of random relaxation.
    """
    arms = [Arm(NONE, NONE, NONE), *presets(scorer)]
    if scorer != "similarity":
        arms.append(by_server("paper, similarity", "presets", PRESETS["paper"], "similarity"))
    balanced = PRESETS[MAIN]
    for each in SCORERS:
        for relaxation in RELAXATIONS:
            rule = balanced.with_values({"relaxation": relaxation})
            arms.append(by_server(f"{each} λ={relaxation}", each, rule, each))
    shifting = {"shift": "draft", "window": PRESETS["paper"].window}
    for relaxation in RELAXATIONS:
        rule = balanced.with_values({"relaxation": relaxation, **shifting})
        arms.append(by_server(f"{scorer} λ={relaxation}, shift", f"{scorer}, shift", rule, scorer))
    arms += [by_random(f"random r={share}", share, seed) for share in CHANCES]
    arms.append(by_random(MATCHED, matched, seed))
    arms += [
        Arm(f"probability {share:.0%}", "probability", "probability", {"least_logprob": threshold})
        for share, threshold in thresholds.items()
    ]
    arms += [
        Arm(FLY_PLUS if each == ENTROPY else f"entropy ≥ {each}", "entropy", "entropy", {"threshold": each})
        for each in ENTROPIES
    ]
    for window in WINDOWS:
        name = FLY if window == WINDOW else f"FLy window={window}"
        arms.append(Arm(name, "FLy", "fly", {"window": window, "threshold": ENTROPY}))
    return arms


def other_questions(arms: list[Arm]) -> list[Arm]:
    """The few arms that also answer the short question and the one for JSON."""
    names = {NONE, *PRESETS, MATCHED, FLY, FLY_PLUS, "probability 70%"}
    return [arm for arm in arms if arm.name in names]
