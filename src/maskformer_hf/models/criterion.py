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

from .layers import mask_logits
from .mask_losses import cross_entropy_loss, dense_losses, dice_loss, focal_loss
from .matcher import match, matching_costs, nearest
from .point_sampling import sample_points, uncertain_points, uniform_points

logger = logging.getLogger(__name__)

# Of a query whose class is not supervised; any value that is no class.
NO_TARGET = -100


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

    # Compiled, a model breaks its graph here: the matching of a step is no computation of a device.
    @torch.compiler.disable
    def forward(
        self,
        class_logits_LBQK: torch.Tensor,
        mask_embeddings_LBQC: torch.Tensor,
        pixel_embeddings_BChw: torch.Tensor,
        mask_labels: Sequence[torch.Tensor],
        class_labels: Sequence[torch.Tensor],
        void_masks: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the weighted sum of all terms, and each term unweighted and detached under the original's names.

        Mask logits are the products of mask embeddings and pixel embeddings, and never exist as a whole: matching
        looks at them part by part, and the losses need but those of matched queries, a tenth of all or fewer.

        Clips have a dimension T of frames: pixel embeddings (B, T, C, h, w), masks (N_i, T, H, W). Each frame of a
        target is a mask of the loss, but what they are summed to is divided by the number of targets, as in the
        original.

        Args:
            class_logits_LBQK: Class logits (L, B, Q, K+1); the last of the L layers is the result.
            mask_embeddings_LBQC: (L, B, Q, C).
            pixel_embeddings_BChw: (B, C, h, w).
            mask_labels: Binary masks (N_i, H, W) of each image, padded with zeros to the size of the batch.
            class_labels: Classes (N_i,) of each image, int64.
            void_masks: (B, H, W) bool, true at pixels that neither the matching nor the mask losses look at, nor is a
                query taught no-object that matches no target and has most of its mask there: it may have found what
                nobody labelled. Without it void is background of every mask, as in the original.
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
            class_logits_LBQK = class_logits_LBQK.float()
            counted_BHW = None if void_masks is None else ~void_masks.to(device).bool()
            predictions = class_logits_LBQK, mask_embeddings_LBQC, pixel_embeddings_BChw
            matches = self._match(predictions, mask_labels, class_labels, counted_BHW, generator)
        image_LM, query_LM, target_LM = _in_target_order(matches, class_labels, device)
        matched_LMhw = _matched_mask_logits(
            mask_embeddings_LBQC, pixel_embeddings_BChw, image_LM, query_LM, [len(query) for query, _ in matches[0]]
        )
        # One stack of all images' targets serves every layer: predictions are put in its order, not it in theirs.
        masks_NHW, labels_N = torch.cat(list(mask_labels)), torch.cat(list(class_labels))
        with torch.autocast(device.type, enabled=False):
            matched_LMhw = matched_LMhw.float()
            weighted, mask_losses_L, dice_L = self._mask_losses(
                matched_LMhw, masks_NHW, target_LM, counted_BHW, image_LM, generator
            )
            excused_L: Sequence[torch.Tensor | None] = [None] * len(class_logits_LBQK)
            if counted_BHW is not None:
                excused_L = _mostly_void(mask_embeddings_LBQC, pixel_embeddings_BChw, counted_BHW)
            num_masks, class_weight_sum = self._normalizers(class_labels, class_logits_LBQK)
            total = weighted / num_masks
            losses = {}
            for layer in _last_layer_first(len(class_logits_LBQK)):
                suffix = "" if layer == len(class_logits_LBQK) - 1 else f"_{layer}"
                labels_M = labels_N[target_LM[layer]]
                class_loss = self._class_loss(
                    class_logits_LBQK[layer], image_LM[layer], query_LM[layer], labels_M, excused_L[layer]
                )
                losses[f"loss_ce{suffix}"] = class_loss / class_weight_sum
                losses[f"loss_mask{suffix}"] = mask_losses_L[layer] / num_masks
                losses[f"loss_dice{suffix}"] = dice_L[layer] / num_masks
                total = total + self.weights["loss_ce"] * losses[f"loss_ce{suffix}"]
        return total, {name: loss.detach() for name, loss in losses.items()}

    def _match(
        self,
        predictions: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        mask_labels: Sequence[torch.Tensor],
        class_labels: Sequence[torch.Tensor],
        counted_BHW: torch.Tensor | None,
        generator: torch.Generator | None,
    ) -> list[list[tuple[np.ndarray, np.ndarray]]]:
        """Queries and targets of each layer and image, by class logits, mask embeddings and pixel embeddings."""
        class_logits_LBQK = predictions[0]
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
            *predictions,
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

    def _class_loss(self, logits_BQK, image_M, query_M, labels_M, excused_BQ):
        """Weighted cross-entropy of the classes of all queries but the unmatched excused ones, summed."""
        target_BQ = torch.full(logits_BQK.shape[:2], self.num_labels, device=logits_BQK.device)
        if excused_BQ is not None:
            target_BQ = target_BQ.masked_fill(excused_BQ, NO_TARGET)
        target_BQ[image_M, query_M] = labels_M
        weight = torch.ones(self.num_labels + 1, device=logits_BQK.device)
        weight[-1] = self.no_object_weight
        return F.cross_entropy(logits_BQK.transpose(1, 2), target_BQ, weight, ignore_index=NO_TARGET, reduction="sum")

    def _mask_losses(
        self,
        logits_LMhw: torch.Tensor,
        masks_NHW: torch.Tensor,
        target_LM: torch.Tensor,
        counted_BHW: torch.Tensor | None,
        image_LM: torch.Tensor,
        generator: torch.Generator | None,
    ) -> tuple[torch.Tensor, Sequence[torch.Tensor], Sequence[torch.Tensor]]:
        """Weighted sum of all terms of all layers; focal loss or cross-entropy, and dice loss, of each layer. All are
        sums over masks.

        Args:
            logits_LMhw: The matched ones.
            target_LM, image_LM: The target and the image of each.
        """
        num_layers, num_matched = target_LM.shape
        if num_matched == 0:
            nothing = logits_LMhw.sum()  # zero, but part of the graph: every parameter has a gradient in every step
            return nothing, [nothing] * num_layers, [nothing] * num_layers
        weights = self.weights["loss_mask"], self.weights["loss_dice"]
        if masks_NHW.dim() == 4:
            num_frames = masks_NHW.shape[1]
            logits_LMhw, masks_NHW = logits_LMhw.flatten(1, 2), masks_NHW.flatten(0, 1)
            target_LM, image_LM = _of_frames(target_LM, num_frames), _of_frames(image_LM, num_frames)
            counted_BHW = None if counted_BHW is None else counted_BHW.flatten(0, 1)
        # All targets are matched unless there are more of them than queries: then no copy is needed.
        all_matched = target_LM.shape[1] == len(masks_NHW)
        if self.mask_loss == "dense" and all_matched:
            weighted_LM, losses_LM, dice_LM = dense_losses(
                logits_LMhw, masks_NHW, self.mask_term, weights, counted_BHW, image_LM[0]
            )
            return weighted_LM.sum(), losses_LM.sum(1).unbind(), dice_LM.sum(1).unbind()
        weighted = logits_LMhw.new_zeros(())
        mask_losses: list[Any] = [None] * num_layers
        dice_losses: list[Any] = [None] * num_layers
        logits_layers = logits_LMhw.unbind()  # its backward writes one gradient for all layers in place of one each
        for layer in _last_layer_first(num_layers):
            logits_Mhw, image_M = logits_layers[layer], image_LM[layer]
            targets_MHW = masks_NHW if all_matched else masks_NHW[target_LM[layer]]
            if self.mask_loss == "dense":
                weighted_LM, losses_LM, dice_LM = dense_losses(
                    logits_Mhw[None], targets_MHW, self.mask_term, weights, counted_BHW, image_M
                )
                weighted = weighted + weighted_LM.sum()
                mask_losses[layer], dice_losses[layer] = losses_LM.sum(), dice_LM.sum()
                continue
            points = uncertain_points(
                logits_Mhw, self.num_points, self.oversample_ratio, self.importance_sample_ratio, generator
            )
            logits, targets = sample_points(logits_Mhw, points), sample_points(targets_MHW, points)
            # A point counts as far as its surroundings do.
            counted = None if counted_BHW is None else sample_points(counted_BHW[image_M], points)
            mask_loss = focal_loss if self.mask_term == "focal" else cross_entropy_loss
            mask_losses[layer] = mask_loss(logits, targets, counted)
            dice_losses[layer] = dice_loss(logits, targets, counted)
            weighted = weighted + weights[0] * mask_losses[layer] + weights[1] * dice_losses[layer]
        return weighted, mask_losses, dice_losses

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


@torch.no_grad()
def _mostly_void(
    mask_embeddings_LBQC: torch.Tensor, pixel_embeddings_BChw: torch.Tensor, counted_BHW: torch.Tensor
) -> list[torch.Tensor]:
    """Queries of which more than half of the mask lies where nothing counts: (B, Q) bool of each layer, as panoptic
    quality excuses a segment that was found there."""
    pixel_embeddings_BChw = pixel_embeddings_BChw.float()
    counted_BX1 = nearest(counted_BHW, pixel_embeddings_BChw.shape[-2:]).flatten(1)[..., None]
    excused_L = []
    for layer_1BQC in mask_embeddings_LBQC.float().split(1):
        masks_BQX = (mask_logits(layer_1BQC, pixel_embeddings_BChw)[0] > 0).flatten(2).float()
        excused_L.append((masks_BQX @ counted_BX1)[..., 0] < 0.5 * masks_BQX.sum(-1))
    return excused_L


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


def _matched_mask_logits(
    mask_embeddings_LBQC: torch.Tensor,
    pixel_embeddings_BChw: torch.Tensor,
    image_LM: torch.Tensor,
    query_LM: torch.Tensor,
    num_matched: list[int],
) -> torch.Tensor:
    """(L, M, h, w). In every layer the first `num_matched[0]` are of the first image, and so on."""
    layer_L1 = torch.arange(len(query_LM), device=query_LM.device)[:, None]
    embeddings_LMC = mask_embeddings_LBQC[layer_L1, image_LM, query_LM]
    images = zip(embeddings_LMC.split(num_matched, dim=1), pixel_embeddings_BChw.unbind(), strict=True)
    return torch.cat([torch.einsum("lmc,...chw->lm...hw", *embeddings) for embeddings in images], dim=1)


def _in_target_order(
    matches: Sequence[Any], class_labels: Sequence[torch.Tensor], device: torch.device
) -> torch.Tensor:
    """Image, query and target of each layer's matches, (3, L, M): targets are counted over the batch, and ascending."""
    offsets = np.cumsum([0, *map(len, class_labels)])
    rows = []
    for layer in matches:
        image = np.concatenate([np.full(len(query), i) for i, (query, _) in enumerate(layer)])
        query = np.concatenate([query for query, _ in layer])
        target = np.concatenate([target + offset for (_, target), offset in zip(layer, offsets[:-1], strict=True)])
        rows.append(np.stack((image, query, target))[:, np.argsort(target)])
    return torch.from_numpy(np.stack(rows, axis=1).astype(np.int64)).to(device)


def _last_layer_first(num_layers: int) -> list[int]:
    """The order in which the original draws its random numbers and names its terms."""
    return [num_layers - 1, *range(num_layers - 1)]


def _of_frames(index_LM: torch.Tensor, num_frames: int) -> torch.Tensor:
    """Indices of clips as indices of their frames, (L, M * T)."""
    return (index_LM[..., None] * num_frames + torch.arange(num_frames, device=index_LM.device)).flatten(1)
