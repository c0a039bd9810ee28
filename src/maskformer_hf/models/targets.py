"""What a batch is taught, checked once: masks with their classes, where nothing counts, and maps that loss terms ask
for.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch


class Targets(NamedTuple):
    """Targets of B images or clips.

    masks: Boolean masks (N, H, W) of each image, of each clip (N, T, H, W), padded with zeros to the size of the batch.
    labels: Their classes (N,), int64.
    num_frames: T; None for images.
    void: (B, H, W) or (B, T, H, W) bool, true where neither matching nor mask losses look; None if everything counts.
    maps: What loss terms need besides, by name and image, each with the leading dimensions of the masks.
    progress: How far training is, from 0 to 1.
    padding: (B, H, W) bool, true at pixels that are padding; None if nothing is known of it.
    """

    masks: list[torch.Tensor]
    labels: list[torch.Tensor]
    num_frames: int | None = None
    void: torch.Tensor | None = None
    maps: Mapping[str, Sequence[torch.Tensor]] = {}
    progress: float = 1.0
    padding: torch.Tensor | None = None

    @property
    def counts(self) -> list[int]:
        """How many each image has."""
        return [len(labels) for labels in self.labels]

    def to(self, device: torch.device) -> "Targets":
        return self._replace(
            masks=[masks.to(device) for masks in self.masks],
            labels=[labels.to(device) for labels in self.labels],
            void=None if self.void is None else self.void.to(device),
            maps={name: [values.to(device) for values in images] for name, images in self.maps.items()},
        )


def make_targets(
    mask_labels: Sequence[torch.Tensor] | None,
    class_labels: Sequence[torch.Tensor] | None,
    pixel_values: torch.Tensor,
    num_labels: int,
    num_frames: int | None = None,
    void_masks: torch.Tensor | None = None,
    target_maps: Mapping[str, Sequence[torch.Tensor]] | None = None,
) -> Targets | None:
    """The targets of a batch, None if there are none.

    Args:
        pixel_values: Images (B, C, H, W), or clips (B, T, C, H, W) with `num_frames`.

    Raises:
        ValueError: Targets that are no masks and classes of these images; it names the image and the value.
    """
    if (mask_labels is None) != (class_labels is None):
        raise ValueError("`mask_labels` and `class_labels` come together: one of them is missing.")
    if mask_labels is None or class_labels is None:
        return None
    _check_sizes(mask_labels, pixel_values, num_frames)
    expected = (*pixel_values.shape[:-3], *pixel_values.shape[-2:])
    if void_masks is not None and void_masks.shape != expected:
        raise ValueError(
            f"`void_masks` must have shape (batch, height, width) of `pixel_values`, got {tuple(void_masks.shape)} for "
            f"{tuple(pixel_values.shape)}."
        )
    masks, labels = check_targets(mask_labels, class_labels, len(pixel_values), num_labels)
    maps = target_maps or {}
    for name, images in maps.items():
        for image, (values, own) in enumerate(zip(images, masks, strict=True)):
            if len(values) != len(own):
                raise ValueError(
                    f"Target map {name!r} of image {image} has {len(values)} entries for {len(own)} masks."
                )
    void = None if void_masks is None else void_masks.bool()
    return Targets(masks, labels, num_frames, void, maps).to(pixel_values.device)


def _check_sizes(mask_labels: Sequence[torch.Tensor], pixel_values: torch.Tensor, num_frames: int | None):
    size = tuple(pixel_values.shape[-2:])
    for image, masks in enumerate(mask_labels):
        if num_frames is not None and (masks.dim() != 4 or masks.shape[1] != num_frames):
            raise ValueError(
                f"Masks of clip {image} of the batch have shape {tuple(masks.shape)}: (objects, frames, height, width) "
                f"is expected, with the {num_frames} frames of `pixel_values`."
            )
        if num_frames is None and masks.dim() != 3:
            raise ValueError(
                f"Masks of image {image} of the batch have shape {tuple(masks.shape)}: (objects, height, width) is "
                "expected."
            )
        if masks.shape[-2:] != size:
            raise ValueError(
                f"Masks of image {image} of the batch have size {tuple(masks.shape[-2:])}, `pixel_values` {size}: pad "
                "the masks with zeros on the right and below to the size of the batch, as the image processor does."
            )


def check_targets(
    mask_labels: Sequence[torch.Tensor], class_labels: Sequence[torch.Tensor], batch_size: int, num_labels: int
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
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
    return [_as_bool(masks, image) for image, masks in enumerate(mask_labels)], list(class_labels)


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
