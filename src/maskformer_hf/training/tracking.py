"""Trackers of a run, as far as Accelerate knows them, and the picture of validation predictions."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import yaml
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from PIL import Image

from ..data import SegmentationDataset
from ..inference.load import Model
from .arguments import Recipe
from .comparison import draw_comparisons

PROJECT = "maskformer"
# Images on the picture that every evaluation draws.
PICTURE_IMAGES = 4


def check_trackers(names: Sequence[str]) -> None:
    """Raises ValueError for a tracker that Accelerate does not know, or whose package is not installed."""
    available = {str(tracker) for tracker in get_available_trackers()}
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise ValueError(f"report_to names {name!r}; choose among {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}")
        if name not in available:
            package = name.replace("_", "-")
            raise ValueError(f"report_to names {name!r}, whose package is not installed: pip install {package}")


@contextmanager
def tracked(accelerator: Accelerator, recipe: Recipe, first_step: int) -> Iterator[None]:
    """Starts the trackers that `accelerator` was made with, tells them the recipe, and ends them."""
    # A resumed run logs once more what came after its checkpoint, so TensorBoard drops the first version.
    accelerator.init_trackers(PROJECT, init_kwargs={"tensorboard": {"purge_step": first_step + 1}})
    fields = dataclasses.asdict(recipe)
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            # TensorBoard would keep settings as a run of its own for each start.
            tracker.log({"recipe": "```yaml\n" + yaml.safe_dump(fields, sort_keys=False) + "```"}, step=first_step)
        else:
            tracker.store_init_configuration(_flat(fields))
    try:
        yield
    finally:
        for tracker in accelerator.trackers:
            tracker.finish()


def _flat(fields: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values under names with dots. Values that are neither numbers nor text become JSON."""
    result = {}
    for name, value in fields.items():
        if isinstance(value, dict):
            result |= _flat(value, f"{prefix}{name}.")
        else:
            result[prefix + name] = value if isinstance(value, bool | int | float | str) else json.dumps(value)
    return result


def validation_picture(model: Model, processor: Any, dataset: SegmentationDataset) -> Image.Image:
    """Photo, annotation and prediction of a few images, the same ones at every call; see `draw_comparisons`."""
    indices = np.linspace(0, len(dataset) - 1, min(PICTURE_IMAGES, len(dataset))).round().astype(int).tolist()
    return draw_comparisons(model, processor, dataset, indices)


def track_picture(accelerator: Accelerator, picture: Image.Image, step: int) -> None:
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            images_BHWC = np.asarray(picture)[None]
            tracker.log_images({"validation/predictions": images_BHWC}, step=step, dataformats="NHWC")
        elif hasattr(tracker, "log_images"):
            tracker.log_images({"validation/predictions": [picture]}, step=step)
