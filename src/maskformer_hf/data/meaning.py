"""Labels that mean something else than their owner thinks: what they cannot teach, and photos that EXIF turns."""

from collections.abc import Iterator

from .problems import ProblemCounter
from .report import DataReport
from .sample import Problem

# So many images of a larger data set stand for all of it.
ENOUGH_IMAGES = 100
# Names of splits that teach nothing anyhow.
MEASURED = ("test", "val", "valid", "validation")

STORED = "photo that EXIF turns, with labels for its pixels as they are stored, so that it is seen lying on its side"
UNCLEAR = "photo that EXIF turns or mirrors within its size, so that nothing tells for which pixels its labels are"


class Notes:
    """What is kept of each image, in case that all others are like it.

    Attributes:
        crowds, empty, two_valued: name of the image, with the number of the segment for crowds.
    """

    def __init__(self) -> None:
        self.crowds, self.empty, self.two_valued = ProblemCounter(), ProblemCounter(), ProblemCounter()


def useless_labels(report: DataReport, notes: Notes) -> Iterator[tuple[bool, Problem]]:
    """Problems of the labels as a whole, and whether they keep a model from learning anything."""
    if not report.inspected:
        return
    is_certain = report.inspected == report.images or report.inspected >= ENOUGH_IMAGES
    # A few photos to measure on may well be of one class, or of nothing.
    is_certain = is_certain and report.name not in MEASURED
    present = [row for row in report.classes if row.segments]
    if report.crowds and not any(row.is_thing for row in present):
        what = "object that is a crowd (iscrowd 1), as all others are: a crowd is no object to learn from"
        yield is_certain and not present, _problem(notes.crowds, what)
    elif not present:
        yield is_certain, _problem(notes.empty, "image without a segment, as all others are: there is nothing to learn")
    if report.task == "semantic" and len(present) == 1 and not report.background:
        what = f"image of {present[0].label} alone, as all others are: there is nothing to tell it from"
        if report.void:
            what = (
                f"image of only {present[0].label} and void, as all others are: there is nothing to tell it from. In "
                "masks of 0 and 255 the 255 is void; write 1, or the id of another class"
            )
        yield is_certain, _problem(notes.two_valued, what)


def turned_photo(orientation: int, stored: tuple[int, int], labels: tuple[int, int]) -> str | None:
    """What there is to say of a photo with labels that EXIF turns.

    Args:
        orientation: as EXIF numbers it; 1 is upright.
        stored: (height, width) of the pixels.
        labels: (height, width).
    """
    if orientation not in range(2, 9):
        return None
    if orientation < 5 or stored[0] == stored[1]:
        return UNCLEAR
    return STORED if labels == stored else None


def _problem(notes: ProblemCounter, what: str) -> Problem:
    [found] = notes.problems() or [Problem(what, 0, [])]
    return found._replace(what=what)
