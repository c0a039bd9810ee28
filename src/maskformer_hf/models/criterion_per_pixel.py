"""The loss of the per-pixel baselines: cross-entropy of every pixel."""

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from .criterion import average_over_processes


def per_pixel_loss(
    logits_LBKhw: torch.Tensor, labels_BHW: torch.Tensor, ignore_index: int, stride: int = 4
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return the sum of all terms, one a decoder layer and all of the same weight, and each term under the original's
    name. A term is the mean over the pixels that are not void, those of all processes; 0 where there are none.

    Runs in float32, autocast or not. The original multiplies the size of the logits by four, and so fails where the
    labels' size is no multiple of four; here the surplus is cut off, see [`full_size`].

    Args:
        logits_LBKhw: Class logits (L, B, K, h, w); the last of the L layers is the result.
        labels_BHW: Classes (B, H, W) int64, void is `ignore_index`.
        stride: Input pixels from one of the logits to the next.
    """
    labels_BHW = labels_BHW.to(logits_LBKhw.device)
    size = full_size(logits_LBKhw.shape[-2:], labels_BHW.shape[-2:], stride)
    height, width = labels_BHW.shape[-2:]
    num_pixels = (labels_BHW != ignore_index).sum().float()
    average_over_processes(num_pixels)
    losses = {}
    with torch.autocast(logits_LBKhw.device.type, enabled=False):
        for layer, logits_BKhw in enumerate(logits_LBKhw.unbind(0)):
            logits_BKHW = F.interpolate(logits_BKhw.float(), size=size, mode="bilinear")[..., :height, :width]
            loss = F.cross_entropy(logits_BKHW, labels_BHW, ignore_index=ignore_index, reduction="sum")
            suffix = "" if layer == len(logits_LBKhw) - 1 else f"_{layer}"
            losses[f"loss_sem_seg{suffix}"] = loss / num_pixels.clamp(min=1)
    return torch.stack(list(losses.values())).sum(), losses


def full_size(logits_size: Sequence[int], input_size: Sequence[int], stride: int = 4) -> tuple[int, int]:
    """What logits (h, w) are resized to before the input's (H, W) is cut out: `stride` times their size, as in the
    original, or the input's where a backbone has rounded its size down."""
    height, width = (max(stride * cells, pixels) for cells, pixels in zip(logits_size, input_size, strict=True))
    return height, width


def labels_from_masks(
    mask_labels: Sequence[torch.Tensor], class_labels: Sequence[torch.Tensor], ignore_index: int
) -> torch.Tensor:
    """Draw the boolean masks (N_i, H, W) of each image with their classes (N_i,), later ones on top: (B, H, W) int64.
    Pixels in no mask, padding among them, are void."""
    labels_BHW = []
    for masks_NHW, classes_N in zip(mask_labels, class_labels, strict=True):
        labels_HW = torch.full(masks_NHW.shape[-2:], ignore_index, device=masks_NHW.device)
        for mask_HW, label in zip(masks_NHW, classes_N, strict=True):
            labels_HW = torch.where(mask_HW, label, labels_HW)
        labels_BHW.append(labels_HW)
    return torch.stack(labels_BHW)


def check_labels(labels_BHW: torch.Tensor, num_labels: int, ignore_index: int):
    valid = ((labels_BHW >= 0) & (labels_BHW < num_labels)) | (labels_BHW == ignore_index)
    if not bool(valid.all()):
        image = int((~valid).flatten(1).any(1).nonzero()[0])
        label = int(labels_BHW[image][~valid[image]][0])
        raise ValueError(
            f"`labels` of image {image} of the batch hold {label}, but the model knows 0 to {num_labels - 1}, and "
            f"{ignore_index} for void: map the labels, or set `semantic_loss_ignore_index` of the configuration."
        )
