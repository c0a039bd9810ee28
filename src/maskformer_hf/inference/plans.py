"""Plans of inference: which views of an image the model sees, and how they are put together to one result.

Each image gets a plan of its own. The plan yields its views, receives the outputs of each, and makes the result when it
has them all. Views of many images run in one batch where their padded sizes agree, so a plan never sees a batch. What
it merges is its own choice: finished results, as `tiles` does, or scores.

A plan is one file: a class as `Plan` below, and a line that registers what makes it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch

from ..models.image_processing_maskformer import MaskFormerHfImageProcessor
from ..models.parts import Part, names_of, part_of, register
from ..models.result_options import ResultOptions
from ..models.results import results_of
from .batches import Inputs, forward_batch
from .images import crop_image, image_size, preprocess
from .load import Model
from .prediction import Prediction
from .tiles import TileMerger
from .windows import Tiling, scale_windows, tile_windows


@dataclass(frozen=True)
class Request:
    """What is asked of one image.

    Attributes:
        image: (C, H, W) uint8, upright; other values where the processor does not scale by 1 / 255.
        size: Height and width of the result.
        options: How outputs become a result.
        tiling: Size and overlap of tiles in pixels of the image.
    """

    model: Model
    processor: MaskFormerHfImageProcessor
    image: torch.Tensor
    size: tuple[int, int]
    options: ResultOptions
    tiling: Tiling

    def prediction(self, outputs: Any, size: tuple[int, int]) -> Prediction:
        """The result of one view at `size`, by the options."""
        [result] = results_of(outputs, self.options, [size])
        return Prediction.of(result, self.options.task, size, self.model.config.id2label)


class View(NamedTuple):
    """What runs through the model once.

    inputs: Of the image processor, for a batch of one.
    forward: Runs views of one padded size that have the same `forward`, and returns a `ModelOutput`. The default is the
        whole model; a plan that encodes some views only, or decodes queries once for all of them, brings its own.
    """

    inputs: Inputs
    forward: Callable[[Model, Sequence[Inputs]], Any] = forward_batch


class Plan(Protocol):
    """How one image is seen.

    Attributes:
        num_views: How many views there are.
        unit: What a view is called where progress is shown.
    """

    num_views: int
    unit: str

    def views(self) -> Iterator[View]:
        """The views, made one at a time as they are asked for."""
        ...

    def add(self, number: int, outputs: Any) -> None:
        """Receives the outputs of one view, with a batch dimension of 1. `number` counts the views from 0; batches may
        end in another order."""
        ...

    def result(self) -> Prediction:
        """The result of the image. It is asked for once, when the outputs of all views are there."""
        ...


class Whole:
    """One view: the image as it is."""

    num_views = 1
    unit = "image"

    def __init__(self, request: Request) -> None:
        self.request = request

    def views(self) -> Iterator[View]:
        yield View(preprocess(self.request.processor, self.request.image))

    def add(self, number: int, outputs: Any) -> None:
        self._result = self.request.prediction(outputs, self.request.size)

    def result(self) -> Prediction:
        return self._result


class Tiles:
    """Overlapping tiles, each with a result of its own; the results are merged (`TileMerger`).

    The processor treats each tile as a photo of its own, so the tiles of a photo of any size come at one scale. Memory
    does not grow with the number of tiles.
    """

    unit = "tile"

    def __init__(self, request: Request) -> None:
        self.request = request
        size = image_size(request.image)
        self.windows = tile_windows(size, request.tiling.size, request.tiling.overlap)
        self.num_views = len(self.windows)
        self.targets = scale_windows(self.windows, size, request.size)
        self.merger = TileMerger(request.options.task, self.targets, request.options.label_ids_to_fuse)

    def views(self) -> Iterator[View]:
        request = self.request
        for window in self.windows:
            yield View(preprocess(request.processor, crop_image(request.image, window)))

    def add(self, number: int, outputs: Any) -> None:
        self.merger.add(number, self.request.prediction(outputs, self.targets[number].size))

    def result(self) -> Prediction:
        return self.merger.result()


def tiles(request: Request) -> Plan:
    """Tiles, or the whole image where one tile covers it.

    Raises:
        ValueError: There is no size of tiles.
    """
    if not request.tiling.size:
        raise ValueError("The plan 'tiles' needs `tile_size`, the side of a tile in pixels: this checkpoint has none.")
    plan = Tiles(request)
    return plan if plan.num_views > 1 else Whole(request)


register("plan", "whole", Part(Whole), exist_ok=True)
register("plan", "tiles", Part(tiles), exist_ok=True)


def plan_names() -> tuple[str, ...]:
    """The plans that there are, also those registered from outside."""
    return names_of("plan")


def make_plan(name: str | None, request: Request) -> Plan:
    """The plan of this name for an image. None is tiles where there is a size of tiles, and else the whole image.

    Raises:
        ValueError: No such plan, or one that the model or the request does not fit.
    """
    if name is None:
        name = "tiles" if request.tiling.size else "whole"
    part = part_of("plan", name)
    part.check(request.model.config)
    return part.build(request)
