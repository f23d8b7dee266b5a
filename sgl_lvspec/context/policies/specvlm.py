"""`specvlm`: what the question looks at, then evenly spaced (SpecVLM, arXiv 2508.16201, section 3).

The paper averages the target's attention over all layers; here a few stand for them (`evidence`).
"""

from __future__ import annotations

import torch

from sgl_lvspec.context.policy import QUESTION_ATTENTION, Policy, Video

TOP_P = 0.4  # of the attention on the video, taken by its best tokens: `percentage` of the released settings


def _score(video: Video) -> torch.Tensor:
    assert video.evidence is not None
    return video.evidence


POLICY = Policy(_score, mass_share=TOP_P, evidence=QUESTION_ATTENTION)
