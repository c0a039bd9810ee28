"""The blocks of DINOv2 and DINOv3, for models whose queries join them.

Pre-norm blocks with layer scale: states + scale * attention(norm(states)), then the same with a feed-forward network.
DINOv3 turns queries and keys of patches by angles of their position (https://arxiv.org/abs/2508.10104); tokens in front
of the patches are not turned.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention import attend

# Configurations of transformers that say what such blocks are like.
DINOV2, DINOV3 = "dinov2_with_registers", "dinov3_vit"


class VitAttention(nn.Module):
    def __init__(self, config: Any):
        """`config`: That of the backbone, as everywhere here."""
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_attention_heads
        bias = {name: getattr(config, f"{name}_bias", True) for name in ("query", "key", "value", "proj")}
        self.q_proj = nn.Linear(width, width, bias=bias["query"])
        self.k_proj = nn.Linear(width, width, bias=bias["key"])
        self.v_proj = nn.Linear(width, width, bias=bias["value"])
        self.o_proj = nn.Linear(width, width, bias=bias["proj"])

    def forward(
        self,
        states_BSC: torch.Tensor,
        rotation: torch.Tensor | None = None,
        attended: torch.Tensor | None = None,
        need_weights: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The update of the states, and the weights (B, heads, S, S) if asked for.

        Args:
            rotation: Cosines and sines (2, P, channels of a head) of the last P tokens.
            attended: Which token (row) may attend to which (column), (B, 1, S, S) bool.
        """
        q_BSC, k_BSC = self.q_proj(states_BSC), self.k_proj(states_BSC)
        if rotation is not None:
            q_BSC, k_BSC = (rotate(tokens, rotation, self.num_heads) for tokens in (q_BSC, k_BSC))
        update, weights = attend(q_BSC, k_BSC, self.v_proj(states_BSC), self.num_heads, 0.0, need_weights, attended)
        return self.o_proj(update), weights


class VitFeedForward(nn.Module):
    """Two layers with an activation between, or a gated one."""

    def __init__(self, config: Any):
        super().__init__()
        width, hidden, bias = config.hidden_size, feed_forward_width(config), getattr(config, "mlp_bias", True)
        self.gate_proj = nn.Linear(width, hidden, bias=bias) if is_gated(config) else None
        # DINOv2's gated one is SwiGLU, whatever its configuration says.
        is_swiglu = self.gate_proj is not None and config.model_type == DINOV2
        self.activation = ACT2FN["silu" if is_swiglu else config.hidden_act]
        self.up_proj = nn.Linear(width, hidden, bias=bias)
        self.down_proj = nn.Linear(hidden, width, bias=bias)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        hidden = self.up_proj(states)
        hidden = self.activation(hidden) if self.gate_proj is None else self.activation(self.gate_proj(states)) * hidden
        return self.down_proj(hidden)


class VitBlock(GradientCheckpointingLayer):
    def __init__(self, config: Any):
        super().__init__()
        width = config.hidden_size
        self.scale_value = config.layerscale_value
        self.norm1 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.attention = VitAttention(config)
        self.scale1 = nn.Parameter(torch.full((width,), float(self.scale_value)))
        self.norm2 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.mlp = VitFeedForward(config)
        self.scale2 = nn.Parameter(torch.full((width,), float(self.scale_value)))

    def init_weights(self):
        for scale in (self.scale1, self.scale2):
            init.constant_(scale, float(self.scale_value))

    def forward(
        self,
        states_BSC: torch.Tensor,
        rotation: torch.Tensor | None = None,
        attended: torch.Tensor | None = None,
        need_weights: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """States and attention weights; the arguments are those of [`VitAttention`]."""
        update, weights = self.attention(self.norm1(states_BSC), rotation, attended, need_weights)
        states_BSC = states_BSC + self.scale1 * update
        return states_BSC + self.scale2 * self.mlp(self.norm2(states_BSC)), weights


def is_gated(config: Any) -> bool:
    return bool(getattr(config, "use_gated_mlp", False) or getattr(config, "use_swiglu_ffn", False))


def feed_forward_width(config: Any) -> int:
    if config.model_type == DINOV3:
        return config.intermediate_size
    width = int(config.hidden_size * config.mlp_ratio)
    # A gated network has two thirds, for the same number of weights.
    return (int(width * 2 / 3) + 7) // 8 * 8 if is_gated(config) else width


def rotation_of(config: Any, size: Sequence[int], like: torch.Tensor) -> torch.Tensor | None:
    """Cosines and sines (2, h w, channels of a head) of the patches of a map of this size; None without rotation.

    Positions are the centres of patches on a map from -1 to 1, whatever its size; half of the angles are of rows, half
    of columns, and each turns two channels.
    """
    if config.model_type != DINOV3:
        return None
    channels = config.hidden_size // config.num_attention_heads
    y, x = (2 * (torch.arange(cells, device=like.device) + 0.5) / cells - 1 for cells in size)
    centres = torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1).flatten(0, 1)
    frequencies = config.rope_theta ** -torch.arange(0, 1, 4 / channels, device=like.device)
    angles = (2 * math.pi * centres[:, :, None] * frequencies).flatten(1).tile(2)
    return torch.stack((angles.cos(), angles.sin())).to(like.dtype)


def rotate(tokens_BSC: torch.Tensor, rotation: torch.Tensor, num_heads: int) -> torch.Tensor:
    """The same tokens with the last ones turned in every head: the first half of its channels with the second."""
    cosine, sine = rotation[:, :, None]
    num_in_front = tokens_BSC.shape[1] - rotation.shape[1]
    patches = tokens_BSC[:, num_in_front:].unflatten(2, (num_heads, -1))
    first, second = patches.chunk(2, dim=-1)
    turned = patches * cosine + torch.cat((-second, first), dim=-1) * sine
    return torch.cat((tokens_BSC[:, :num_in_front], turned.flatten(2)), dim=1)
