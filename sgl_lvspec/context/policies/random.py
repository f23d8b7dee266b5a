"""`random`: any tokens. What every other policy must beat."""

from __future__ import annotations

import torch

from sgl_lvspec.context.policy import Policy, Video


def _score(video: Video) -> torch.Tensor:
    """Drawn on the host from the video's hash, so that all ranks draw alike."""
    generator = torch.Generator().manual_seed(video.seed % 2**63)
    return torch.rand(video.num_tokens, generator=generator).to(video.device)


POLICY = Policy(_score, mass_share=1.0)
