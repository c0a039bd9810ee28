"""From query embeddings to classes and masks."""

from collections.abc import Sequence

import torch
from torch import nn

from .layers import MLP


class SegmentationHead(nn.Module):
    """A linear classifier with a no-object class, and an MLP whose result is multiplied with the pixel embeddings."""

    def __init__(self, hidden_size: int, mask_feature_size: int, num_labels: int):
        super().__init__()
        self.class_predictor = nn.Linear(hidden_size, num_labels + 1)
        self.mask_embedder = MLP(hidden_size, hidden_size, mask_feature_size, num_layers=3)

    def forward(
        self, queries_LBQC: torch.Tensor, pixel_embeddings_BChw: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Class logits (L, B, Q, K+1) and mask logits (L, B, Q, h, w) of all decoder layers at once."""
        mask_embeddings_LBQC = self.mask_embedder(queries_LBQC)
        masks_LBQhw = torch.einsum("lbqc,bchw->lbqhw", mask_embeddings_LBQC, pixel_embeddings_BChw)
        return self.class_predictor(queries_LBQC), masks_LBQhw

    @torch.no_grad()
    def change_classes(self, rows: Sequence[int | None]):
        """Replace the classifier: class i is the former class `rows[i]`, or a new one. No-object stays no-object."""
        old = self.class_predictor
        new = nn.Linear(old.in_features, len(rows) + 1, device=old.weight.device, dtype=old.weight.dtype)
        for row, former in enumerate([*rows, old.out_features - 1]):
            if former is not None:
                new.weight[row] = old.weight[former]
                new.bias[row] = old.bias[former]
        self.class_predictor = new
