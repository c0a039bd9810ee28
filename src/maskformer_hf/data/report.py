"""What a data set holds and what is wrong with it, found by reading it once from end to end.

Shapes: N segments, P planes, K classes, H W pixels.
"""

import hashlib
import heapq
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from .records import ProblemCounter
from .sample import VOID, Problem, Sample, SegmentationDataset, Task, void_mask

Size = tuple[int, int]

# How many are named: of small segments, of image sizes.
NUM_SMALLEST = 10
NUM_SIZES = 5
# What a mask cell of the models is wide and high, in pixels of their input.
MASK_STRIDE = 4

LOST = "segment of which no pixel is left at training size"
TINY = "segment that is left at training size, but no cell of the predicted masks falls on"


@dataclass
class ClassReport:
    """One class: `images` that have it, its `segments` (crowds aside), their `pixels`, those of the `smallest`, and how
    many of them are `lost` at training size."""

    label: str
    is_thing: bool
    images: int = 0
    segments: int = 0
    pixels: int = 0
    smallest: int | None = None
    lost: int = 0


class Segment(NamedTuple):
    """A segment of an image: `number` counts from 1, as in the planes; `area` in pixels."""

    area: int
    image: str
    index: int
    number: int
    label: str


class Pick(NamedTuple):
    """An image for the contact sheet and why; with a segment's number, what surrounds it."""

    index: int
    reason: str
    number: int | None = None


@dataclass
class DataReport:
    """What `inspect_dataset` found. Shares are parts of all pixels that were looked at.

    Attributes:
        images, inspected: How many there are, and how many were looked at.
        sizes: (height, width) and how many images have it, the most frequent first; `num_sizes` there are in all.
        background: Share of pixels known to be no segment; `void`: of those of which nothing is known, crowds included.
        segments, crowds, empty_images: Counts; an empty image has nothing to learn from but its background.
        most_segments: Of one image, and its name.
        smallest: The smallest segments, smallest first.
        errors: What training would stumble over; `warnings`: what it would not, but its owner may not know.
        picks: What a contact sheet should show.
        fingerprints: Hash of each photo's pixels -> its name.
    """

    name: str
    task: Task
    images: int
    inspected: int = 0
    classes: list[ClassReport] = field(default_factory=list)
    sizes: list[tuple[Size, int]] = field(default_factory=list)
    num_sizes: int = 0
    smallest_side: int = 0
    largest_side: int = 0
    background: float = 0.0
    void: float = 0.0
    segments: int = 0
    crowds: int = 0
    empty_images: int = 0
    most_segments: tuple[int, str] = (0, "")
    smallest: list[Segment] = field(default_factory=list)
    errors: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    picks: list[Pick] = field(default_factory=list)
    fingerprints: dict[bytes, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """All but `picks` and `fingerprints`, as plain values."""
        plain = {name: value for name, value in vars(self).items() if name not in ("picks", "fingerprints")}
        plain["classes"] = [vars(item) for item in self.classes]
        plain["sizes"] = [{"height": size[0], "width": size[1], "images": count} for size, count in self.sizes]
        plain["smallest"] = [
            {"label": item.label, "area": item.area, "image": item.image, "segment": item.number}
            for item in self.smallest
        ]
        plain["most_segments"] = {"segments": self.most_segments[0], "image": self.most_segments[1]}
        for kind in ("errors", "warnings"):
            plain[kind] = [problem._asdict() for problem in getattr(self, kind)]
        return plain


def inspect_dataset(
    dataset: SegmentationDataset,
    *,
    name: str = "",
    max_images: int | None = None,
    training_size: Callable[[Size], Size] | None = None,
    crop_size: Size | None = None,
    num_queries: int | None = None,
    max_picks: int = 48,
    progress: bool = True,
) -> DataReport:
    """Reads every image of a data set, or `max_images` of them at even distances, and never stops at a bad one.

    Memory grows by some bytes an image, none of them pixels.

    Args:
        name: what the report calls the data set, such as "train".
        training_size: the smallest (height, width) to which training resizes an image of a (height, width). Segments
            are reduced to it as training does, by the nearest pixel.
        crop_size: (height, width) of the window that training cuts out then.
        num_queries: of the model, which can find no more segments: in an image, or with `crop_size` in a window.
    """
    survey = _Survey(dataset, name, training_size, crop_size, num_queries)
    count = len(dataset)
    wanted = count if max_images is None else min(count, max_images)
    # range(n) in even steps
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

    def __init__(
        self,
        dataset: SegmentationDataset,
        name: str,
        training_size: Callable[[Size], Size] | None,
        crop_size: Size | None,
        num_queries: int | None,
    ) -> None:
        self.dataset = dataset
        self.labels = [dataset.id2label[index] for index in range(len(dataset.id2label))]
        self.training_size = training_size
        self.crop_size = crop_size
        self.num_queries = num_queries
        stuff = set(range(len(self.labels))) if dataset.task == "semantic" else set(dataset.label_ids_to_fuse)
        classes = [ClassReport(label, index not in stuff) for index, label in enumerate(self.labels)]
        self.data = DataReport(name, dataset.task, len(dataset), classes=classes)
        self.errors, self.warnings = ProblemCounter(), ProblemCounter()
        self.sizes: Counter[Size] = Counter()
        self.pixels = self.void_pixels = self.background_pixels = 0
        # The negative area first: the heap drops the largest of the smallest.
        self.smallest: list[tuple[int, Segment]] = []
        self.odd_images: dict[str, int] = {}  # reason -> the first image of that kind
        self.classes_of_image: dict[int, int] = {}  # index -> bit k is set if it has class k
        self.most_segments = -1, 0

    def add(self, index: int, sample: Sample) -> None:
        planes_PHW = sample["planes"].as_subclass(torch.Tensor)
        labels, is_crowd = sample["labels"].tolist(), sample["is_crowd"].tolist()
        name, num_segments = sample["name"], len(labels)
        lowest, highest = (int(value) for value in torch.aminmax(planes_PHW))
        if lowest < VOID or highest > num_segments:
            number = lowest if lowest < VOID else highest
            self.errors.add("pixels of a segment that is not listed", f"{name}: number {number} of {num_segments}")
            return
        if any(not 0 <= label < len(self.labels) for label in labels):
            number, label = next(item for item in enumerate(labels, start=1) if not 0 <= item[1] < len(self.labels))
            self.errors.add(
                "label that is no class", f"{name}: segment {number} has label {label}, of {len(self.labels)} classes"
            )
            return
        if tuple(sample["image"].shape[-2:]) != tuple(planes_PHW.shape[-2:]):
            self.errors.add(
                "photo and labels of different sizes",
                f"{name}: {tuple(sample['image'].shape[-2:])} and {tuple(planes_PHW.shape[-2:])}",
            )
            return

        self.data.inspected += 1
        self._add_photo(index, sample)
        areas = _areas(planes_PHW, num_segments)
        self._add_pixels(index, sample)
        resized_PHW, resized_areas, cell_areas = planes_PHW, areas, areas
        if self.training_size is not None:
            resized_PHW = _nearest(planes_PHW, self.training_size((planes_PHW.shape[1], planes_PHW.shape[2])))
            cells = [max(1, side // MASK_STRIDE) for side in resized_PHW.shape[1:]]
            resized_areas = _areas(resized_PHW, num_segments)
            cell_areas = _areas(_nearest(planes_PHW, (cells[0], cells[1])), num_segments)
        present = 0
        for number, (label, crowd, area) in enumerate(zip(labels, is_crowd, areas, strict=True), start=1):
            if area == 0:
                self.warnings.add("segment without a pixel", f"{name}: segment {number}, {self.labels[label]}")
                continue
            if crowd:
                self.data.crowds += 1
                continue
            row = self.data.classes[label]
            row.images += 1 - (present >> label & 1)
            present |= 1 << label
            row.segments += 1
            row.pixels += area
            row.smallest = area if row.smallest is None else min(row.smallest, area)
            self.data.segments += 1
            entry = -area, Segment(area, name, index, number, self.labels[label])
            if len(self.smallest) < NUM_SMALLEST:
                heapq.heappush(self.smallest, entry)
            elif entry > self.smallest[0]:
                heapq.heapreplace(self.smallest, entry)
            if not resized_areas[number - 1]:
                row.lost += 1
                self.warnings.add(LOST, f"{name}: segment {number}, {self.labels[label]}, {area} px")
            elif not cell_areas[number - 1]:
                self.warnings.add(TINY, f"{name}: segment {number}, {self.labels[label]}, {area} px")
        self.classes_of_image[index] = present
        num_targets = sum(area > 0 and not crowd for area, crowd in zip(areas, is_crowd, strict=True))
        if num_targets > self.most_segments[0]:
            self.most_segments = num_targets, index
            self.data.most_segments = num_targets, name
        if num_targets == 0:
            self.data.empty_images += 1
            self.odd_images.setdefault("no segment", index)
        if self.num_queries is not None and num_targets > self.num_queries:
            most = self._most_in_a_window(resized_PHW, is_crowd)
            if most > self.num_queries:
                where = "image" if self.crop_size is None else "window of {} x {}".format(*self.crop_size)
                what = f"{where} of more segments than the {self.num_queries} queries"
                self.warnings.add(what, f"{name}: {most} segments")

    def _most_in_a_window(self, planes_PHW: torch.Tensor, is_crowd: list[bool]) -> int:
        """Of an image at training size, the largest number of segments in a window that training may cut out."""
        height, width = self.crop_size or planes_PHW.shape[1:]
        targets = torch.tensor([not crowd for crowd in is_crowd])
        most = 0
        # Windows that overlap by half: the training's own are drawn by chance.
        for top in range(0, max(1, planes_PHW.shape[1] - height // 2), max(1, height // 2)):
            for left in range(0, max(1, planes_PHW.shape[2] - width // 2), max(1, width // 2)):
                areas = _areas(planes_PHW[:, top : top + height, left : left + width], len(is_crowd))
                most = max(most, int((torch.tensor(areas) > 0)[targets].sum()))
        return most

    def _add_photo(self, index: int, sample: Sample) -> None:
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

    def _add_pixels(self, index: int, sample: Sample) -> None:
        planes_PHW = sample["planes"].as_subclass(torch.Tensor)
        num_pixels = planes_PHW[0].numel()
        void = int(void_mask(sample).sum())
        self.pixels += num_pixels
        self.void_pixels += void
        self.background_pixels += int((planes_PHW == 0).all(0).sum())
        if void == num_pixels:
            self.warnings.add("image of which nothing is known", sample["name"])
            self.odd_images.setdefault("void all over", index)

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
        data.picks = list(self._picks(max_picks))
        return data

    def _picks(self, limit: int) -> Iterator[Pick]:
        """Images that show every class between them, then the odd ones, then any, a dozen at least."""
        chosen: dict[int, Pick] = {}
        missing = 0
        for present in self.classes_of_image.values():
            missing |= present
        while missing and len(chosen) < limit:
            index = max(self.classes_of_image, key=lambda index: (self.classes_of_image[index] & missing).bit_count())
            new = self.classes_of_image[index] & missing
            names = [label for number, label in enumerate(self.labels) if new >> number & 1]
            chosen[index] = Pick(index, ", ".join(names))
            missing &= ~new
        extra = []
        if self.most_segments[0] > 1:
            extra.append(Pick(self.most_segments[1], f"most segments: {self.most_segments[0]}"))
        by_image = {item.index: item for item in reversed(self.data.smallest)}
        for item in sorted(by_image.values())[:3]:
            extra.append(Pick(item.index, f"smallest: {item.label}, {item.area} px", item.number))
        extra += [Pick(index, reason) for reason, index in self.odd_images.items()][:6]
        # A window on a segment may show an image again.
        picks = [*chosen.values(), *(pick for pick in extra if pick.index not in chosen or pick.number is not None)]
        shown = {pick.index for pick in picks}
        others = [index for index in self.classes_of_image if index not in shown]
        wanted = max(0, min(12, limit) - len(picks))
        step = max(1, len(others) // max(1, wanted))
        picks += [Pick(index, "") for index in others[::step][:wanted]]
        yield from picks[:limit]


def _areas(planes_PHW: torch.Tensor, num_segments: int) -> list[int]:
    """Pixels of each segment."""
    return torch.bincount(planes_PHW.flatten() - VOID, minlength=num_segments + 2)[2:].tolist()


def _nearest(planes_PHW: torch.Tensor, size: Size) -> torch.Tensor:
    """Resized by the rule of torch's "nearest", which training uses: (P, *size)."""
    for dim, length in ((1, size[0]), (2, size[1])):
        place = torch.arange(length, dtype=torch.float32) * (planes_PHW.shape[dim] / length)
        planes_PHW = planes_PHW.index_select(dim, place.long().clamp(max=planes_PHW.shape[dim] - 1))
    return planes_PHW


def photos_in_both(first: DataReport, second: DataReport) -> Problem | None:
    """Photos, by their pixels, that two data sets share: a model must not be measured on what it was trained on."""
    shared = [
        f"{second.fingerprints[key]} is {first.fingerprints[key]}"
        for key in first.fingerprints & second.fingerprints.keys()
    ]
    if not shared:
        return None
    return Problem(f"photo of {second.name} that is in {first.name} too", len(shared), sorted(shared)[:10])


def format_report(report: DataReport) -> str:
    """A report as text: the figures, a table of the classes, then warnings and errors with the first of each kind."""
    inspected = f", {report.inspected:,} of them looked at" if report.inspected != report.images else ""
    classes = f"{len(report.classes):,} {'class' if len(report.classes) == 1 else 'classes'}"
    sizes = ", ".join(f"{height} x {width} ({count:,})" for (height, width), count in report.sizes)
    if report.num_sizes > len(report.sizes):
        sizes += f" and {report.num_sizes - len(report.sizes):,} other sizes"
    if report.num_sizes > 1:
        sizes += f"; sides of {report.smallest_side:,} to {report.largest_side:,}"
    segments = f"{report.segments:,}, {report.segments / max(1, report.inspected):.1f} an image"
    if report.segments:
        segments += f", at most {report.most_segments[0]:,} ({_file_name(report.most_segments[1])})"
    if report.crowds:
        segments += f"; {report.crowds:,} crowds"
    smallest = ", ".join(f"{item.label} {item.area:,} px ({_file_name(item.image)})" for item in report.smallest[:3])
    lines = [
        f"{report.name or 'data'}: {report.images:,} images{inspected}, {report.task}, {classes}",
        f"  height x width  {sizes or 'none'}",
        f"  segments        {segments}; {report.empty_images:,} images without one",
        f"  smallest        {smallest or 'none'}",
        f"  pixels          {report.void:.1%} void, {report.background:.1%} background",
        "",
        *_class_table(report),
    ]
    for title, problems in (("warnings", report.warnings), ("errors", report.errors)):
        if problems:
            lines += ["", f"  {title}"]
        for problem in problems:
            lines.append(f"    {problem.count:,} x {problem.what}")
            lines += [f"      {example}" for example in problem.examples[:3]]
            if problem.count > 3:
                lines.append("      ...")
    return "\n".join(lines)


def _file_name(path: str) -> str:
    return path.replace("\\", "/").rsplit("/", 1)[-1]


def _class_table(report: DataReport) -> list[str]:
    """Aligned rows; whether things or stuff is said where there are both, what is lost where anything is."""
    total = sum(row.pixels for row in report.classes) or 1
    columns = [["class", *(row.label for row in report.classes)]]
    if len({row.is_thing for row in report.classes}) > 1:
        columns.append(["kind", *("thing" if row.is_thing else "stuff" for row in report.classes)])
    columns.append(["images", *(f"{row.images:,}" for row in report.classes)])
    columns.append(["segments", *(f"{row.segments:,}" for row in report.classes)])
    columns.append(["share", *(f"{row.pixels / total:.1%}" for row in report.classes)])
    columns.append(["smallest", *("-" if row.smallest is None else f"{row.smallest:,} px" for row in report.classes)])
    if any(row.lost for row in report.classes):
        columns.append(["lost", *(f"{row.lost:,}" for row in report.classes)])
    widths = [max(len(cell) for cell in column) for column in columns]
    return [
        "  " + "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
        for row in zip(*columns, strict=True)
    ]
