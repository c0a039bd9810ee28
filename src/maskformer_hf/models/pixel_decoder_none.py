"""No pixel decoder: what the backbone gives, as EoMT's transformer decoder takes it."""

from typing import Any

import torch
from torch import nn

from .interfaces import Ask, Facts, PixelDecoderOutput


class NoPixelDecoder(nn.Module):
    def __init__(self, facts: Facts):
        super().__init__()
        self.memory = facts

    @classmethod
    def from_config(cls, config: Any, facts: Facts) -> "NoPixelDecoder":
        return cls(facts)

    @staticmethod
    def check(config: Any):
        if config.transformer_decoder != "joint":
            raise ValueError(
                f"`pixel_decoder='none'` makes no pixel embeddings, and only `transformer_decoder='joint'` makes them "
                f"itself; it is {config.transformer_decoder!r}: choose another pixel decoder."
            )

    def forward(self, features: tuple[torch.Tensor, ...], ask: Ask) -> PixelDecoderOutput:
        return PixelDecoderOutput(features[-1], features)
