"""What COCO's jsons say, as records for an Arrow table."""

import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from .arrow_cache import Parsed
from .fields import Fields, Identifier
from .problems import ProblemCounter
from .run_lengths import FARTHEST, run_lengths_of
from .text_files import read_json, refuse_utf_16


def json_kind(path: Path) -> str | None:
    """Which of COCO's jsons a file is: "instances", "panoptic", "video", or None if it is none of them.

    It looks for words in the file, as parsing a large json takes minutes.
    """
    if path.stat().st_size == 0:
        return None
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        if path.suffix.lower() == ".json":
            refuse_utf_16(path, text[:4])
        if text.find(b'"annotations"') < 0 or text.find(b'"categories"') < 0:
            return None
        if text.find(b'"segments_info"') >= 0:
            return "panoptic"
        if text.find(b'"videos"') >= 0:
            return "video"
        return "instances" if text.find(b'"images"') >= 0 else None


def read_content(path: Path, keys: Sequence[str], notes: ProblemCounter) -> Fields:
    """Parses a json whose top level has these keys. Raises ValueError naming the file and what is missing."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__} at its top; expected keys {list(keys)}")
    missing = [key for key in keys if key not in content]
    if missing:
        raise ValueError(f"{path} has no {missing}; its keys are {sorted(content)}")
    return Fields(content, str(path), notes)


def parse_instances(path: Path) -> Parsed:
    import pyarrow

    problems = ProblemCounter()
    content = read_content(path, ("images", "annotations", "categories"), problems)
    categories = read_categories(content)
    rows: dict[Identifier, dict[str, Any]] = {
        image_id: {**image, **{name: [] for name in ("annotation_id", "label", "is_crowd", "counts")}}
        for image_id, image in _read_images(content).items()
    }
    # `delay` hides the bar where reading takes less than three seconds.
    progress = tqdm(
        content.objects("annotations", "annotation"),
        f"reading {path.name}",
        len(content.items("annotations")),
        unit=" annotations",
        delay=3,
        leave=False,
    )
    for number, annotation in enumerate(progress):
        image_id = annotation.identifier("image_id")
        row = rows.get(image_id)
        if row is None:
            what = "annotation of an image that the json does not list"
            problems.add(what, f"{annotation.where}: image {image_id}")
            continue
        annotation.where = f"{annotation.where} ({row['file_name']})"
        label = categories.label(annotation)
        is_crowd = annotation.truth("iscrowd", default=False)
        size = (row["height"], row["width"])
        counts = run_lengths_of(annotation.value.get("segmentation"), size, annotation.where, problems)
        if counts is not None:
            row["annotation_id"].append(str(annotation.identifier("id", default=f"number {number}")))
            row["label"].append(label)
            row["is_crowd"].append(is_crowd)
            row["counts"].append(counts)
    if content.items("annotations") and not any(row["counts"] for row in rows.values()):
        found = "; ".join(f"{problem.count} x {problem.what}" for problem in problems.problems())
        raise ValueError(f"no annotation of {path} marks a pixel ({found}); masks cannot be learned from boxes alone")
    schema = pyarrow.schema(
        {
            "file_name": pyarrow.string(),
            "height": pyarrow.int32(),
            "width": pyarrow.int32(),
            "annotation_id": pyarrow.list_(pyarrow.string()),
            "label": pyarrow.list_(pyarrow.int32()),
            "is_crowd": pyarrow.list_(pyarrow.bool_()),
            "counts": pyarrow.list_(pyarrow.binary()),
        }
    )
    return schema, rows.values(), facts_of(categories, problems)


def parse_panoptic(path: Path) -> Parsed:
    import pyarrow

    problems = ProblemCounter()
    content = read_content(path, ("images", "annotations", "categories"), problems)
    categories = read_categories(content)
    unclear = [name for name, thing in zip(categories.names, categories.is_thing, strict=True) if thing is None]
    if unclear:
        raise ValueError(f"categories {unclear} of {path} have no isthing; write 1 for things, 0 for stuff")
    images = _read_images(content)
    rows: dict[Identifier, dict[str, Any]] = {}
    for annotation in content.objects("annotations", "the annotation of image", "image_id"):
        image_id = annotation.identifier("image_id")
        if image_id not in images:
            problems.add("annotation of an image that the json does not list", annotation.where)
            continue
        if image_id in rows:
            raise ValueError(f"{path} has two annotations of image {image_id}")
        rows[image_id] = {**images[image_id], **_segments(annotation, images[image_id]["file_name"], categories)}
    for image_id, image in images.items():
        if image_id not in rows:
            problems.add("image without annotation", f"image {image_id} of {path} ({image['file_name']})")
    if not rows:
        raise ValueError(f"{path} has no annotation of any of its images")
    schema = pyarrow.schema(
        {
            "file_name": pyarrow.string(),
            "height": pyarrow.int32(),
            "width": pyarrow.int32(),
            "png": pyarrow.string(),
            "segment_id": pyarrow.list_(pyarrow.int32()),
            "label": pyarrow.list_(pyarrow.int32()),
            "is_crowd": pyarrow.list_(pyarrow.bool_()),
        }
    )
    return schema, rows.values(), facts_of(categories, problems)


def _segments(annotation: Fields, photo: str, categories: "_Categories") -> dict[str, Any]:
    """The name of the PNG and the segments in it, of which there is one list for each of their fields."""
    ids, labels, is_crowd = [], [], []
    for segment in annotation.objects("segments_info", "segment"):
        segment.where = f"{segment.where} ({photo})"
        # Ids have 24 bits.
        ids.append(segment.integer("id", least=0, most=2**24 - 1))
        labels.append(categories.label(segment))
        is_crowd.append(segment.truth("iscrowd", default=False))
    if len(set(ids)) < len(ids):
        raise ValueError(f"{annotation.where} ({photo}) lists a segment twice")
    return {"png": annotation.text("file_name"), "segment_id": ids, "label": labels, "is_crowd": is_crowd}


class _Categories(NamedTuple):
    names: list[str]
    ids: list[list[Identifier]]
    is_thing: list[bool | None]
    supercategories: dict[str, str]
    label_of_id: dict[Identifier, int]

    def label(self, entry: Fields) -> int:
        """The class of an annotation or a segment."""
        category_id = entry.identifier("category_id")
        if category_id not in self.label_of_id:
            raise ValueError(f"{entry.where} has category_id {category_id}, which the json's categories do not list")
        return self.label_of_id[category_id]


def read_categories(content: Fields) -> _Categories:
    """Classes in the order of their ids. Categories of one name become one class, as some exporters repeat them."""
    found = _Categories([], [], [], {}, {})
    entries = [(entry.identifier("id"), entry) for entry in content.objects("categories", "category")]
    # Numbers come before text.
    for category_id, entry in sorted(entries, key=lambda item: (isinstance(item[0], str), item[0])):
        name, thing = entry.text("name"), entry.truth("isthing", default=None)
        if category_id in found.label_of_id:
            raise ValueError(f"{content.where} has two categories of id {category_id}")
        if name in found.names:
            label = found.names.index(name)
            if found.is_thing[label] != thing:
                raise ValueError(f"{content.where} has two categories {name!r}, one a thing and one not; rename one")
            found.ids[label].append(category_id)
        else:
            label = len(found.names)
            found.names.append(name)
            found.ids.append([category_id])
            found.is_thing.append(thing)
            if entry.value.get("supercategory"):
                found.supercategories[name] = entry.text("supercategory")
        found.label_of_id[category_id] = label
    if not found.names:
        raise ValueError(f"{content.where} has no categories; each class needs an id and a name")
    return found


def read_size(entry: Fields) -> dict[str, int]:
    """height and width of a photo or a video."""
    height, width = (entry.integer(key, least=1, most=FARTHEST) for key in ("height", "width"))
    if height * width >= 2**31:
        raise ValueError(f"{entry.where} is {height} x {width}, which is more than a mask can have; cut it into parts")
    return {"height": height, "width": width}


def _read_images(content: Fields) -> dict[Identifier, dict[str, Any]]:
    """Image id -> its name and size."""
    images: dict[Identifier, dict[str, Any]] = {}
    for image in content.objects("images", "image"):
        image_id = image.identifier("id")
        if image_id in images:
            raise ValueError(f"{content.where} has two images of id {image_id}")
        images[image_id] = {"file_name": image.text("file_name"), **read_size(image)}
    if not images:
        raise ValueError(f"{content.where} lists no images")
    return images


def facts_of(categories: _Categories, problems: ProblemCounter) -> dict[str, Any]:
    return {
        "names": categories.names,
        "category_ids": categories.ids,
        "is_thing": categories.is_thing,
        "supercategories": categories.supercategories,
        "problems": problems.problems(),
    }
