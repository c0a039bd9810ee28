"""Bipartite matching of queries and targets (https://arxiv.org/abs/2107.06278, section 3.1), on dense masks or on
points of them (https://arxiv.org/abs/2112.01527, section 3.3)."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F

from .point_sampling import sample_embeddings, sample_points

try:
    from scipy.optimize import linear_sum_assignment
except ImportError:  # inference needs no scipy
    linear_sum_assignment = None

# Of the focal loss, whose gamma of 2 stands as a square wherever it is used.
FOCAL_ALPHA = 0.25
# Values of masks that are worked on at a time: few enough for the cache of a CPU, many enough for a GPU.
CHUNK = (2**18, 2**23)
# Products of matrices with 13 columns take a CPU a tenth longer than with 16.
COLUMNS = 16


class NotFiniteError(ValueError, FloatingPointError):
    """Predictions are NaN or infinite: a wrong input for who calls once, a diverged run for who trains."""


@torch.no_grad()
def matching_costs(
    class_logits_LBQK: torch.Tensor,
    mask_embeddings_LBQC: torch.Tensor,
    pixel_embeddings_BChw: torch.Tensor,
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

    Mask logits, the products of the embeddings, are made for some pixels at a time and not kept.

    Clips are images with a dimension T of frames, pixel embeddings (B, T, C, h, w) and masks (N_i, T, H, W): the cost
    of a mask is then that of all its frames together.

    Args:
        mask_embeddings_LBQC: (L, B, Q, C).
        pixel_embeddings_BChw: (B, C, h, w).
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
    size = pixel_embeddings_BChw.shape[-2:]
    # Without points all layers look at the same pixels: at once, as if their queries were those of one layer.
    layers_at_once = num_layers if points_LBP2 is None else 1
    num_rows = layers_at_once * num_queries
    num_pixels = math.prod(size) if points_LBP2 is None else points_LBP2.shape[2]
    num_pixels *= math.prod(pixel_embeddings_BChw.shape[1:-3])
    chunk = CHUNK[costs_LBQN.device.type != "cpu"]
    workspace = costs_LBQN.new_empty(5, num_rows * min(num_pixels, max(1, chunk // num_rows)))
    for image, (masks, labels) in enumerate(zip(mask_labels, class_labels, strict=True)):
        if not len(labels):
            masks, labels = masks.new_zeros((1, *masks.shape[1:])), labels.new_zeros(1)
        own_LQN = costs_LBQN[:, image, :, : len(labels)]
        own_LQN -= class_weight * class_logits_LBQK[:, image].float().softmax(-1)[..., labels]
        pixels_TChw = pixel_embeddings_BChw[image].reshape(-1, *pixel_embeddings_BChw.shape[-3:])
        if points_LBP2 is None:
            pixels = pixels_TChw.transpose(0, 1).flatten(1)
        else:
            pixels = pixels_TChw.float().contiguous(memory_format=torch.channels_last)
        for start in range(0, num_layers, layers_at_once):
            layers = slice(start, start + layers_at_once)
            points_P2 = None if points_LBP2 is None else points_LBP2[start, image]
            targets_NX = _values(masks, size, points_P2)
            counted_X = None if counted_BHW is None else _values(counted_BHW[image, None], size, points_P2)[0]
            # Sampling and products are both linear: which comes first is the same.
            pixels_CX = pixels if points_P2 is None else sample_embeddings(pixels, points_P2).T
            embeddings_RC = mask_embeddings_LBQC[layers, image].flatten(0, 1)
            mask_cost_RN, dice_cost_RN = _mask_costs(
                embeddings_RC.float(), pixels_CX, targets_NX, counted_X, mask_term, workspace
            )
            own_LQN[layers] += (mask_weight * mask_cost_RN + dice_weight * dice_cost_RN).unflatten(0, (-1, num_queries))
    return costs_LBQN


def log_sigmoid(
    x: torch.Tensor, probability: torch.Tensor, bounded: bool, out: torch.Tensor | None = None
) -> torch.Tensor:
    """log(p) where p, the sigmoid of x, is known: exact to 6e-8 absolute or relative, whichever is more.

    Without bounds as PyTorch has it, which takes a CPU many times as long. Not for gradients; `out` may be x.
    """
    if bounded:
        return torch.log(probability, out=out)
    result = F.logsigmoid(x)
    return result if out is None else out.copy_(result)


def is_bounded(x: torch.Tensor) -> bool:
    """Whether no sigmoid of x is too small for its logarithm. False where the answer would have to be waited for."""
    return x.device.type == "cpu" and bool(x.amin() > -80)


def _mask_costs(
    embeddings_RC: torch.Tensor,
    pixels_CX: torch.Tensor,
    targets_NX: torch.Tensor,
    counted_X: torch.Tensor | None,
    mask_term: str,
    workspace: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Focal or cross-entropy cost, and dice cost, (R, N) each, of R queries, whatever their layers.

    Targets and what counts may be fractions. `workspace` has five values for each query and each of some pixels.
    """
    num_targets, num_pixels = targets_NX.shape
    # Sums over the pixels of each target, and over all pixels in one more column. Further ones are there for speed.
    ones = num_targets
    weights_XN = targets_NX.new_zeros(num_pixels, (num_targets + COLUMNS) // COLUMNS * COLUMNS)
    weights_XN[:, :ones], weights_XN[:, ones] = targets_NX.T, 1
    if counted_X is not None:
        weights_XN *= counted_X[:, None]
    sums_KRN = weights_XN.new_zeros(3, len(embeddings_RC), weights_XN.shape[1])
    step = workspace.shape[1] // len(embeddings_RC)
    negative_RC, one = -embeddings_RC, torch.ones((), device=embeddings_RC.device)
    for start in range(0, num_pixels, step):
        pixels = slice(start, min(start + step, num_pixels))
        size = len(embeddings_RC), pixels.stop - start
        memory = workspace.flatten()[: 5 * math.prod(size)].view(5, *size)
        positive, negative, probability, complement, logits = memory
        # Of the logits' negatives, the sigmoid is what each probability lacks of 1, without cancellation.
        torch.mm(negative_RC, pixels_CX[:, pixels].float(), out=logits)
        torch.sigmoid(logits, out=complement)
        torch.sub(one, complement, out=probability)
        # What a pixel gains that should be none of the mask, log(1 - p), and one that should be, log(p).
        log_sigmoid(logits, complement, is_bounded(logits), out=negative)
        torch.sub(negative, logits, out=positive)
        if mask_term == "focal":
            positive.mul_(complement).mul_(complement)
            negative.mul_(probability).mul_(probability)
        sums_KRN.flatten(0, 1).addmm_(memory[:3].flatten(0, 1), weights_XN[pixels])
    log_positive, log_negative, probability = sums_KRN
    positive, negative = -log_positive, -log_negative
    target_sum_N, num_counted = weights_XN[:, :ones].sum(0), weights_XN[:, ones].sum().clamp(min=1)
    positive_weight, negative_weight = (FOCAL_ALPHA, 1 - FOCAL_ALPHA) if mask_term == "focal" else (1.0, 1.0)
    inside, everywhere = slice(0, ones), slice(ones, ones + 1)
    outside = negative[:, everywhere] - negative[:, inside]
    mask_cost = positive_weight * positive[:, inside] + negative_weight * outside
    numerator = 2 * probability[:, inside] + 1
    denominator = probability[:, everywhere] + target_sum_N + 1
    return mask_cost / num_counted, 1 - numerator / denominator


def _values(masks_NHW: torch.Tensor, size: Sequence[int], points_P2: torch.Tensor | None) -> torch.Tensor:
    """What of masks (N, H, W) or (N, T, H, W) is compared, (N, X), float32."""
    if points_P2 is not None:
        return sample_points(masks_NHW[None], points_P2[None])[0].flatten(1)
    return nearest(masks_NHW, size).flatten(1)


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
