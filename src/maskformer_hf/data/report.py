"""What a data set holds and what is wrong with it, found by reading it once from end to end.

Shapes: N segments, P planes, K classes, H W pixels.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .sample import Problem, Task

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
    """One class. Crowds are left out.

    Attributes:
        images: How many images have it.
        segments, pixels: How many segments it has, and their pixels.
        smallest: Pixels of its smallest segment.
        lost: How many of its segments have no pixel at training size.
    """

    label: str
    is_thing: bool
    images: int = 0
    segments: int = 0
    pixels: int = 0
    smallest: int | None = None
    lost: int = 0


class Segment(NamedTuple):
    """A segment of an image.

    area: in pixels. index: of the image. number: of the segment, from 1 as in the planes.
    """

    area: int
    image: str
    index: int
    number: int
    label: str


class Pick(NamedTuple):
    """An image for the contact sheet, and why it was picked.

    number: a segment's number, from 1, if only what surrounds that segment is shown.
    """

    index: int
    reason: str
    number: int | None = None


@dataclass
class DataReport:
    """What `inspect_dataset` found. Shares are parts of all inspected pixels.

    Attributes:
        images, inspected: How many images there are, and how many were inspected.
        sizes: (height, width) and how many images have it, the most frequent sizes first.
        num_sizes: How many different sizes there are.
        background: Share of pixels known to be no segment.
        void: Share of pixels of which nothing is known, crowds included.
        segments, crowds, empty_images: Counts. An empty image has nothing to learn from but its background.
        most_segments: The largest number of segments in one image, and the name of that image.
        smallest: The smallest segments, smallest first.
        errors: Problems that would stop training.
        warnings: Problems that would not, but that the owner of the data should know.
        picks: What a contact sheet should show.
        fingerprints: Hash of each image's pixels -> its name.
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


def shared_images(first: DataReport, second: DataReport) -> Problem | None:
    """Images that two data sets share, by their pixels. A model must not be measured on what it was trained on."""
    shared = [
        f"{second.fingerprints[key]} is {first.fingerprints[key]}"
        for key in first.fingerprints & second.fingerprints.keys()
    ]
    if not shared:
        return None
    return Problem(f"photo of {second.name} that is in {first.name} too", len(shared), sorted(shared)[:10])


def format_report(report: DataReport) -> str:
    """A report as text: the figures, a table of the classes, then warnings and errors with examples of each kind."""
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
    """Aligned rows. There is a column for thing or stuff if both occur, and one for losses if there are any."""
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
