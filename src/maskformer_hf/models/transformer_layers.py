"""What the transformer layers of all parts have in common, and DETR's encoder (https://arxiv.org/abs/2005.12872)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention import Attention


class LayerSizes(NamedTuple):
    """Sizes of a transformer layer.

    pre_norm: LayerNorm in front of attention and feed-forward network, not behind.
    activation: Inside the feed-forward network of an encoder.
    """

    hidden_size: int
    num_heads: int
    ffn_dim: int
    dropout: float
    pre_norm: bool = False
    activation: Callable[[torch.Tensor], torch.Tensor] = F.relu

    @classmethod
    def of_decoder(cls, config: Any) -> "LayerSizes":
        return cls(config.hidden_size, config.num_attention_heads, config.ffn_dim, config.dropout, config.pre_norm)

    @classmethod
    def of_encoder(cls, config: Any) -> "LayerSizes":
        """The same for the encoder of a pixel decoder."""
        ffn_dim = config.encoder_ffn_dim or config.ffn_dim
        return cls(config.feature_size, config.num_attention_heads, ffn_dim, config.dropout, config.pre_norm)


def check_width(config: Any, name: str):
    """Refuse a width that heads or positions cannot share evenly."""
    width = getattr(config, name)
    # The sine position encoding spends a half of the channels on each axis, in pairs of sine and cosine.
    if width % 4 or width % config.num_attention_heads:
        raise ValueError(
            f"`{name}` must be a multiple of 4 and of `num_attention_heads`={config.num_attention_heads}, got {width}."
        )


def check_no_encoder(config: Any):
    """Refuse fields of an encoder, for a pixel decoder that has none."""
    if config.inference_encoder_layers is not None:
        raise ValueError(
            f"`pixel_decoder={config.pixel_decoder!r}` has no encoder to leave early: `inference_encoder_layers` must "
            f"be None, got {config.inference_encoder_layers}."
        )
    check_no_exits(config)


def check_no_exits(config: Any):
    """Refuse exits of the encoder, for a pixel decoder that trains none."""
    if config.encoder_exits is not None:
        raise ValueError(
            f"`pixel_decoder={config.pixel_decoder!r}` trains no earlier exits of its encoder: `encoder_exits` must be "
            f"None, got {config.encoder_exits}; choose 'deformable'."
        )


class FeedForward(nn.Module):
    def __init__(self, hidden_size: int, ffn_dim: int, dropout: float, activation: Any = F.relu):
        super().__init__()
        self.activation = activation
        self.fc1 = nn.Linear(hidden_size, ffn_dim)
        self.fc2 = nn.Linear(ffn_dim, hidden_size)
        self.dropout = nn.Dropout(dropout)

    def init_weights(self):
        init.xavier_uniform_(self.fc1.weight)
        init.xavier_uniform_(self.fc2.weight)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.dropout(self.activation(self.fc1(states))))


class TransformerLayer(GradientCheckpointingLayer):
    """Base of transformer layers, which knows on which side of a residual branch its norm stands."""

    def __init__(self, sizes: LayerSizes):
        super().__init__()
        self.pre_norm = sizes.pre_norm
        self.dropout = nn.Dropout(sizes.dropout)

    def before(self, states: torch.Tensor, norm: nn.Module) -> torch.Tensor:
        """What a branch reads."""
        return norm(states) if self.pre_norm else states

    def add(self, states: torch.Tensor, update: torch.Tensor, norm: nn.Module) -> torch.Tensor:
        """The states with the result of a branch."""
        states = states + self.dropout(update)
        return states if self.pre_norm else norm(states)


class TransformerEncoderLayer(TransformerLayer):
    """DETR's encoder layer: positions are added to queries and keys, never to values."""

    def __init__(self, sizes: LayerSizes):
        super().__init__(sizes)
        self.self_attn = Attention(sizes.hidden_size, sizes.num_heads, sizes.dropout)
        self.self_attn_norm = nn.LayerNorm(sizes.hidden_size)
        self.ffn = FeedForward(sizes.hidden_size, sizes.ffn_dim, sizes.dropout, sizes.activation)
        self.ffn_norm = nn.LayerNorm(sizes.hidden_size)

    def forward(
        self, states_BSC: torch.Tensor, position_BSC: torch.Tensor, need_weights: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        normed = self.before(states_BSC, self.self_attn_norm)
        positioned = normed + position_BSC
        update, weights = self.self_attn(positioned, positioned, normed, need_weights)
        states_BSC = self.add(states_BSC, update, self.self_attn_norm)
        update = self.ffn(self.before(states_BSC, self.ffn_norm))
        return self.add(states_BSC, update, self.ffn_norm), weights


class TransformerEncoder(nn.Module):
    """DETR's encoder. With `pre_norm` it ends in a LayerNorm, also when it has no layer at all, as in the original."""

    def __init__(self, num_layers: int, sizes: LayerSizes):
        super().__init__()
        self.layers = nn.ModuleList(TransformerEncoderLayer(sizes) for _ in range(num_layers))
        self.norm = nn.LayerNorm(sizes.hidden_size) if sizes.pre_norm else nn.Identity()

    def forward(
        self,
        states_BSC: torch.Tensor,
        position_BSC: torch.Tensor,
        need_weights: bool = False,
        num_layers: int | None = None,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """States after all layers, or after the first `num_layers`, and the attention weights of each."""
        attentions = []
        for layer in self.layers[:num_layers]:
            states_BSC, weights = layer(states_BSC, position_BSC, need_weights)
            attentions.append(weights)
        return self.norm(states_BSC), tuple(attentions)
