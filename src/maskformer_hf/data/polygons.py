"""Images with outlined objects, for the sources that differ only in how they write an outline down.

Shapes: N segments, H W pixels.
"""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torchvision import tv_tensors

from .files import decode_image
from .reader import RecordReader
from .run_lengths import decode_run_lengths, planes_from_run_lengths
from .sample import VOID, Problem, Sample


class Polygons(RecordReader):
    """Images and outlines, kept as numbers in an Arrow table and drawn when asked for. Pixels outside of all outlines
    are background.

    Args:
        records: one an image, see `record`.
        names: the classes.
        shares: coordinates are shares of width and height, not pixels.
        problems: annotations that were left out.
    """

    def __init__(
        self,
        records: Sequence[dict[str, Any]],
        names: Sequence[str],
        *,
        shares: bool = False,
        problems: Sequence[Problem] = (),
    ) -> None:
        import pyarrow
        from datasets import Dataset as ArrowDataset
        from datasets.table import InMemoryTable

        self.shares = shares
        numbers = pyarrow.list_(pyarrow.int32())
        schema = pyarrow.schema(
            {
                "image": pyarrow.string(),
                "file": pyarrow.string(),
                "size": numbers,
                "labels": numbers,
                "polygons": pyarrow.list_(pyarrow.list_(pyarrow.list_(pyarrow.float64()))),
                "masks": pyarrow.list_(pyarrow.string()),
            }
        )
        # `ArrowDataset.from_list` takes ten times as long, as it looks at every number.
        table = ArrowDataset(InMemoryTable(pyarrow.Table.from_pylist(list(records), schema)))
        super().__init__(table, names, task="instance", problems=problems)

    def sample(self, record: dict[str, Any]) -> Sample:
        size = (record["size"][0], record["size"][1]) if record["size"] else None
        photo = self.read_image(record, size)
        height, width = photo.shape[-2:]
        if size not in (None, (height, width)):
            raise ValueError(
                f"{record['image']} is {(height, width)} (height, width), but {record['file']} outlines a photo of "
                f"{size}; resize both together"
            )
        scale = np.array([width, height]) if self.shares else np.ones(2)
        counts = [
            draw([np.reshape(part, (-1, 2)) * scale for part in parts], [mask] if mask else [], (height, width))
            for parts, mask in zip(record["polygons"], record["masks"], strict=True)
        ]
        return sample_from_run_lengths(photo, counts, record["labels"], [False] * len(counts), record["image"])

    def read_image(self, record: dict[str, Any], size: tuple[int, int] | None) -> tv_tensors.Image:
        """Upright, as drawing tools show it, unless only the stored pixels have the size that was annotated."""
        return decode_image(record["image"], size, upright=True)


def record(image: str, file: str, size: tuple[int, int] | None = None) -> dict[str, Any]:
    """The record of an image without objects. For each object, add one entry to each of the three lists.

    image: path of the image.
    file: path of the annotations.
    size: (height, width) of the image that was annotated.
    labels: class, or `VOID` for a region of which nothing is known.
    polygons: the parts of the object, each x, y, x, y, ...
    masks: further pixels of the object, in COCO's run lengths; "" for none.
    """
    return {"image": image, "file": file, "size": list(size or ()), "labels": [], "polygons": [], "masks": []}


def draw(parts: Sequence[np.ndarray], masks: Sequence[str], size: tuple[int, int]) -> bytes:
    """The union of polygons (each (points, 2), in pixels) and masks as COCO draws it, all masks in run lengths."""
    from pycocotools import mask

    # Each has three points or more, as pycocotools takes four numbers for a box.
    runs: list[Any] = list(mask.frPyObjects([part.ravel().tolist() for part in parts], *size)) if len(parts) else []
    runs += [{"size": list(size), "counts": counts} for counts in masks]
    return cast(bytes, mask.merge(runs)["counts"])


def sample_from_run_lengths(
    image: tv_tensors.Image, counts: Sequence[bytes], labels: Sequence[int], is_crowd: Sequence[bool], name: str
) -> Sample:
    """The sample of N masks that may overlap. A mask of label `VOID` makes its pixels void where no segment is."""
    size = (image.shape[-2], image.shape[-1])
    kept = [index for index, label in enumerate(labels) if label != VOID]
    planes_PHW = planes_from_run_lengths([counts[index] for index in kept], size)
    void = [item for item, label in zip(counts, labels, strict=True) if label == VOID]
    for window, inside in decode_run_lengths(void, size):
        inside = inside & (planes_PHW[:, *window] == 0).all(0)
        planes_PHW[0][window][inside] = VOID
    return {
        "image": image,
        "planes": tv_tensors.Mask(torch.from_numpy(planes_PHW)),
        "labels": torch.tensor([labels[index] for index in kept], dtype=torch.int64),
        "is_crowd": torch.tensor([is_crowd[index] for index in kept], dtype=torch.bool),
        "name": name,
    }
