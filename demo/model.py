"""The pair's architecture, and a lean batched forward over the Hugging Face parameters for training.

The forward equals the library's (a test compares them on the trained pair) but is several times faster on CPU:
the patch embedding is a matrix product, and vision attention runs over all frames at once. Every frame is one
SIDE x SIDE window, so window attention is full attention and the window permutation is the identity.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import transformers.models.qwen2_5_vl.modeling_qwen2_5_vl as qwen
from torch import nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from demo.render import CELL_FIELDS, GRID
from demo.scene import BACKGROUNDS, COLORS, MOTIONS, SHAPES, SIDE, SIZES
from demo.tokenizer import VOCAB_SIZE, Vocabulary

ROLES: dict[str, dict[str, dict[str, int]]] = {
    "target": {
        "text": {
            "hidden_size": 256, "intermediate_size": 640, "num_hidden_layers": 4, "num_attention_heads": 4,
            "num_key_value_heads": 2,
        },
        "vision": {"hidden_size": 128, "intermediate_size": 256, "depth": 3, "num_heads": 4},
    },
    "draft": {
        "text": {
            "hidden_size": 128, "intermediate_size": 320, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 2,
        },
        "vision": {"hidden_size": 64, "intermediate_size": 128, "depth": 2, "num_heads": 2},
    },
}  # fmt: skip
# One M-RoPE step a second. At 2 fps a grid of two frames lasts one second, so times are 0, 1, 2, ...: whole numbers,
# and for clips of up to 8 frames no larger than the 4 x 4 spatial positions. There the two conventions for where text
# continues after a video (transformers 5: spatial extent; SGLang and earlier transformers: largest position + 1) agree.
TOKENS_PER_SECOND = 1


def config(role: str, vocabulary: Vocabulary) -> Qwen2_5_VLConfig:
    """The configuration of `role` ("target" or "draft")."""
    sizes = ROLES[role]
    settings = Qwen2_5_VLConfig(
        text_config={
            **sizes["text"], "vocab_size": VOCAB_SIZE, "max_position_embeddings": 4096, "rms_norm_eps": 1e-6,
            "bos_token_id": None, "eos_token_id": vocabulary.eos, "pad_token_id": vocabulary.pad,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [8, 12, 12]},
            "initializer_range": 0.03, "tie_word_embeddings": False, "use_sliding_window": False,
        },
        vision_config={
            **sizes["vision"], "out_hidden_size": sizes["text"]["hidden_size"], "patch_size": 14,
            "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": SIDE,
            # A window is a whole frame, so windows lose nothing; without them SGLang 0.5.23 attends across all frames
            # (models/qwen2_5_vl.py: cu_seqlens counts t * h * w), where transformers keeps to one pair of frames.
            "fullatt_block_indexes": [], "tokens_per_second": TOKENS_PER_SECOND,
            "initializer_range": 0.03,
        },
        image_token_id=vocabulary.image, video_token_id=vocabulary.video, vision_start_token_id=vocabulary.vision_start,
        vision_end_token_id=vocabulary.vision_end, tie_word_embeddings=False,
    )  # fmt: skip
    settings.bos_token_id, settings.eos_token_id, settings.pad_token_id = None, vocabulary.eos, vocabulary.pad
    return settings


def build(role: str, vocabulary: Vocabulary, seed: int) -> Qwen2_5_VLForConditionalGeneration:
    """A freshly initialised model."""
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(config(role, vocabulary))
    nn.init.normal_(model.model.language_model.embed_tokens.weight, std=0.3)
    return model


def use_fused_norm() -> None:
    """Replace the library's RMSNorm by torch's fused one (same maths; training only)."""

    def forward(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.variance_epsilon)

    qwen.Qwen2_5_VLRMSNorm.forward = forward


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    return x * cos + qwen.rotate_half(x) * sin


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, is_causal: bool) -> torch.Tensor:
    """Attention over `[B, heads, N, head_dim]` by plain matrix products.

    At these lengths (64 and about 200) this is 2 to 5 times faster on CPU, backward included, than torch's fused one.
    """
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    weights = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if is_causal:
        size = weights.shape[-1]
        weights = weights + torch.full((size, size), float("-inf"), dtype=weights.dtype, device=q.device).triu(1)
    return torch.softmax(weights, -1).to(v.dtype) @ v


def see(tower: nn.Module, patches: torch.Tensor, clips: int) -> torch.Tensor:
    """Features `[clips, tokens, hidden]` of patches `[clips * grids * 64, 1176]`; equals `tower(patches, grid)`."""
    side = 2 * GRID
    weight = tower.patch_embed.proj.weight
    x = F.linear(patches, weight.view(weight.shape[0], -1))
    per_frame = side * side
    frames = x.shape[0] // per_frame
    rows = torch.arange(side, device=x.device)
    block = (GRID, 2, GRID, 2)  # patches come in blocks of 2 x 2, the block that is merged into one token
    h = rows.view(GRID, 2, 1, 1).expand(block).permute(0, 2, 1, 3).reshape(-1)
    w = rows.view(1, 1, GRID, 2).expand(block).permute(0, 2, 1, 3).reshape(-1)
    cos, sin = tower.rotary_pos_emb(x, torch.stack([h, w], -1))  # ids are (N, 2); (2, N) runs too, and is wrong
    cos, sin = cos.view(1, 1, per_frame, -1).to(x.dtype), sin.view(1, 1, per_frame, -1).to(x.dtype)
    x = x.view(frames, per_frame, -1)
    for layer in tower.blocks:
        heads = layer.attn.num_heads
        q, k, v = layer.attn.qkv(layer.norm1(x)).view(frames, per_frame, 3, heads, -1).permute(2, 0, 3, 1, 4)
        out = _attend(rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=False)
        x = x + layer.attn.proj(out.transpose(1, 2).reshape(frames, per_frame, -1))
        x = x + layer.mlp(layer.norm2(x))
    return tower.merger(x.view(frames * per_frame, -1)).view(clips, -1, tower.merger.mlp[2].out_features)


def embed(model: nn.Module, ids: torch.Tensor, features: torch.Tensor | None, vocabulary: Vocabulary) -> torch.Tensor:
    """Token embeddings `[B, L, hidden]` with `features` (all clips' tokens in order) put at the picture tokens."""
    x = model.model.language_model.embed_tokens(ids)
    if features is None:
        return x
    is_picture = (ids == vocabulary.video) | (ids == vocabulary.image)
    return x.masked_scatter(is_picture[..., None], features.to(x.dtype))


def read(model: nn.Module, x: torch.Tensor, positions: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Logits `[N, vocabulary]` at the N places where bool `wanted` `[B, L]` is set.

    Args: x: embeddings `[B, L, hidden]`, padded on the right; positions: M-RoPE ids int64 `[3, B, L]`.
    """
    text = model.model.language_model
    batch, length, _ = x.shape
    cos, sin = text.rotary_emb(x, positions)
    cos, sin = cos[:, None].to(x.dtype), sin[:, None].to(x.dtype)
    for layer in text.layers:
        attention, y = layer.self_attn, layer.input_layernorm(x)
        q, k, v = (
            p(y).view(batch, length, -1, attention.head_dim).transpose(1, 2)
            for p in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        out = _attend(rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True)
        x = x + attention.o_proj(out.transpose(1, 2).reshape(batch, length, -1))
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    return model.lm_head(text.norm(x[wanted]))


class VisionHeads(nn.Module):
    """Linear readers of what each video token shows; they teach the vision tower and are then thrown away."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        classes = {
            "color": len(COLORS),
            "shape": len(SHAPES),
            "size": len(SIZES),
            "motion": len(MOTIONS),
            "visibility": 3,
        }
        self.presence = nn.Linear(hidden, 1)
        self.background = nn.Linear(hidden, len(BACKGROUNDS))
        self.fields = nn.ModuleDict({f: nn.Linear(hidden, classes[f]) for f in CELL_FIELDS})

    def loss(
        self, features: torch.Tensor, cells: torch.Tensor, background: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Summed loss and the accuracy by field.

        Args: features float32 `[B, tokens, hidden]`; cells int64 `[B, tokens, 1 + fields]`; background int64 `[B]`.
        """
        present = cells[..., 0] == 1
        here, truth = features[present], cells[present]
        weight = torch.tensor(4.0, device=features.device)  # most cells are empty
        loss = 2 * F.binary_cross_entropy_with_logits(
            self.presence(features)[..., 0], cells[..., 0].float(), pos_weight=weight
        )
        spread = background[:, None].expand(features.shape[:2]).reshape(-1)
        loss = loss + 0.5 * F.cross_entropy(self.background(features).flatten(0, 1), spread)
        right: dict[str, float] = {}
        for i, name in enumerate(CELL_FIELDS):
            labels = truth[:, i + 1]
            decided = labels >= 0
            if not decided.any():
                continue
            logits = self.fields[name](here[decided])
            # Shapes take longest to learn.
            loss = loss + (2 if name == "shape" else 1) * F.cross_entropy(logits, labels[decided])
            right[name] = (logits.argmax(-1) == labels[decided]).float().mean().item()
        return loss, right
