"""The boundary loss (Kervadec et al., https://arxiv.org/abs/1812.07032): what is predicted far outside of a mask costs
most, what is found deep inside gains most."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch

from .loss_terms import Pixels, TargetMap, mean_over_pixels

# Share of its weight that the term has when training starts.
FIRST_SHARE = 0.01


def signed_distance(masks_NHW: torch.Tensor) -> torch.Tensor:
    """How far each pixel is from the outline of each mask, (N, H, W) float32: outside the distance to the mask, inside
    one less than the distance to what is outside, negative.

    It is 0 everywhere for a mask that is empty, or all there is, whose outline is nowhere. (For the latter the paper's
    code gives distances to a pixel beyond the corner.) Masks of more dimensions are volumes.

    Raises:
        ImportError: If scipy is missing.
    """
    try:
        from scipy.ndimage import distance_transform_edt
    except ImportError as error:
        raise ImportError("The boundary loss needs scipy for its distances: pip install scipy") from error
    distances = np.zeros(masks_NHW.shape, dtype=np.float32)
    for distance, mask in zip(distances, masks_NHW.numpy().astype(bool), strict=True):
        if mask.any() and not mask.all():
            inner: Any = distance_transform_edt(mask)
            outer: Any = distance_transform_edt(~mask)
            distance[:] = np.where(mask, 1 - inner, outer)
    return torch.from_numpy(distances)


class BoundaryLoss:
    """The mean over pixels of a mask's probability times the signed distance to the target's outline, in pixels.

    Alone it is of no use, when nothing is found yet. So it grows over training, from a hundredth of its weight to all.
    """

    maps: ClassVar[Mapping[str, TargetMap]] = {"signed_distance": signed_distance}

    @classmethod
    def from_config(cls, config: Any) -> "BoundaryLoss":
        return cls()

    def __call__(self, pixels: Pixels) -> torch.Tensor:
        share = FIRST_SHARE + (1 - FIRST_SHARE) * pixels.progress
        values = pixels.logits.sigmoid() * pixels.maps["signed_distance"]
        return share * mean_over_pixels(values, pixels.valid)
