"""Bipartite matching of queries and targets (https://arxiv.org/abs/2107.06278, section 3.1), on dense masks or on
points of them (https://arxiv.org/abs/2112.01527, section 3.3)."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from .at_once import AtOnce
from .log_sigmoid import is_bounded, log_sigmoid
from .loss_terms import FOCAL_ALPHA
from .masks import Masks, MaskValues
from .point_sampling import sample_points
from .resize import resize_nearest
from .targets import Targets

try:
    from scipy.optimize import linear_sum_assignment
except ImportError:  # inference needs no scipy
    linear_sum_assignment = None

# Values of masks that are worked on at a time.
VALUES_AT_ONCE = AtOnce(cpu=2**18, other=2**23)
# Products of matrices with 13 columns take a CPU a tenth longer than with 16.
COLUMNS_MULTIPLE = 16


class NotFiniteError(ValueError, FloatingPointError):
    """Predictions are NaN or infinite: a wrong input for who calls once, a diverged run for who trains."""


class CostWeights(NamedTuple):
    """Weights of the terms of a matching cost. `mask_term` is `"focal"` or `"cross_entropy"`.

    iou_exponent: The class term is multiplied by this power of the IoU of the masks, with probabilities in place of
        pixels; 0 leaves it alone.
    """

    class_weight: float
    mask_weight: float
    dice_weight: float
    mask_term: str = "focal"
    iou_exponent: float = 0.0


@torch.no_grad()
def matching_costs(
    class_logits_LBQK: torch.Tensor,
    masks: Masks,
    targets: Targets,
    weights: CostWeights,
    points_LBP2: torch.Tensor | None = None,
) -> torch.Tensor:
    """Cost of giving each target to each query, for all layers and images: (L, B, Q, N), float32.

    N is the largest number of targets of an image, at least 1; columns beyond an image's own targets mean nothing. A
    cost of an image whose predictions are not finite is not finite either, whether it has targets or not. The cost of
    the mask of a clip is that of all its frames together. Pixels that are void take no part in it.

    Mask logits are made for some pixels at a time and not kept.

    Args:
        points_LBP2: Compare masks at these points, x and y in [0, 1], which all masks and frames of an image share.
            Without them, targets are reduced to the size of the predictions, by taking the nearest pixel.
    """
    num_layers, num_images, num_queries = class_logits_LBQK.shape[:3]
    num_columns = max(1, *targets.counts)
    costs_LBQN = class_logits_LBQK.new_zeros((num_layers, num_images, num_queries, num_columns), dtype=torch.float32)
    workspace = _workspace(masks, points_LBP2, costs_LBQN)
    for image, (target_masks, labels) in enumerate(zip(targets.masks, targets.labels, strict=True)):
        if not len(labels):
            target_masks, labels = target_masks.new_zeros((1, *target_masks.shape[1:])), labels.new_zeros(1)
        own_LQN = costs_LBQN[:, image, :, : len(labels)]
        class_LQN = weights.class_weight * class_logits_LBQK[:, image].float().softmax(-1)[..., labels]
        if not weights.iou_exponent:
            own_LQN -= class_LQN
        points_LP2 = None if points_LBP2 is None else points_LBP2[:, image]
        for values in masks.values(image, points_LP2):
            points_P2 = None if points_LP2 is None else points_LP2[values.layers][0]
            targets_NX = _values_of(target_masks, masks.shape[-2:], points_P2)
            valid_X = None
            if targets.void is not None:
                valid_X = _values_of(~targets.void[image, None], masks.shape[-2:], points_P2)[0]
            mask_cost_RN, dice_cost_RN, iou_RN = _mask_costs(values, targets_NX, valid_X, weights.mask_term, workspace)
            cost_RN = weights.mask_weight * mask_cost_RN + weights.dice_weight * dice_cost_RN
            if weights.iou_exponent:
                cost_RN = cost_RN - class_LQN[values.layers].flatten(0, 1) * iou_RN**weights.iou_exponent
            own_LQN[values.layers] += cost_RN.unflatten(0, (-1, num_queries))
    return costs_LBQN


def _workspace(masks: Masks, points_LBP2: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
    """Room for five values of each row of logits at each of some pixels."""
    num_layers, _, num_queries = masks.shape[:3]
    num_frames = math.prod(masks.shape[3:-2])
    if points_LBP2 is None:
        num_rows, num_values = num_layers * num_queries, num_frames * math.prod(masks.shape[-2:])
    else:
        num_rows, num_values = num_queries, num_frames * points_LBP2.shape[2]
    return like.new_empty(5, num_rows * min(num_values, max(1, VALUES_AT_ONCE.on(like.device) // num_rows)))


def _mask_costs(
    values: MaskValues,
    targets_NX: torch.Tensor,
    valid_X: torch.Tensor | None,
    mask_term: str,
    workspace: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Focal or cross-entropy cost, dice cost and soft IoU, (R, N) each, of R rows of logits. Targets and what counts
    may be fractions."""
    num_targets, num_pixels = targets_NX.shape
    # Sums over the pixels of each target, and over all pixels in one more column. Further ones are there for speed.
    ones = num_targets
    weights_XN = targets_NX.new_zeros(
        num_pixels, (num_targets + COLUMNS_MULTIPLE) // COLUMNS_MULTIPLE * COLUMNS_MULTIPLE
    )
    weights_XN[:, :ones], weights_XN[:, ones] = targets_NX.T, 1
    if valid_X is not None:
        weights_XN *= valid_X[:, None]
    log_positive, log_negative, probability = _weighted_sums(values, weights_XN, mask_term, workspace)
    positive, negative = -log_positive, -log_negative
    target_sum_N, num_counted = weights_XN[:, :ones].sum(0), weights_XN[:, ones].sum().clamp(min=1)
    positive_weight, negative_weight = (FOCAL_ALPHA, 1 - FOCAL_ALPHA) if mask_term == "focal" else (1.0, 1.0)
    inside, everywhere = slice(0, ones), slice(ones, ones + 1)
    outside = negative[:, everywhere] - negative[:, inside]
    mask_cost = positive_weight * positive[:, inside] + negative_weight * outside
    numerator = 2 * probability[:, inside] + 1
    denominator = probability[:, everywhere] + target_sum_N + 1
    overlap = probability[:, inside]
    iou = overlap / (denominator - 1 - overlap).clamp(min=1e-6)
    return mask_cost / num_counted, 1 - numerator / denominator, iou


def _weighted_sums(
    values: MaskValues, weights_XN: torch.Tensor, mask_term: str, workspace: torch.Tensor
) -> torch.Tensor:
    """Sums over pixels, (3, R, N): of what each logit gains where it should be positive, where it should be negative,
    and of its probability."""
    num_pixels, num_rows = values.num_values, values.num_rows
    sums_KRN = weights_XN.new_zeros(3, num_rows, weights_XN.shape[1])
    step = workspace.shape[1] // num_rows
    one = torch.ones((), device=weights_XN.device)
    for start in range(0, num_pixels, step):
        pixels = slice(start, min(start + step, num_pixels))
        size = num_rows, pixels.stop - start
        memory = workspace.flatten()[: 5 * math.prod(size)].view(5, *size)
        positive, negative, probability, complement, logits = memory
        values.read_negated(pixels, logits)
        torch.sigmoid(logits, out=complement)
        torch.sub(one, complement, out=probability)
        # What a pixel gains that should be none of the mask, log(1 - p), and one that should be, log(p).
        log_sigmoid(logits, complement, is_bounded(logits), out=negative)
        torch.sub(negative, logits, out=positive)
        if mask_term == "focal":
            positive.mul_(complement).mul_(complement)
            negative.mul_(probability).mul_(probability)
        sums_KRN.flatten(0, 1).addmm_(memory[:3].flatten(0, 1), weights_XN[pixels])
    return sums_KRN


def _values_of(masks_NHW: torch.Tensor, size: Sequence[int], points_P2: torch.Tensor | None) -> torch.Tensor:
    """What is compared of masks (N, H, W) or (N, T, H, W): (N, X), float32."""
    if points_P2 is not None:
        return sample_points(masks_NHW[None], points_P2[None])[0].flatten(1)
    return resize_nearest(masks_NHW, size).float().flatten(1)


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
