"""The lower blocks of a DINOv2 or DINOv3, whose upper blocks are EoMT's transformer decoder."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedConfig
from transformers import initialization as init

from .backbone_frozen import FreezableBackbone
from .interfaces import Facts
from .vit_blocks import DINOV3, VitBlock, rotation_of


class TokenEncoder(nn.Module):
    """Patch embeddings, class and register tokens, and the blocks that queries do not join."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.config = config
        width, patch = config.hidden_size, config.patch_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_tokens = nn.Parameter(torch.zeros(1, config.num_register_tokens, width))
        self.patch_embeddings = nn.Conv2d(config.num_channels, width, patch, stride=patch)
        # A square map of them. DINOv3 turns queries and keys in place.
        self.grid = 0 if config.model_type == DINOV3 else config.image_size // patch
        self.position_embeddings = nn.Parameter(torch.zeros(self.grid**2, width)) if self.grid else None
        self.blocks = nn.ModuleList(VitBlock(config) for _ in range(config.num_hidden_layers))

    def init_weights(self):
        init.trunc_normal_(self.cls_token, std=0.02)
        init.zeros_(self.register_tokens)
        if self.position_embeddings is not None:
            init.normal_(self.position_embeddings)

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens in front as a map of one row, (B, C, 1, P), and patches as a map (B, C, h, w)."""
        maps = self.patch_embeddings(pixel_values)
        size = maps.shape[-2:]
        if self.position_embeddings is not None:
            maps = maps + self._positions(*size).to(maps.dtype)
        front = torch.cat((self.cls_token, self.register_tokens), dim=1).to(maps.dtype).expand(maps.shape[0], -1, -1)
        states = torch.cat((front, maps.flatten(2).transpose(1, 2)), dim=1)
        rotation = rotation_of(self.config, size, states)
        for block in self.blocks:
            states, _ = block(states, rotation)
        states = states.transpose(1, 2)
        num_front = front.shape[1]
        return states[:, :, None, :num_front], states[:, :, num_front:].unflatten(2, size)

    def _positions(self, rows: int, columns: int) -> torch.Tensor:
        """(1, C, rows, columns). At their own size they stay as they are."""
        positions: Any = self.position_embeddings
        maps = positions.float().T.unflatten(1, (self.grid, self.grid))[None]
        return F.interpolate(maps, size=(rows, columns), mode="bicubic", align_corners=False)


class TokenBackbone(FreezableBackbone):
    """Gives tokens and no pyramid: the map of the tokens in front, and the map of the patches.

    Images of any size are padded with zeros to whole patches.
    """

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.body: Any = TokenEncoder(config)
        self.patch = config.patch_size
        self.facts = Facts((config.hidden_size,) * 2, (self.patch,) * 2)

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        height, width = pixel_values.shape[-2:]
        return tuple(self.run(F.pad(pixel_values, (0, -width % self.patch, 0, -height % self.patch))))

    def maps_of_body(self, pixel_values: torch.Tensor, **options: Any) -> Any:
        return self.body(pixel_values)
