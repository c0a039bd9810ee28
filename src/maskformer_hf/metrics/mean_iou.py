"""Mean intersection over union from one confusion matrix, which stays on the device."""

from collections.abc import Mapping
from typing import Any

import torch

from .joint_counts import LARGEST_TABLE, as_integers, joint_counts, value_ranges


class MeanIoU:
    """Intersection over union of class maps, accumulated image by image.

    Definition, over all pixels of all images together: for class k, with true positives TP, false positives FP and
    false negatives FN counted on pixels whose *reference* is not void, IoU_k = TP / (TP + FP + FN). A class with
    TP + FP + FN = 0 was neither present nor predicted: its IoU is NaN and the mean skips it. Void is a property of the
    reference only: a prediction that is no class (`ignore_index` or any id outside 0..K-1) on a labelled pixel always
    counts as a false negative of that pixel's class.

    Args:
        num_labels: K, the number of classes.
        ignore_index: the reference id of void pixels.
        device: where the (K, K + 1) int64 matrix lives; maps are moved there.
    """

    def __init__(self, num_labels: int, *, ignore_index: int = 255, device: str | torch.device = "cpu") -> None:
        if num_labels < 1:
            raise ValueError(f"num_labels is {num_labels}; a mean needs at least one class")
        self.num_labels = num_labels
        self.ignore_index = ignore_index
        # Rows are references, columns predictions; the last column counts predictions that are no class.
        self.confusion = torch.zeros(num_labels, num_labels + 1, dtype=torch.int64, device=device)

    def update(self, predictions: torch.Tensor, references: torch.Tensor) -> None:
        """Counts one map or a batch of maps: integer tensors of one shape, e.g. (H, W) or (B, H, W)."""
        if predictions.shape != references.shape:
            raise ValueError(
                f"predictions {tuple(predictions.shape)} and references {tuple(references.shape)} differ in shape; "
                "pass the references' sizes as target_sizes when post-processing"
            )
        predictions = as_integers(predictions, self.confusion.device)
        references = as_integers(references, self.confusion.device)
        (low, high), (predicted_low, predicted_high) = value_ranges(references, predictions)
        void = self.ignore_index
        if (high - low + 1) * (predicted_high - predicted_low + 1) > LARGEST_TABLE:
            # Some ids are far from any class. All ids that are no class become one, so that the table is small.
            self._refuse_unknown(references[references != void])
            references, void = torch.where(references == void, -1, references), -1
            predictions = predictions.clamp(-1, self.num_labels)
            (low, high), (predicted_low, predicted_high) = (-1, self.num_labels - 1), (-1, self.num_labels)
        counts = joint_counts(references, predictions, (low, high), (predicted_low, predicted_high))
        rows = torch.arange(low, high + 1, device=counts.device)
        columns = torch.arange(predicted_low, predicted_high + 1, device=counts.device)
        if low < 0 or high >= self.num_labels:
            self._refuse_unknown(rows[counts.any(1) & (rows != void)])
        # The last column counts predictions that are no class.
        columns[(columns < 0) | (columns >= self.num_labels)] = self.num_labels
        by_class = torch.zeros(len(rows), self.num_labels + 1, dtype=torch.int64, device=counts.device)
        by_class.index_add_(1, columns, counts)
        first, last = max(low, 0), min(high + 1, self.num_labels)
        if first < last:
            self.confusion[first:last] += by_class[first - low : last - low]

    def _refuse_unknown(self, references: torch.Tensor) -> None:
        outside = references[(references < 0) | (references >= self.num_labels)]
        if len(outside):
            raise ValueError(
                f"reference id {int(outside[0])} is neither one of the {self.num_labels} classes nor void "
                f"({self.ignore_index})"
            )

    def merge(self, other: "MeanIoU") -> None:
        """Adds the counts of another one."""
        self.confusion += other.confusion

    def reduce(self) -> None:
        """Adds up the counts of all processes; call once, on every process, before `compute`."""
        from accelerate.utils import reduce

        self.confusion = reduce(self.confusion, reduction="sum")

    def reset(self) -> None:
        self.confusion.zero_()

    def compute(self, id2label: Mapping[int, str] | None = None) -> dict[str, Any]:
        """Returns plain floats, each a share of 1.

        `mean_iou`; `frequency_weighted_iou` (weights: share of labelled pixels); `pixel_accuracy`; `mean_accuracy`
        (mean recall over classes present in the references); `per_class`: one dict a class with `label`, `iou`,
        `accuracy` and `pixels` (labelled pixels of that class). Undefined values are NaN.
        """
        confusion = self.confusion.cpu().double()
        true_positives = confusion[:, : self.num_labels].diagonal()
        reference_pixels = confusion.sum(1)
        predicted_pixels = confusion[:, : self.num_labels].sum(0)
        iou = true_positives / (reference_pixels + predicted_pixels - true_positives)  # 0 / 0 is NaN
        accuracy = true_positives / reference_pixels
        share = reference_pixels / reference_pixels.sum()
        names = id2label or {}
        return {
            "mean_iou": float(iou.nanmean()),
            "frequency_weighted_iou": float((share * iou).nansum()) if bool(share.isfinite().all()) else float("nan"),
            "pixel_accuracy": float(true_positives.sum() / reference_pixels.sum()),
            "mean_accuracy": float(accuracy.nanmean()),
            "per_class": [
                {
                    "label": names.get(index, str(index)),
                    "iou": float(iou[index]),
                    "accuracy": float(accuracy[index]),
                    "pixels": int(reference_pixels[index]),
                }
                for index in range(self.num_labels)
            ],
        }
