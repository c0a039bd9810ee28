"""Tensors that tests of the losses make, and those that they watch."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


def embeddings_of(mask_logits_LBQhw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mask and pixel embeddings with one channel for each query of each layer: their products are exactly these logits.

    Of clips, (L, B, Q, T, h, w), pixel embeddings are (B, T, C, h, w).
    """
    num_layers, num_images, num_queries = mask_logits_LBQhw.shape[:3]
    num_channels = num_layers * num_queries
    mask_embeddings_LQC = torch.eye(num_channels, dtype=mask_logits_LBQhw.dtype).view(num_layers, num_queries, -1)
    pixel_embeddings_BChw = mask_logits_LBQhw.transpose(0, 1).flatten(1, 2).movedim(1, -3)
    return mask_embeddings_LQC[:, None].expand(-1, num_images, -1, -1), pixel_embeddings_BChw


class LargestTensor(TorchDispatchMode):
    """Elements of the largest floating-point tensor that any operation made."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.is_floating_point():
            self.numel = max(self.numel, result.numel())
        return result
