"""`uvprune`: the tokens whose states turn towards the text (UV-Prune of ParallelVLM, arXiv 2603.19610, section 3).

The change of the cosine of video and text states between two early layers; no attention, so no bias towards the
places that attention favours whatever they show.
"""

from __future__ import annotations

import torch

from sgl_lvspec.context.policy import LAYER_CHANGE, Policy, Video


def _score(video: Video) -> torch.Tensor:
    assert video.evidence is not None
    return video.evidence


POLICY = Policy(_score, mass_share=1.0, evidence=LAYER_CHANGE)
