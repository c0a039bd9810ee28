"""What evaluation.json says: figures, a table of classes, and results for the Hub."""

import re
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult

from .records import Records

# By the key in an evaluation: the Hub's name for the measure, and ours. IoU is published as a share of 1, AP and PQ in
# percent.
_SHARES = {
    "mean_iou": ("mean_iou", "mean IoU"),
    "boundary_iou": ("boundary_iou", "boundary IoU"),
    "pixel_accuracy": ("accuracy", "pixel accuracy"),
    "mean_accuracy": ("mean_accuracy", "mean accuracy of the classes"),
    "frequency_weighted_iou": ("frequency_weighted_iou", "frequency-weighted IoU"),
}
_PERCENTAGES = {
    "ap": ("mask_ap", "mask AP"),
    "ap50": ("mask_ap50", "mask AP50"),
    "ap75": ("mask_ap75", "mask AP75"),
    "ap_small": ("mask_ap_small", "mask AP, small objects"),
    "ap_medium": ("mask_ap_medium", "mask AP, medium objects"),
    "ap_large": ("mask_ap_large", "mask AP, large objects"),
    "boundary_ap": ("boundary_ap", "boundary AP"),
    "ar": ("mask_ar", "average recall"),
    "pq": ("pq", "panoptic quality, PQ"),
    "pq_things": ("pq_things", "PQ of things"),
    "pq_stuff": ("pq_stuff", "PQ of stuff"),
    "sq": ("sq", "segmentation quality, SQ"),
    "rq": ("rq", "recognition quality, RQ"),
}
# Columns of the table of classes, in percent, by a key that only one task has: the name and the key of each.
_CLASS_COLUMNS = {
    "iou": {"IoU": "iou", "accuracy": "accuracy", "share of pixels": "share"},
    "ap": {"AP": "ap", "AP50": "ap50", "average recall": "ar"},
    "pq": {"PQ": "pq", "SQ": "sq", "RQ": "rq"},
}
# For videos, "ap" and "ar" are those of tubes.
_VIDEO_PERCENTAGES = {
    "ap": ("video_ap", "video AP"),
    "ap50": ("video_ap50", "video AP50"),
    "ap75": ("video_ap75", "video AP75"),
    "ar": ("video_ar", "average recall"),
    "j": ("region_similarity", "region similarity, J"),
    "flicker": ("flicker", "flicker"),
}


class Evaluated:
    """An evaluation and the data it was made on.

    Attributes:
        dataset: The name of the data.
        part: Which part of it, if that is known.
    """

    def __init__(self, records: Records):
        self.evaluation = records.evaluation
        self.dataset, self.part = _evaluated_on(records)
        percentages = _VIDEO_PERCENTAGES if self.evaluation.get("task") == "video" else _PERCENTAGES
        self.measures = {**_SHARES, **percentages}

    def describe(self) -> str:
        evaluation, unit = self.evaluation, "an image"
        images = f"{evaluation['images']} images of " if evaluation.get("images") else ""
        if evaluation.get("videos"):
            images, unit = f"{evaluation['videos']} videos ({evaluation['frames']} frames) of ", "a video"
        part = f", `{self.part}`" if self.part else ""
        limit = evaluation.get("max_detections")
        best = f" The {limit} best objects of {unit} count." if limit else ""
        return f"On {images}{self.dataset}{part}, each at its own size.{best}"

    def figures(self) -> dict[str, str]:
        """Name and value of each figure there is."""
        return {
            name: f"{self.evaluation[key]:.4f}" if key in _SHARES else f"{100 * self.evaluation[key]:.1f}"
            for key, (_, name) in self._measured().items()
        }

    def class_table(self) -> list[str]:
        """The lines of the table of classes; none if no class was measured."""
        classes = self.evaluation.get("per_class") or []
        columns = next((columns for key, columns in _CLASS_COLUMNS.items() if classes and key in classes[0]), None)
        if columns is None:
            return []
        pixels = sum(row.get("pixels", 0) for row in classes) or 1
        lines = [f"| {' | '.join(['class', *columns])} |", "|---" * (1 + len(columns)) + "|"]
        for row in classes:
            values = {**row, "share": row.get("pixels", 0) / pixels}
            cells = ["" if values[key] is None else f"{values[key]:.1%}" for key in columns.values()]
            lines.append("| " + " | ".join([row["label"].replace("|", "\\|"), *cells]) + " |")
        return lines

    def results(self, words: dict[str, Any]) -> list[EvalResult]:
        """The figures for the Hub's index."""
        own_name = self.dataset == words.get("dataset_name") and words.get("dataset_id")
        return [
            EvalResult(
                task_type="image-segmentation",
                task_name=f"{str(self.evaluation.get('task', 'semantic')).capitalize()} segmentation",
                dataset_type=own_name or re.sub(r"[^\w.-]+", "-", self.dataset).lower(),
                dataset_name=self.dataset,
                metric_type=metric,
                metric_name=name,
                metric_value=round(self.evaluation[key], 5),
            )
            for key, (metric, name) in self._measured().items()
        ]

    def _measured(self) -> dict[str, tuple[str, str]]:
        # NaN was written as null.
        return {key: names for key, names in self.measures.items() if isinstance(self.evaluation.get(key), int | float)}


def _evaluated_on(records: Records) -> tuple[str, str | None]:
    """The name of the data that was measured on, and which part of it."""
    evaluation, data, name = records.evaluation, records.data, records.dataset_name
    if "data" not in evaluation:
        return name or "the validation data", data.get("validation")
    path = Path(evaluation["data"], evaluation.get("split") or "").resolve()
    # As in a recipe: the parts of a data set are folders below one that has its name.
    if name and path.parent.name in (data.get("name"), name):
        return name, path.name
    return path.parent.name, path.name
