"""Bipartite matching of queries and targets (https://arxiv.org/abs/2107.06278, section 3.1)."""

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F

try:
    from scipy.optimize import linear_sum_assignment
except ImportError:  # inference needs no scipy
    linear_sum_assignment = None

# Of the focal loss, whose gamma of 2 stands as a square wherever it is used.
FOCAL_ALPHA = 0.25


class NotFiniteError(ValueError, FloatingPointError):
    """Predictions are NaN or infinite: a wrong input for who calls once, a diverged run for who trains."""


@torch.no_grad()
def matching_costs(
    class_logits_LBQK: torch.Tensor,
    mask_logits_LBQhw: torch.Tensor,
    mask_labels: Sequence[torch.Tensor],
    class_labels: Sequence[torch.Tensor],
    class_weight: float,
    mask_weight: float,
    dice_weight: float,
    counted_BHW: torch.Tensor | None = None,
) -> torch.Tensor:
    """Cost of giving each target to each query, for all layers and images at once: (L, B, Q, N), float32.

    N is the largest number of targets of an image, at least 1; columns beyond an image's own targets mean nothing, but
    are finite if the predictions are. Targets are reduced to the size of the predictions, by taking the nearest pixel,
    as in the original.

    Args:
        mask_labels: Binary masks (N_i, H, W) of each image, all padded to one size.
        class_labels: Classes (N_i,) of each image.
        counted_BHW: False at void pixels, which take no part in the costs of masks.
    """
    size_BN = (len(class_labels), max(1, *map(len, class_labels)))
    targets_BNhw = mask_logits_LBQhw.new_zeros((*size_BN, *mask_logits_LBQhw.shape[-2:]), dtype=torch.float32)
    labels_BN = class_labels[0].new_zeros(size_BN)
    for image, (masks, labels) in enumerate(zip(mask_labels, class_labels, strict=True)):
        if len(labels):
            targets_BNhw[image, : len(labels)] = _nearest(masks, mask_logits_LBQhw.shape[-2:])
            labels_BN[image, : len(labels)] = labels

    num_layers, _, num_queries = class_logits_LBQK.shape[:3]
    probabilities_LBQK = class_logits_LBQK.float().softmax(-1)
    class_cost = -probabilities_LBQK.gather(-1, labels_BN[None, :, None, :].expand(num_layers, -1, num_queries, -1))

    # All layers of an image are rows of one matrix product.
    logits_BRX = mask_logits_LBQhw.float().transpose(0, 1).flatten(3).flatten(1, 2)
    targets_BXN = targets_BNhw.flatten(2).transpose(1, 2)
    # These maps are the largest of a step, so passes over them are saved: softplus(x) is the cross-entropy of a
    # negative pixel, softplus(x) - x that of a positive one, and both kinds of pixel share one matrix product.
    probability = logits_BRX.sigmoid()
    negative_entropy = F.softplus(logits_BRX)
    positive = (1 - probability).square_().mul_(negative_entropy - logits_BRX).mul_(FOCAL_ALPHA)
    num_pixels: int | torch.Tensor = logits_BRX.shape[-1]
    if counted_BHW is not None:
        counted_B1X = _nearest(counted_BHW, mask_logits_LBQhw.shape[-2:]).flatten(1)[:, None]
        num_pixels = counted_B1X.sum(-1, keepdim=True).clamp(min=1)
        targets_BXN = targets_BXN * counted_B1X.transpose(1, 2)
        positive *= counted_B1X
        probability *= counted_B1X
    dice_numerator = 2 * (probability @ targets_BXN) + 1
    dice_denominator = probability.sum(-1, keepdim=True) + targets_BXN.sum(1, keepdim=True) + 1
    negative = probability.square_().mul_(negative_entropy).mul_(1 - FOCAL_ALPHA)
    negative_sum = negative.sum(-1, keepdim=True)
    focal_cost = (positive.sub_(negative) @ targets_BXN + negative_sum) / num_pixels
    mask_cost = mask_weight * focal_cost + dice_weight * (1 - dice_numerator / dice_denominator)
    return class_weight * class_cost + mask_cost.unflatten(1, (num_layers, num_queries)).transpose(0, 1)


def _nearest(masks_NHW: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """`F.interpolate(mode="nearest")` without a float copy of the masks at their full size."""
    rows, columns = (
        (torch.arange(out, device=masks_NHW.device) * (in_ / out)).long().clamp_(max=in_ - 1)
        for out, in_ in zip(size, masks_NHW.shape[-2:], strict=True)
    )
    return masks_NHW[:, rows[:, None], columns].float()


def match(costs_LBQN: torch.Tensor, num_targets: Sequence[int]) -> list[list[tuple[np.ndarray, np.ndarray]]]:
    """Solve the assignment of every layer and image.

    Returns, for each layer and image, matched query and target indices, queries ascending. With more targets than
    queries the costliest targets stay unmatched, as in the original.

    Raises:
        NotFiniteError: If a cost is not finite, with the layer and the image where the first one was.
    """
    if linear_sum_assignment is None:
        raise ImportError("Training needs scipy for the matching of queries and targets: pip install scipy")
    costs = costs_LBQN.cpu().numpy()  # the only copy to the host of a step
    matches = []
    for layer, layer_costs in enumerate(costs):
        matches.append([])
        for image, (cost_QN, count) in enumerate(zip(layer_costs, num_targets, strict=True)):
            # All columns: an image without targets may have NaNs as well.
            if not np.isfinite(cost_QN).all():
                raise NotFiniteError(
                    f"The predictions of decoder layer {layer} for image {image} of the batch are not finite (NaN or "
                    "infinity). Look for them in `pixel_values` and in the weights; if training diverged, lower the "
                    "learning rate or clip gradients."
                )
            matches[-1].append(linear_sum_assignment(cost_QN[:, :count]))
    return matches
