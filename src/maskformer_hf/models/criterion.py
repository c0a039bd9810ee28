"""The family's loss: cross-entropy of the classes, focal loss or cross-entropy and dice loss of the matched masks.

On all pixels as in MaskFormer (https://arxiv.org/abs/2107.06278), or on points as in Mask2Former
(https://arxiv.org/abs/2112.01527) and, with T frames, in Mask2Former-VIS (https://arxiv.org/abs/2112.10764).
"""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import distributed as dist
from torch import nn
from torch.nn import functional as F

from .matcher import FOCAL_ALPHA, match, matching_costs
from .point_sampling import sample_points, uncertain_points, uniform_points

logger = logging.getLogger(__name__)


class Criterion(nn.Module):
    """Match, then sum the loss over all supervised decoder layers. Everything runs in float32, autocast or not."""

    def __init__(
        self,
        num_labels: int,
        class_weight: float,
        mask_weight: float,
        dice_weight: float,
        no_object_weight: float,
        mask_loss: str,
        num_points: int,
        oversample_ratio: float,
        importance_sample_ratio: float,
        mask_term: str = "focal",
        matching: str = "dense",
    ):
        super().__init__()
        self.num_labels = num_labels
        self.weights = {"loss_ce": class_weight, "loss_mask": mask_weight, "loss_dice": dice_weight}
        self.no_object_weight = no_object_weight
        self.mask_loss = mask_loss
        self.mask_term = mask_term
        self.matching = matching
        self.num_points = num_points
        self.oversample_ratio = oversample_ratio
        self.importance_sample_ratio = importance_sample_ratio
        self.warned_of_too_few_queries = False

    def forward(
        self,
        class_logits_LBQK: torch.Tensor,
        mask_logits_LBQhw: torch.Tensor,
        mask_labels: Sequence[torch.Tensor],
        class_labels: Sequence[torch.Tensor],
        void_masks: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the weighted sum of all terms, and each term unweighted under the original's names.

        The masks of a clip have a dimension T of frames in front of h and w, or H and W. Each frame of a target is a
        mask of the loss, but what they are summed to is divided by the number of targets, as in the original.

        Args:
            class_logits_LBQK: Class logits (L, B, Q, K+1); the last of the L layers is the result.
            mask_logits_LBQhw: Mask logits (L, B, Q, h, w).
            mask_labels: Binary masks (N_i, H, W) of each image, padded with zeros to the size of the batch.
            class_labels: Classes (N_i,) of each image, int64.
            void_masks: (B, H, W) bool, true at pixels that neither the matching nor the mask losses look at. Without
                it void is background of every mask, as in the original.
        """
        device = class_logits_LBQK.device
        mask_labels, class_labels = check_targets(
            [masks.to(device) for masks in mask_labels],
            [labels.to(device) for labels in class_labels],
            len(class_logits_LBQK[0]),
            self.num_labels,
        )
        # A loss that is evaluated must not change from run to run.
        generator = None if self.training else torch.Generator(device).manual_seed(0)
        with torch.autocast(device.type, enabled=False):
            class_logits_LBQK, mask_logits_LBQhw = class_logits_LBQK.float(), mask_logits_LBQhw.float()
            counted_BHW = None if void_masks is None else ~void_masks.to(device).bool()
            matches = self._match(
                class_logits_LBQK, mask_logits_LBQhw, mask_labels, class_labels, counted_BHW, generator
            )
            num_masks, class_weight_sum = self._normalizers(class_labels, class_logits_LBQK)
            # One stack of all images' targets serves every layer: predictions are put in its order, not it in theirs.
            masks_NHW, labels_N = torch.cat(list(mask_labels)), torch.cat(list(class_labels))
            offsets = np.cumsum([0, *map(len, class_labels)])
            losses = {}
            num_layers = len(class_logits_LBQK)
            # unbind and not indexing: its backward writes one gradient for all layers in place of one each.
            mask_logits_BQhw = mask_logits_LBQhw.unbind(0)
            for layer in [num_layers - 1, *range(num_layers - 1)]:
                suffix = "" if layer == num_layers - 1 else f"_{layer}"
                image_M, query_M, target_M = _in_target_order(matches[layer], offsets, device)
                class_loss = self._class_loss(class_logits_LBQK[layer], image_M, query_M, labels_N[target_M])
                losses[f"loss_ce{suffix}"] = class_loss / class_weight_sum
                matched_Mhw = mask_logits_BQhw[layer][image_M, query_M]
                # All targets are matched unless there are more of them than queries: then no copy is needed.
                targets_MHW = masks_NHW if len(target_M) == len(masks_NHW) else masks_NHW[target_M]
                counted_MHW = None if counted_BHW is None else counted_BHW[image_M]
                mask_loss, dice = self._mask_losses(
                    _frames(matched_Mhw), _frames(targets_MHW), _frames(counted_MHW), generator
                )
                losses[f"loss_mask{suffix}"] = mask_loss / num_masks
                losses[f"loss_dice{suffix}"] = dice / num_masks
            total = torch.stack([self.weights[_term(name)] * loss for name, loss in losses.items()]).sum()
        return total, losses

    def _match(self, class_logits_LBQK, mask_logits_LBQhw, mask_labels, class_labels, counted_BHW, generator):
        num_targets = [len(labels) for labels in class_labels]
        num_layers, num_images, num_queries = class_logits_LBQK.shape[:3]
        if max(num_targets) > num_queries and not self.warned_of_too_few_queries:
            logger.warning(
                "An image has %d targets but the model only %d queries: the rest is left unmatched. Raise "
                "`num_queries` if that is not meant (said once).",
                max(num_targets),
                num_queries,
            )
            self.warned_of_too_few_queries = True
        points_LBP2 = None
        if self.matching == "points":
            points_LBP2 = uniform_points(
                num_layers, num_images, self.num_points, device=class_logits_LBQK.device, generator=generator
            )
        costs = matching_costs(
            class_logits_LBQK,
            mask_logits_LBQhw,
            mask_labels,
            class_labels,
            self.weights["loss_ce"],
            self.weights["loss_mask"],
            self.weights["loss_dice"],
            counted_BHW,
            self.mask_term,
            points_LBP2,
        )
        return match(costs, num_targets)

    def _class_loss(self, logits_BQK, image_M, query_M, labels_M):
        """Weighted cross-entropy of all queries' classes, summed."""
        target_BQ = torch.full(logits_BQK.shape[:2], self.num_labels, device=logits_BQK.device)
        target_BQ[image_M, query_M] = labels_M
        weight = torch.ones(self.num_labels + 1, device=logits_BQK.device)
        weight[-1] = self.no_object_weight
        return F.cross_entropy(logits_BQK.transpose(1, 2), target_BQ, weight, reduction="sum")

    def _mask_losses(
        self,
        logits_Mhw: torch.Tensor,
        targets_MHW: torch.Tensor,
        counted_MHW: torch.Tensor | None,
        generator: torch.Generator | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Focal loss or cross-entropy, and dice loss, summed over masks."""
        if len(logits_Mhw) == 0:
            nothing = logits_Mhw.sum()  # zero, but part of the graph: every parameter has a gradient in every step
            return nothing, nothing
        mask_loss = focal_loss if self.mask_term == "focal" else cross_entropy_loss
        if self.mask_loss == "dense":
            logits = F.interpolate(logits_Mhw[:, None], size=targets_MHW.shape[-2:], mode="bilinear")[:, 0].flatten(1)
            targets = targets_MHW.flatten(1)
            counted = None if counted_MHW is None else counted_MHW.flatten(1)
            return mask_loss(logits, targets, counted), dice_loss(logits, targets, counted)
        points = uncertain_points(
            logits_Mhw, self.num_points, self.oversample_ratio, self.importance_sample_ratio, generator
        )
        logits, targets = sample_points(logits_Mhw, points), sample_points(targets_MHW, points)
        # A point counts as far as its surroundings do.
        counted = None if counted_MHW is None else sample_points(counted_MHW, points)
        return mask_loss(logits, targets, counted), dice_loss(logits, targets, counted)

    def _normalizers(self, class_labels: Sequence[torch.Tensor], class_logits_LBQK: torch.Tensor) -> torch.Tensor:
        """What mask losses and class loss are divided by: the number of targets (at least 1) and the sum of the class
        weights of all queries, which is the same in every layer. Targets beyond the number of queries count as well.

        Both are averages over processes: with DDP's averaging of gradients, the loss of many processes is the loss of
        one with the joined batch. The original averages the first and divides its class loss within each process.
        """
        num_queries = class_logits_LBQK.shape[2]
        num_targets = sum(len(labels) for labels in class_labels)
        num_matched = sum(min(len(labels), num_queries) for labels in class_labels)
        num_unmatched = len(class_labels) * num_queries - num_matched
        sums = torch.tensor(
            [num_targets, num_matched + self.no_object_weight * num_unmatched],
            dtype=torch.float32,
            device=class_logits_LBQK.device,
        )
        average_over_processes(sums)
        return torch.stack((sums[0].clamp(min=1), sums[1]))


def check_targets(
    mask_labels: Sequence[torch.Tensor], class_labels: Sequence[torch.Tensor], batch_size: int, num_labels: int
) -> tuple[list[torch.Tensor], Sequence[torch.Tensor]]:
    """The targets of a batch with boolean masks; a ValueError that names the image and the value if they are none."""
    if not len(mask_labels) == len(class_labels) == batch_size:
        raise ValueError(
            f"`mask_labels` and `class_labels` need one entry for each of the {batch_size} images, got "
            f"{len(mask_labels)} and {len(class_labels)}."
        )
    for image, (masks, labels) in enumerate(zip(mask_labels, class_labels, strict=True)):
        if len(masks) != len(labels):
            raise ValueError(f"Image {image} of the batch has {len(masks)} masks but {len(labels)} class labels.")
        if masks.shape[-2:] != mask_labels[0].shape[-2:]:
            raise ValueError(
                f"Masks of image {image} have size {tuple(masks.shape[-2:])}, those of image 0 "
                f"{tuple(mask_labels[0].shape[-2:])}: pad all masks of a batch with zeros to the size of the batch."
            )
    joined = torch.cat([labels.flatten() for labels in class_labels])
    if len(joined) and not bool(((joined >= 0) & (joined < num_labels)).all()):
        image, label = next(
            (image, int(label))
            for image, labels in enumerate(class_labels)
            for label in labels
            if not 0 <= label < num_labels
        )
        raise ValueError(
            f"Image {image} of the batch has class label {label}, but the model knows 0 to {num_labels - 1}: "
            "map the labels, or name the void ones by `ignore_index`. No-object is no label."
        )
    return [_as_bool(masks, image) for image, masks in enumerate(mask_labels)], class_labels


def average_over_processes(sums: torch.Tensor):
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(sums)
        sums /= dist.get_world_size()


def _as_bool(masks: torch.Tensor, image: int) -> torch.Tensor:
    if masks.dtype == torch.bool:
        return masks
    odd = (masks != 0) & (masks != 1)
    if bool(odd.any()):
        raise ValueError(
            f"Masks of image {image} of the batch hold the value {masks[odd][0].item()}: masks are 0 and 1, also in "
            "the padding. A mask is no label map."
        )
    return masks.bool()


def _in_target_order(matches, offsets, device: torch.device) -> torch.Tensor:
    """Image, query and target of each match, (3, M), targets counted over the whole batch and ascending."""
    image = np.concatenate([np.full(len(query), i) for i, (query, _) in enumerate(matches)])
    query = np.concatenate([query for query, _ in matches])
    target = np.concatenate([target + offset for (_, target), offset in zip(matches, offsets[:-1], strict=True)])
    order = np.argsort(target)
    return torch.from_numpy(np.stack((image, query, target))[:, order].astype(np.int64)).to(device)


def _frames(masks_MHW: Any) -> Any:
    """Masks (M, T, H, W) of clips as masks (M * T, H, W) of images; what is of images already is left as it is."""
    return masks_MHW.flatten(0, 1) if masks_MHW is not None and masks_MHW.dim() == 4 else masks_MHW


def _term(name: str) -> str:
    return "_".join(name.split("_")[:2])


def focal_loss(
    logits_NX: torch.Tensor, targets_NX: torch.Tensor, counted_NX: torch.Tensor | None = None
) -> torch.Tensor:
    """Sigmoid focal loss (alpha 0.25, gamma 2), averaged over the pixels of a mask and summed over masks.

    `targets_NX` is boolean, or holds values in [0, 1]; `counted_NX` likewise, and is the weight of each pixel.
    """
    if targets_NX.dtype == torch.bool:
        # Turned so that every pixel is a positive one: fewer passes over the pixels than with two kinds.
        margin = torch.where(targets_NX, logits_NX, -logits_NX)
        alpha = torch.where(targets_NX, FOCAL_ALPHA, 1 - FOCAL_ALPHA)
        loss_NX = alpha * torch.sigmoid(-margin).square() * F.softplus(-margin)
    else:
        probability = logits_NX.sigmoid()
        entropy = F.binary_cross_entropy_with_logits(logits_NX, targets_NX, reduction="none")
        miss = probability * (1 - targets_NX) + (1 - probability) * targets_NX
        alpha = FOCAL_ALPHA * targets_NX + (1 - FOCAL_ALPHA) * (1 - targets_NX)
        loss_NX = alpha * miss.square() * entropy
    return _mean_over_pixels(loss_NX, counted_NX)


def cross_entropy_loss(
    logits_NX: torch.Tensor, targets_NX: torch.Tensor, counted_NX: torch.Tensor | None = None
) -> torch.Tensor:
    """Binary cross-entropy, averaged over the pixels of a mask and summed over masks; arguments of `focal_loss`."""
    loss_NX = F.binary_cross_entropy_with_logits(logits_NX, targets_NX.to(logits_NX.dtype), reduction="none")
    return _mean_over_pixels(loss_NX, counted_NX)


def _mean_over_pixels(loss_NX: torch.Tensor, counted_NX: torch.Tensor | None) -> torch.Tensor:
    if counted_NX is None:
        return loss_NX.mean(1).sum()
    return ((loss_NX * counted_NX).sum(1) / counted_NX.sum(1).clamp(min=1)).sum()


def dice_loss(
    logits_NX: torch.Tensor, targets_NX: torch.Tensor, counted_NX: torch.Tensor | None = None
) -> torch.Tensor:
    """One minus the dice coefficient, 1 added above and below the line, summed over masks."""
    probability = logits_NX.sigmoid()
    if counted_NX is not None:
        probability, targets_NX = probability * counted_NX, targets_NX * counted_NX
    numerator = 2 * (probability * targets_NX).sum(1)
    denominator = probability.sum(1) + targets_NX.sum(1)
    return (1 - (numerator + 1) / (denominator + 1)).sum()
