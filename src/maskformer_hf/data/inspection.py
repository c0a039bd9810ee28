"""Reading a data set once from end to end to find out what it holds and what is wrong with it.

Shapes: N segments, P planes, H W pixels.
"""

import hashlib
import heapq
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from tqdm import tqdm

from ..models.image_opening import orientation_of
from ..models.resize import resize_nearest
from .meaning import Notes, turned_photo, useless_labels
from .problems import ProblemCounter
from .report import ClassReport, DataReport, Pick, Segment, Size
from .sample import VOID, Problem, Sample, SegmentationDataset, void_mask

# How many small segments and image sizes the report names.
NUM_SMALLEST = 10
NUM_SIZES = 5
# The models predict masks of a quarter of their input's height and width: a cell is 4 x 4 pixels.
MASK_STRIDE = 4

LOST = "segment of which no pixel is left at training size"
TINY = "segment that is left at training size, but no cell of the predicted masks falls on"


@dataclass(frozen=True)
class TrainingView:
    """What training makes of an image, as far as that can lose segments.

    Attributes:
        size_of: The smallest (height, width) to which training resizes an image of a (height, width). Segments are
            reduced to it as training does, by the nearest pixel.
        crop_size: (height, width) of the window that training cuts out then.
        num_queries: The number of queries of the model, which can find no more segments in an image, or in a window.
    """

    size_of: Callable[[Size], Size] | None = None
    crop_size: Size | None = None
    num_queries: int | None = None


def inspect_dataset(
    dataset: SegmentationDataset,
    *,
    name: str = "",
    max_images: int | None = None,
    training: TrainingView | None = None,
    max_picks: int = 48,
    progress: bool = True,
) -> DataReport:
    """Reads every image of a data set, or `max_images` of them at even distances, and never stops at a bad one.

    Memory grows by some bytes an image, none of them pixels.

    Args:
        name: what the report calls the data set, such as "train".
        training: how training will see the images, to find what it loses.
    """
    survey = _Survey(dataset, name, training or TrainingView())
    count = len(dataset)
    wanted = count if max_images is None else min(count, max_images)
    # range(count) in even steps
    indices = [place * count // wanted for place in range(wanted)]
    for index in tqdm(indices, desc=f"Checking {name}".strip(), unit="image", disable=None if progress else True):
        try:
            sample = dataset[index]
        except (ValueError, OSError, SyntaxError) as error:  # Pillow reports a broken PNG as a SyntaxError
            lines = str(error).strip().splitlines() or [type(error).__name__]
            survey.errors.add("image or annotation that cannot be read", f"image {index}: {lines[0]}")
            continue
        survey.add(index, sample)
    return survey.report(max_picks)


class _Survey:
    """The counts while a data set is read."""

    def __init__(self, dataset: SegmentationDataset, name: str, training: TrainingView) -> None:
        self.dataset = dataset
        self.labels = [dataset.id2label[index] for index in range(len(dataset.id2label))]
        self.training = training
        stuff = set(range(len(self.labels))) if dataset.task == "semantic" else set(dataset.label_ids_to_fuse)
        classes = [ClassReport(label, index not in stuff) for index, label in enumerate(self.labels)]
        self.data = DataReport(name, dataset.task, len(dataset), classes=classes)
        self.errors, self.warnings, self.notes = ProblemCounter(), ProblemCounter(), Notes()
        self.paths: list[str] = getattr(dataset, "image_paths", [])
        self.sizes: Counter[Size] = Counter()
        self.pixels = self.void_pixels = self.background_pixels = 0
        # A heap drops its smallest entry, here the largest of the small segments: their areas are negative.
        self.smallest: list[tuple[int, Segment]] = []
        self.odd_images: dict[str, int] = {}  # reason -> the first image with it
        self.classes_of_image: dict[int, tuple[int, ...]] = {}  # a tuple takes a third of the memory of a set
        self.most_segments = -1, 0  # their number, and the image's index

    def add(self, index: int, sample: Sample) -> None:
        if self._is_wrong(sample):
            return
        self.data.inspected += 1
        self._add_image(index, sample)
        self._add_pixels(index, sample)
        planes_PHW = sample["planes"].as_subclass(torch.Tensor)
        is_crowd = sample["is_crowd"].tolist()
        areas = segment_areas(planes_PHW, len(is_crowd))
        self._add_segments(index, sample, areas)
        resized_PHW = planes_PHW
        if self.training.size_of is not None:
            resized_PHW = resize_nearest(planes_PHW, self.training.size_of((planes_PHW.shape[1], planes_PHW.shape[2])))
            self._add_losses(sample, areas, resized_PHW)
        num_targets = sum(area > 0 and not crowd for area, crowd in zip(areas, is_crowd, strict=True))
        if num_targets > self.most_segments[0]:
            self.most_segments = num_targets, index
            self.data.most_segments = num_targets, sample["name"]
        if num_targets == 0:
            self.data.empty_images += 1
            self.odd_images.setdefault("no segment", index)
            self.notes.empty.add("image", sample["name"])
        self._compare_with_queries(sample, num_targets, resized_PHW)

    def _is_wrong(self, sample: Sample) -> bool:
        """Whether labels, planes and image contradict each other, which is noted as an error."""
        planes_PHW = sample["planes"].as_subclass(torch.Tensor)
        labels, name = sample["labels"].tolist(), sample["name"]
        lowest, highest = (int(value) for value in torch.aminmax(planes_PHW))
        image_size, map_size = tuple(sample["image"].shape[-2:]), tuple(planes_PHW.shape[-2:])
        unknown = [item for item in enumerate(labels, start=1) if not 0 <= item[1] < len(self.labels)]
        if lowest < VOID or highest > len(labels):
            number = lowest if lowest < VOID else highest
            self.errors.add("pixels of a segment that is not listed", f"{name}: number {number} of {len(labels)}")
        elif unknown:
            number, label = unknown[0]
            self.errors.add(
                "label that is no class", f"{name}: segment {number} has label {label}, of {len(self.labels)} classes"
            )
        elif image_size != map_size:
            self.errors.add("photo and labels of different sizes", f"{name}: {image_size} and {map_size}")
        else:
            return False
        return True

    def _add_image(self, index: int, sample: Sample) -> None:
        height, width = sample["image"].shape[-2:]
        self.sizes[height, width] += 1
        pixels = sample["image"].as_subclass(torch.Tensor).contiguous().numpy()
        fingerprint = hashlib.blake2b(f"{height} x {width}".encode(), digest_size=16)
        fingerprint.update(pixels.data)
        first = self.data.fingerprints.get(fingerprint.digest())
        if first is None:
            self.data.fingerprints[fingerprint.digest()] = sample["name"]
        else:
            self.warnings.add("photo that is there twice", f"{sample['name']} is {first}")
            self.odd_images.setdefault("a photo that is there twice", index)
        if self.paths and (turned := turned_photo(*orientation_of(self.paths[index]), (height, width))):
            self.warnings.add(turned, sample["name"])
            self.odd_images.setdefault("turned by EXIF", index)

    def _add_pixels(self, index: int, sample: Sample) -> None:
        planes_PHW = sample["planes"].as_subclass(torch.Tensor)
        num_pixels = planes_PHW[0].numel()
        void = int(void_mask(sample).sum())
        self.pixels += num_pixels
        self.void_pixels += void
        self.background_pixels += int((planes_PHW == 0).all(0).sum())
        self.notes.two_valued.add("image", sample["name"])
        if void == num_pixels:
            self.warnings.add("image of which nothing is known", sample["name"])
            self.odd_images.setdefault("void all over", index)

    def _add_segments(self, index: int, sample: Sample, areas: list[int]) -> None:
        name, present = sample["name"], set()
        segments = zip(sample["labels"].tolist(), sample["is_crowd"].tolist(), areas, strict=True)
        for number, (label, crowd, area) in enumerate(segments, start=1):
            if area == 0:
                self.warnings.add("segment without a pixel", f"{name}: segment {number}, {self.labels[label]}")
                continue
            if crowd:
                self.data.crowds += 1
                self.notes.crowds.add("crowd", f"{name}: segment {number}, {self.labels[label]}")
                continue
            present.add(label)
            row = self.data.classes[label]
            row.segments += 1
            row.pixels += area
            row.smallest = area if row.smallest is None else min(row.smallest, area)
            self.data.segments += 1
            entry = -area, Segment(area, name, index, number, self.labels[label])
            if len(self.smallest) < NUM_SMALLEST:
                heapq.heappush(self.smallest, entry)
            elif entry > self.smallest[0]:
                heapq.heapreplace(self.smallest, entry)
        for label in present:
            self.data.classes[label].images += 1
        self.classes_of_image[index] = tuple(sorted(present))

    def _add_losses(self, sample: Sample, areas: list[int], resized_PHW: torch.Tensor) -> None:
        """Notes segments that training size takes all pixels from, or all cells of the predicted masks."""
        cells = [max(1, side // MASK_STRIDE) for side in resized_PHW.shape[1:]]
        cells_PHW = resize_nearest(sample["planes"].as_subclass(torch.Tensor), (cells[0], cells[1]))
        areas_left, cells_left = (segment_areas(planes, len(areas)) for planes in (resized_PHW, cells_PHW))
        for index, (label, crowd) in enumerate(
            zip(sample["labels"].tolist(), sample["is_crowd"].tolist(), strict=True)
        ):
            if crowd or not areas[index]:
                continue
            where = f"{sample['name']}: segment {index + 1}, {self.labels[label]}, {areas[index]} px"
            if not areas_left[index]:
                self.data.classes[label].lost += 1
                self.warnings.add(LOST, where)
            elif not cells_left[index]:
                self.warnings.add(TINY, where)

    def _compare_with_queries(self, sample: Sample, num_targets: int, resized_PHW: torch.Tensor) -> None:
        """Notes an image, or a window that training may cut out of it, of more segments than there are queries."""
        num_queries, crop_size = self.training.num_queries, self.training.crop_size
        if num_queries is None or num_targets <= num_queries:
            return
        most = most_segments_in_window(resized_PHW, sample["is_crowd"], crop_size or resized_PHW.shape[1:])
        if most > num_queries:
            where = "image" if crop_size is None else "window of {} x {}".format(*crop_size)
            what = f"{where} of more segments than the {num_queries} queries"
            self.warnings.add(what, f"{sample['name']}: {most} segments")

    def report(self, max_picks: int) -> DataReport:
        data = self.data
        data.sizes, data.num_sizes = self.sizes.most_common(NUM_SIZES), len(self.sizes)
        sides = [side for size in self.sizes for side in size]
        data.smallest_side, data.largest_side = min(sides, default=0), max(sides, default=0)
        data.background = self.background_pixels / max(1, self.pixels)
        data.void = self.void_pixels / max(1, self.pixels)
        data.smallest = sorted(segment for _, segment in self.smallest)
        missing = [row.label for row in data.classes if not row.segments]
        if missing:
            what = "class without a segment" + (" in what was looked at" if data.inspected < data.images else "")
            data.warnings.append(Problem(what, len(missing), missing[:10]))
        if data.images == 0:
            self.errors.add("data set without an image", data.name or type(self.dataset).__name__)
        data.warnings += [*getattr(self.dataset, "problems", []), *self.warnings.problems()]
        data.errors += self.errors.problems()
        for keeps_from_learning, problem in useless_labels(data, self.notes):
            (data.errors if keeps_from_learning else data.warnings).append(problem)
        data.picks = list(self._picks(max_picks))
        return data

    def _picks(self, limit: int) -> Iterator[Pick]:
        """Images that together show every class, then the odd ones, then others until there are a dozen."""
        chosen: dict[int, Pick] = {}
        missing: set[int] = set().union(*self.classes_of_image.values())
        while missing and len(chosen) < limit:
            index = max(
                self.classes_of_image, key=lambda index: len(missing.intersection(self.classes_of_image[index]))
            )
            new = missing.intersection(self.classes_of_image[index])
            chosen[index] = Pick(index, ", ".join(self.labels[label] for label in sorted(new)))
            missing -= new
        extra = []
        if self.most_segments[0] > 1:
            extra.append(Pick(self.most_segments[1], f"most segments: {self.most_segments[0]}"))
        by_image = {item.index: item for item in reversed(self.data.smallest)}
        for item in sorted(by_image.values())[:3]:
            extra.append(Pick(item.index, f"smallest: {item.label}, {item.area} px", item.number))
        extra += [Pick(index, reason) for reason, index in self.odd_images.items()][:6]
        # An image may come again where only a window around a segment is shown.
        picks = [*chosen.values(), *(pick for pick in extra if pick.index not in chosen or pick.number is not None)]
        shown = {pick.index for pick in picks}
        others = [index for index in self.classes_of_image if index not in shown]
        wanted = max(0, min(12, limit) - len(picks))
        step = max(1, len(others) // max(1, wanted))
        picks += [Pick(index, "") for index in others[::step][:wanted]]
        yield from picks[:limit]


def segment_areas(planes_PHW: torch.Tensor, num_segments: int) -> list[int]:
    """Pixels of each segment."""
    return torch.bincount(planes_PHW.flatten() - VOID, minlength=num_segments + 2)[2:].tolist()


def most_segments_in_window(planes_PHW: torch.Tensor, is_crowd_N: torch.Tensor, window: tuple[int, ...]) -> int:
    """The largest number of segments that a window (height, width) shows, crowds left out."""
    height, width = window
    most = 0
    # Training draws its windows at random. Here they overlap by half, which finds about the largest number.
    for top in range(0, max(1, planes_PHW.shape[1] - height // 2), max(1, height // 2)):
        for left in range(0, max(1, planes_PHW.shape[2] - width // 2), max(1, width // 2)):
            areas = segment_areas(planes_PHW[:, top : top + height, left : left + width], len(is_crowd_N))
            most = max(most, int((torch.tensor(areas) > 0)[~is_crowd_N].sum()))
    return most
