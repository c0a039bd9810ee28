"""Bipartite matching of queries and targets (https://arxiv.org/abs/2107.06278, section 3.1), on dense masks or on
points of them (https://arxiv.org/abs/2112.01527, section 3.3)."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F

from .point_sampling import sample_points

try:
    from scipy.optimize import linear_sum_assignment
except ImportError:  # inference needs no scipy
    linear_sum_assignment = None

# Of the focal loss, whose gamma of 2 stands as a square wherever it is used.
FOCAL_ALPHA = 0.25
# Values of masks that are worked on at a time: few enough for the cache of a CPU, many enough for a GPU.
CHUNK = (2**18, 2**24)


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
    mask_term: str = "focal",
    points_LBP2: torch.Tensor | None = None,
) -> torch.Tensor:
    """Cost of giving each target to each query, for all layers and images: (L, B, Q, N), float32.

    N is the largest number of targets of an image, at least 1; columns beyond an image's own targets mean nothing. A
    cost of an image whose predictions are not finite is not finite either, whether it has targets or not.

    Clips are images with a dimension T of frames in front of h and w, or H and W: the cost of a mask is then that of
    all its frames together.

    Args:
        mask_labels: Binary masks (N_i, H, W) of each image, all padded to one size.
        class_labels: Classes (N_i,) of each image.
        counted_BHW: False at void pixels, which take no part in the costs of masks.
        mask_term: `"focal"` or `"cross_entropy"`.
        points_LBP2: Compare masks at these points, x and y in [0, 1], which all masks and frames of an image share.
            Without them, targets are reduced to the size of the predictions, by taking the nearest pixel.
    """
    num_layers, num_images, num_queries = class_logits_LBQK.shape[:3]
    num_columns = max(1, *map(len, class_labels))
    costs_LBQN = class_logits_LBQK.new_zeros((num_layers, num_images, num_queries, num_columns), dtype=torch.float32)
    size = mask_logits_LBQhw.shape[-2:]
    num_values = points_LBP2.shape[2] if points_LBP2 is not None else math.prod(size)
    num_values *= math.prod(mask_logits_LBQhw.shape[3:-2])
    chunk = max(1, CHUNK[mask_logits_LBQhw.device.type != "cpu"] // num_values)
    for image, (masks, labels) in enumerate(zip(mask_labels, class_labels, strict=True)):
        if not len(labels):
            masks, labels = masks.new_zeros((1, *masks.shape[1:])), labels.new_zeros(1)
        own_LQN = costs_LBQN[:, image, :, : len(labels)]
        own_LQN -= class_weight * class_logits_LBQK[:, image].float().softmax(-1)[..., labels]
        counted = None if counted_BHW is None else counted_BHW[image]
        targets_NX, counted_X = None, None
        for layer in range(num_layers):
            points = None if points_LBP2 is None else points_LBP2[layer, image]
            if targets_NX is None or points is not None:  # without points they are the same in every layer
                targets_NX = _values(masks, size, points)
                counted_X = None if counted is None else _values(counted[None], size, points)[0]
            for start in range(0, num_queries, chunk):
                queries = slice(start, start + chunk)
                logits_QX = _values(mask_logits_LBQhw[layer, image, queries], size, points)
                mask_cost, dice_cost = _mask_costs(logits_QX, targets_NX, counted_X, mask_term)
                own_LQN[layer, queries] += mask_weight * mask_cost + dice_weight * dice_cost
    return costs_LBQN


def softplus(
    x: torch.Tensor, probability: torch.Tensor, out: torch.Tensor | None = None, scratch: torch.Tensor | None = None
) -> torch.Tensor:
    """log(1 + exp(x)), exact to 6e-8 absolute or relative, whichever is more; not for gradients.

    Where `probability`, the sigmoid of x, is known, a CPU needs neither `exp` nor `log1p`, which is slow on many: it
    takes max(x, 0) - log(max(p, 1 - p)), in the memory of `out`, which may be x, and of `scratch`.
    """
    if x.device.type != "cpu":
        return F.softplus(x)
    scratch = torch.sub(torch.ones((), dtype=x.dtype), probability, out=scratch)
    torch.maximum(scratch, probability, out=scratch).log_()
    return torch.clamp(x, min=0, out=out).sub_(scratch)


def _mask_costs(
    logits_QX: torch.Tensor, targets_NX: torch.Tensor, counted_X: torch.Tensor | None, mask_term: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Focal or cross-entropy cost, and dice cost, (Q, N) each. Targets and what counts may be fractions."""
    targets_XN = targets_NX.T
    probability = logits_QX.sigmoid()
    # softplus(x) is the cross-entropy of a negative pixel, softplus(x) - x that of a positive one. Passes over these
    # maps are what matching costs, so both kinds of pixel share one matrix product.
    negative = softplus(logits_QX, probability)
    if mask_term == "focal":
        complement = 1 - probability
        positive = (negative - logits_QX).mul_(complement).mul_(complement)
        negative.mul_(probability).mul_(probability)
        positive_weight, negative_weight = FOCAL_ALPHA, 1 - FOCAL_ALPHA
        positive.sub_(negative, alpha=negative_weight / positive_weight)
    else:
        positive = -logits_QX
        positive_weight = negative_weight = 1.0
    num_pixels: float | torch.Tensor = logits_QX.shape[1]
    if counted_X is not None:
        num_pixels = counted_X.sum().clamp(min=1)
        targets_XN = targets_XN * counted_X[:, None]
        negative *= counted_X
        probability *= counted_X
    mask_cost = negative_weight * negative.sum(1, keepdim=True) + positive_weight * (positive @ targets_XN)
    numerator = 2 * (probability @ targets_XN) + 1
    denominator = probability.sum(1, keepdim=True) + targets_XN.sum(0) + 1
    return mask_cost / num_pixels, 1 - numerator / denominator


def _values(masks_NHW: torch.Tensor, size: Sequence[int], points_P2: torch.Tensor | None) -> torch.Tensor:
    """What of masks (N, H, W) or (N, T, H, W) is compared, (N, X), float32."""
    if points_P2 is not None:
        return sample_points(masks_NHW[None], points_P2[None])[0].flatten(1)
    return (masks_NHW.float() if masks_NHW.is_floating_point() else nearest(masks_NHW, size)).flatten(1)


def nearest(masks_NHW: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """`F.interpolate(mode="nearest")` without a float copy of the masks at their full size."""
    rows, columns = (
        (torch.arange(out, device=masks_NHW.device) * (in_ / out)).long().clamp_(max=in_ - 1)
        for out, in_ in zip(size, masks_NHW.shape[-2:], strict=True)
    )
    return masks_NHW[..., rows[:, None], columns].float()


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
