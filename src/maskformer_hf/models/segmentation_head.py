"""From query embeddings to classes and masks."""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import initialization as init

from .layers import MLP, keep_rows, mask_logits


class ClassHead(nn.Module):
    """A linear classifier with a no-object class, for decoders that make the mask embeddings themselves."""

    def __init__(self, hidden_size: int, mask_feature_size: int, num_labels: int):
        super().__init__()
        self.class_predictor = nn.Linear(hidden_size, num_labels + 1)

    def forward(
        self, queries_LBQC: torch.Tensor, mask_embeddings_LBQC: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Class logits (L, B, Q, K+1) and mask embeddings (L, B, Q, C) of all decoder layers at once. Masks are the
        latter's products with the pixel embeddings, which are made where they are wanted."""
        assert mask_embeddings_LBQC is not None, "the part tables pair this head with decoders that make them"
        return self.class_predictor(queries_LBQC), mask_embeddings_LBQC

    def change_classes(self, rows: Sequence[int | None]):
        """Replace the classifier: class i is the former class `rows[i]`, or a new one. No-object stays no-object."""
        old = self.class_predictor
        new = nn.Linear(old.in_features, len(rows) + 1, device=old.weight.device, dtype=old.weight.dtype)
        self.class_predictor = keep_rows(new, old, [*rows, old.out_features - 1])


class SegmentationHead(ClassHead):
    """The classifier, and an MLP that makes the mask embeddings."""

    def __init__(self, hidden_size: int, mask_feature_size: int, num_labels: int):
        super().__init__(hidden_size, mask_feature_size, num_labels)
        self.mask_embedder = MLP(hidden_size, hidden_size, mask_feature_size, num_layers=3)

    def forward(
        self, queries_LBQC: torch.Tensor, mask_embeddings_LBQC: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return super().forward(queries_LBQC, self.mask_embedder(queries_LBQC))


class QueryPixelHead(nn.Module):
    """The head of PerPixelBaseline+: the masks of [`SegmentationHead`], of which mask k is the logit of class k."""

    def __init__(self, hidden_size: int, mask_feature_size: int):
        super().__init__()
        self.mask_embedder = MLP(hidden_size, hidden_size, mask_feature_size, num_layers=3)

    def forward(self, queries_LBKC: torch.Tensor, pixel_embeddings_BChw: torch.Tensor) -> torch.Tensor:
        """Class logits of every pixel (L, B, K, h, w) of all decoder layers at once."""
        return mask_logits(self.mask_embedder(queries_LBKC), pixel_embeddings_BChw)


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

    def forward(self, pixel_embeddings_BChw: torch.Tensor) -> torch.Tensor:
        """Class logits of every pixel (B, K, h, w)."""
        return self.classifier(pixel_embeddings_BChw)

    def change_classes(self, rows: Sequence[int | None]):
        """Replace the classifier: class i is the former class `rows[i]`, or a new one."""
        old = self.classifier
        self.classifier = nn.Conv2d(old.in_channels, len(rows), 1, device=old.weight.device, dtype=old.weight.dtype)
        self.init_weights()
        keep_rows(self.classifier, old, rows)
