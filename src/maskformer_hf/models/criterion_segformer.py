"""Panoptic SegFormer's loss (https://arxiv.org/abs/2109.03814, section 3.5): boxes first, then masks.

Things are matched by class and box in every location layer. The queries matched in the last one get masks, and are
matched once more by class, box and mask. Stuff query j is taught stuff class j. Where paper and code differ, this
follows the code.

Shapes: L location layers, Q queries, N things, K classes, J + 1 layers of masks, Z stuff classes, H W pixels.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from .assigner_stuff import stuff_labels
from .boxes import boxes_of_masks, generalized_iou, to_centers, to_edges
from .criterion import average_over_processes
from .loss_terms import FOCAL_ALPHA, TargetMap
from .mask_losses import last_layer_first
from .matcher import match
from .prediction_head import PredictionSet
from .targets import Targets

FOCAL_GAMMA = 2
DICE_EPS = 1e-6
# The original's matching has a larger one than its loss.
DICE_COST_EPS = 1e-3
# The original doubles the weight of classes in its second matching, and in the loss of stuff.
CLASS_FACTOR = 2


class ImageTargets(NamedTuple):
    """Targets of one image.

    thing_labels, thing_masks: (N,) and (N, H, W), padded.
    boxes: (N, 4), left, top, right and bottom in pixels.
    size: (4,), width and height of the image without padding, twice.
    stuff: By number of the stuff class, its mask.
    """

    thing_labels: torch.Tensor
    thing_masks: torch.Tensor
    boxes: torch.Tensor
    size: torch.Tensor
    stuff: dict[int, torch.Tensor]


class SegFormerCriterion(nn.Module):
    """Focal loss of the classes, L1 and GIoU loss of the boxes, dice loss of the masks.

    All are divided by the number of things plus that of stuff segments of the batch, each at least 1, averages over the
    processes. An image without things teaches no stuff class, as in the original.
    """

    def __init__(self, config: Any):
        super().__init__()
        self.num_labels = config.num_labels
        self.stuff = stuff_labels(config)
        self.class_weight = config.class_weight
        self.box_weight = config.box_weight
        self.giou_weight = config.giou_weight
        self.dice_weight = config.dice_weight
        self.target_maps: dict[str, TargetMap] = {}

    @staticmethod
    def check(config: Any):
        if config.transformer_decoder != "panoptic_segformer":
            raise ValueError(
                "`criterion='panoptic_segformer'` needs boxes: `transformer_decoder` must be 'panoptic_segformer', got "
                f"{config.transformer_decoder!r}."
            )
        if config.loss_terms:
            raise ValueError("`criterion='panoptic_segformer'` has no `loss_terms` but its own: leave them out.")

    @torch.compiler.disable
    def forward(self, sets: Sequence[PredictionSet], targets: Targets) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The weighted sum of all terms, and each term unweighted and detached."""
        location, stuff = ({found.name: found for found in sets}[name] for name in ("location_", "stuff_"))
        assert location.boxes is not None
        device = location.class_logits.device
        with torch.autocast(device.type, enabled=False):
            images = [self._image_targets(targets, image) for image in range(len(targets.labels))]
            class_logits, boxes = location.class_logits.float(), location.boxes.float()
            matches = match(self.location_costs(class_logits, boxes, images), [len(i.thing_labels) for i in images])
            sums: dict[str, Any] = {}
            for layer in last_layer_first(len(class_logits)):
                suffix = "" if layer == len(class_logits) - 1 else f"_{layer}"
                own = self._location_sums(class_logits[layer], boxes[layer], matches[layer], images)
                sums |= {f"{name}{suffix}": (weight, value) for name, (weight, value) in own.items()}
        for image, own in enumerate(images):
            kept = torch.as_tensor(matches[-1][image][0], device=device)
            for name, (weight, value) in self._thing_sums(location, image, kept, own).items():
                sums[name] = (weight, sums[name][1] + value if name in sums else value)
        with torch.autocast(device.type, enabled=False):
            sums |= self._stuff_sums(stuff, images)
            number = self._normalizer(matches[-1], images, device)
            total = sum(weight * value for weight, value in sums.values()) / number
        return total, {name: value.detach() / number for name, (_, value) in sums.items()}

    def location_costs(
        self, class_logits_LBQK: torch.Tensor, boxes_LBQ4: torch.Tensor, images: Sequence[ImageTargets]
    ) -> torch.Tensor:
        """(L, B, Q, N), N being the largest number of things, at least 1."""
        num_columns = max(1, *(len(image.thing_labels) for image in images))
        costs = class_logits_LBQK.new_zeros((*class_logits_LBQK.shape[:3], num_columns))
        with torch.no_grad():
            for number, image in enumerate(images):
                own = costs[:, number, :, : len(image.thing_labels)]
                own += self.class_weight * class_costs(class_logits_LBQK[:, number], image.thing_labels)
                own += self._box_costs(boxes_LBQ4[:, number], image)
        return costs

    def mask_costs(
        self, class_logits_QK: torch.Tensor, boxes_Q4: torch.Tensor, masks_QHW: torch.Tensor, image: ImageTargets
    ) -> torch.Tensor:
        """Costs of the second matching, (Q, N)."""
        with torch.no_grad():
            targets = F.interpolate(
                image.thing_masks.float()[None], size=masks_QHW.shape[-2:], mode="bilinear", align_corners=False
            )[0].flatten(1)
            masks = masks_QHW.flatten(1)
            overlap = 2 * masks @ targets.T
            total = masks.square().sum(1)[:, None] + targets.square().sum(1) + 2 * DICE_COST_EPS
            classes = CLASS_FACTOR * self.class_weight * class_costs(class_logits_QK, image.thing_labels)
            return classes + self._box_costs(boxes_Q4, image) + self.dice_weight * (1 - overlap / total)

    def _box_costs(self, boxes: torch.Tensor, image: ImageTargets) -> torch.Tensor:
        """(..., Q, N)."""
        wanted = to_centers(image.boxes / image.size)
        distance = (boxes[..., None, :] - wanted).abs().sum(-1)
        giou = generalized_iou((to_edges(boxes) * image.size)[..., None, :], image.boxes)
        return self.box_weight * distance - self.giou_weight * giou

    def _image_targets(self, targets: Targets, number: int) -> ImageTargets:
        masks, labels = targets.masks[number], targets.labels[number]
        is_thing = ~torch.isin(labels, torch.tensor(self.stuff, device=labels.device))
        stuff: dict[int, torch.Tensor] = {}
        for mask, label in zip(masks[~is_thing], labels[~is_thing].tolist(), strict=True):
            place = self.stuff.index(label)
            stuff[place] = mask if place not in stuff else stuff[place] | mask
        height, width = masks.shape[-2:]
        if targets.padding is not None:
            real = ~targets.padding[number]
            height, width = int(real.any(1).sum()), int(real.any(0).sum())
        size = masks.new_tensor([width, height, width, height], dtype=torch.float32)
        things = masks[is_thing]
        return ImageTargets(labels[is_thing], things, boxes_of_masks(things), size, stuff)

    def _location_sums(
        self,
        class_logits_BQK: torch.Tensor,
        boxes_BQ4: torch.Tensor,
        matches: Sequence[tuple[np.ndarray, np.ndarray]],
        images: Sequence[ImageTargets],
    ) -> dict[str, tuple[float, torch.Tensor]]:
        """Weights and sums over the batch of one layer."""
        wanted = torch.zeros_like(class_logits_BQK)
        distance = giou = boxes_BQ4.sum() * 0.0
        for number, ((query, target), image) in enumerate(zip(matches, images, strict=True)):
            query, target = (torch.as_tensor(x, device=boxes_BQ4.device) for x in (query, target))
            wanted[number, query, image.thing_labels[target]] = 1.0
            found, edges = boxes_BQ4[number, query], image.boxes[target]
            distance = distance + (found - to_centers(edges / image.size)).abs().sum()
            giou = giou + (1 - generalized_iou(to_edges(found) * image.size, edges)).sum()
        return {
            "loss_class": (self.class_weight, focal_loss(class_logits_BQK, wanted)),
            "loss_box": (self.box_weight, distance),
            "loss_giou": (self.giou_weight, giou),
        }

    def _thing_sums(
        self, location: PredictionSet, image: int, kept: torch.Tensor, targets: ImageTargets
    ) -> dict[str, tuple[float, torch.Tensor]]:
        """Dice losses of the masks of the queries of one image that the last location layer's matching kept."""
        assert location.boxes is not None
        masks: Any = location.masks
        # Without things one query is decoded for nothing: every parameter has a gradient in every step.
        values = masks.of(image, kept if len(kept) else kept.new_zeros(1)).float()
        with torch.autocast(values.device.type, enabled=False):
            layers = [value.sum() * 0.0 for value in values]
            if len(kept):
                classes, boxes = location.class_logits[-1, image, kept].float(), location.boxes[-1, image, kept].float()
                costs = self.mask_costs(classes, boxes, values[-1], targets)
                [[(query, target)]] = match(costs[None, None], [len(targets.thing_labels)])
                query, target = (torch.as_tensor(x, device=values.device) for x in (query, target))
                layers = [dice_losses(value[query], targets.thing_masks[target]).sum() for value in values]
        return _by_layer("thing_loss_dice", self.dice_weight, layers)

    def _stuff_sums(
        self, stuff: PredictionSet, images: Sequence[ImageTargets]
    ) -> dict[str, tuple[float, torch.Tensor]]:
        masks, logits_JBZ = stuff.masks, stuff.class_logits.float()[..., 0]
        wanted_BZ = torch.zeros_like(logits_JBZ[0])
        valid_BZ = torch.zeros_like(logits_JBZ[0])
        values = [masks.layer(layer).float() for layer in range(masks.shape[0])]
        layers = [value.sum() * 0.0 for value in values]
        for number, image in enumerate(images):
            present = sorted(image.stuff)
            wanted_BZ[number, present] = 1.0
            valid_BZ[number] = float(len(image.thing_labels) > 0)
            if present:
                targets = torch.stack([image.stuff[place] for place in present])
                layers = [
                    layer + dice_losses(value[number, present], targets).sum()
                    for layer, value in zip(layers, values, strict=True)
                ]
        sums = _by_layer("stuff_loss_dice", self.dice_weight, layers)
        for layer, logits_BZ in enumerate(logits_JBZ):
            loss = focal_loss(logits_BZ, wanted_BZ, valid_BZ)
            sums[f"stuff_loss_class_{layer}"] = (CLASS_FACTOR * self.class_weight, loss)
        return sums

    def _normalizer(self, matches: Any, images: Sequence[ImageTargets], device: torch.device) -> torch.Tensor:
        counts = [sum(len(query) for query, _ in matches), sum(len(image.stuff) for image in images)]
        numbers = torch.tensor(counts, dtype=torch.float32, device=device)
        average_over_processes(numbers)
        return numbers.clamp(min=1).sum()


def _by_layer(name: str, weight: float, layers: Sequence[torch.Tensor]) -> dict[str, tuple[float, torch.Tensor]]:
    last = len(layers) - 1
    return {name if i == last else f"{name}_{i}": (weight, layers[i]) for i in last_layer_first(len(layers))}


def class_costs(class_logits: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
    """What a class costs by the focal loss: (..., Q, K) to (..., Q, N)."""
    probability = class_logits[..., labels_N].sigmoid()
    positive = FOCAL_ALPHA * (1 - probability) ** FOCAL_GAMMA * -(probability + 1e-12).log()
    negative = (1 - FOCAL_ALPHA) * probability**FOCAL_GAMMA * -(1 - probability + 1e-12).log()
    return positive - negative


def focal_loss(logits: torch.Tensor, wanted: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
    """The sum of sigmoid focal losses (https://arxiv.org/abs/1708.02002)."""
    probability = logits.sigmoid()
    miss = (1 - probability) * wanted + probability * (1 - wanted)
    alpha = FOCAL_ALPHA * wanted + (1 - FOCAL_ALPHA) * (1 - wanted)
    losses = alpha * miss**FOCAL_GAMMA * F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    return (losses if valid is None else losses * valid).sum()


def dice_losses(masks_NHW: torch.Tensor, targets_NHW: torch.Tensor) -> torch.Tensor:
    """Dice loss with squares below the line, (N,), of masks at twice their size."""
    size = [2 * length for length in masks_NHW.shape[-2:]]
    masks, targets = (
        F.interpolate(values[None].float(), size=size, mode="bilinear", align_corners=False)[0].flatten(1)
        for values in (masks_NHW, targets_NHW)
    )
    total = masks.square().sum(1) + targets.square().sum(1) + 2 * DICE_EPS
    return 1 - 2 * (masks * targets).sum(1) / total
