"""timm's BatchNorm folded into convolutions: it has the activation in it, which stays."""

import torch
from timm.layers import BatchNormAct2d

from .folding import Folded


class FoldedBatchNormAct2d(Folded, BatchNormAct2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.drop(x)) if self.serves() else super().forward(x)


FOLDED_NORMS: dict[type, type] = {BatchNormAct2d: FoldedBatchNormAct2d}
