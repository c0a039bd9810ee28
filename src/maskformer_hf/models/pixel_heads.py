"""The heads of the per-pixel baselines (https://arxiv.org/abs/2107.06278, section 4.1)."""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import initialization as init

from .interfaces import Ask, Decoded, Encoded
from .layers import MLP, keep_rows
from .masks import mask_logits


class QueryPixelHead(nn.Module):
    """The head of PerPixelBaseline+: MaskFormer's masks, of which mask k is the logit of class k."""

    def __init__(self, hidden_size: int, mask_feature_size: int):
        super().__init__()
        self.mask_embedder = MLP(hidden_size, hidden_size, mask_feature_size, num_layers=3)

    def forward(self, decoded: Decoded, encoded: Encoded, ask: Ask) -> torch.Tensor:
        """Class logits of every pixel (L, B, K, h, w) of the layers that are asked for."""
        queries = decoded.outputs[-1].queries
        queries_LBKC = torch.stack(queries if ask.every_layer else queries[-1:])
        return mask_logits(self.mask_embedder(queries_LBKC), encoded.pixels.embeddings)


class PixelHead(nn.Module):
    """The head of PerPixelBaseline: a linear classifier of pixel embeddings."""

    def __init__(self, mask_feature_size: int, num_labels: int):
        super().__init__()
        self.classifier = nn.Conv2d(mask_feature_size, num_labels, 1)

    def init_weights(self):
        # Detectron2's `c2_msra_fill`.
        init.kaiming_normal_(self.classifier.weight, mode="fan_out", nonlinearity="relu")
        if self.classifier.bias is not None:
            init.zeros_(self.classifier.bias)

    def forward(self, decoded: Decoded, encoded: Encoded, ask: Ask) -> torch.Tensor:
        """Class logits of every pixel (1, B, K, h, w)."""
        return self.classifier(encoded.pixels.embeddings)[None]

    def change_classes(self, rows: Sequence[int | None]):
        """Make class i the former class `rows[i]`, or a new one."""
        old = self.classifier
        self.classifier = nn.Conv2d(old.in_channels, len(rows), 1, device=old.weight.device, dtype=old.weight.dtype)
        self.init_weights()
        keep_rows(self.classifier, old, rows)
