"""What COCO's jsons say, as records for an Arrow table."""

import json
import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from .arrow_cache import Parsed
from .problems import ProblemCounter
from .run_lengths import run_lengths_of


def json_kind(path: Path) -> str | None:
    """Which of COCO's jsons a file is: "instances", "panoptic", "video", or None if it is none of them.

    It looks for words in the file, as parsing a large json takes minutes.
    """
    if path.stat().st_size == 0:
        return None
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        if text.find(b'"annotations"') < 0 or text.find(b'"categories"') < 0:
            return None
        if text.find(b'"segments_info"') >= 0:
            return "panoptic"
        if text.find(b'"videos"') >= 0:
            return "video"
        return "instances" if text.find(b'"images"') >= 0 else None


def read_json(path: Path, keys: Sequence[str]) -> dict[str, Any]:
    """Parses a json whose top level has these keys. Raises ValueError naming the file and what is missing."""
    try:
        with path.open(encoding="utf-8") as file:
            content = json.load(file)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no valid json: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__} at its top; expected keys {list(keys)}")
    missing = [key for key in keys if key not in content]
    if missing:
        raise ValueError(f"{path} has no {missing}; its keys are {sorted(content)}")
    return content


def parse_instances(path: Path) -> Parsed:
    import pyarrow

    content = read_json(path, ("images", "annotations", "categories"))
    categories = read_categories(content, path)
    label_of_id = {category_id: label for label, ids in enumerate(categories.ids) for category_id in ids}
    images = _read_images(content, path)
    problems = ProblemCounter()
    rows: dict[Any, dict[str, Any]] = {
        image_id: {
            "file_name": image["file_name"],
            "height": image["height"],
            "width": image["width"],
            **{name: [] for name in ("annotation_id", "label", "is_crowd", "counts")},
        }
        for image_id, image in images.items()
    }
    # `delay` hides the bar where reading takes less than three seconds.
    progress = tqdm(content["annotations"], f"reading {path.name}", unit=" annotations", delay=3, leave=False)
    for number, annotation in enumerate(progress):
        annotation_id = annotation.get("id", f"number {number}")
        where = f"annotation {annotation_id} of {path}"
        image_id = required_field(annotation, "image_id", where)
        if image_id not in images:
            problems.add("annotation of an image that the json does not list", f"{where}: image {image_id}")
            continue
        image = images[image_id]
        where = f"{where} ({image['file_name']})"
        category_id = required_field(annotation, "category_id", where)
        if category_id not in label_of_id:
            raise ValueError(f"{where} has category_id {category_id}, which the json's categories do not list")
        counts = run_lengths_of(annotation.get("segmentation"), (image["height"], image["width"]), where, problems)
        if counts is not None:
            rows[image_id]["annotation_id"].append(str(annotation_id))
            rows[image_id]["label"].append(label_of_id[category_id])
            rows[image_id]["is_crowd"].append(bool(annotation.get("iscrowd", 0)))
            rows[image_id]["counts"].append(counts)
    if content["annotations"] and not any(row["counts"] for row in rows.values()):
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

    content = read_json(path, ("images", "annotations", "categories"))
    categories = read_categories(content, path)
    unclear = [name for name, thing in zip(categories.names, categories.is_thing, strict=True) if thing is None]
    if unclear:
        raise ValueError(f"categories {unclear} of {path} have no isthing; write 1 for things, 0 for stuff")
    label_of_id = {category_id: label for label, ids in enumerate(categories.ids) for category_id in ids}
    images = _read_images(content, path)
    problems = ProblemCounter()
    rows: dict[Any, dict[str, Any]] = {}
    for annotation in content["annotations"]:
        image_id = required_field(annotation, "image_id", f"an annotation of {path}")
        where = f"the annotation of image {image_id} in {path}"
        if image_id not in images:
            problems.add("annotation of an image that the json does not list", where)
            continue
        if image_id in rows:
            raise ValueError(f"{path} has two annotations of image {image_id}")
        rows[image_id] = _panoptic_row(annotation, images[image_id], label_of_id, where)
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


def _panoptic_row(
    annotation: dict[str, Any], image: dict[str, Any], label_of_id: dict[Any, int], where: str
) -> dict[str, Any]:
    segments = required_field(annotation, "segments_info", where)
    for segment in segments:
        category_id = required_field(segment, "category_id", where)
        if category_id not in label_of_id:
            raise ValueError(
                f"segment {segment.get('id')} of {where} ({image['file_name']}) has category_id {category_id}, "
                "which the json's categories do not list"
            )
    ids = [required_field(segment, "id", where) for segment in segments]
    if len(set(ids)) < len(ids):
        raise ValueError(f"{where} ({image['file_name']}) lists a segment twice")
    if ids and not 0 <= min(ids) <= max(ids) < 2**24:
        raise ValueError(f"{where} ({image['file_name']}) lists segments {min(ids)} to {max(ids)}; ids have 24 bits")
    return {
        "file_name": image["file_name"],
        "height": image["height"],
        "width": image["width"],
        "png": required_field(annotation, "file_name", where),
        "segment_id": ids,
        "label": [label_of_id[segment["category_id"]] for segment in segments],
        "is_crowd": [bool(segment.get("iscrowd", 0)) for segment in segments],
    }


class _Categories(NamedTuple):
    names: list[str]
    ids: list[list[int]]
    is_thing: list[bool | None]
    supercategories: dict[str, str]


def read_categories(content: dict[str, Any], path: Path) -> _Categories:
    """Classes in the order of their ids. Categories of one name become one class, as some exporters repeat them."""
    categories = _Categories([], [], [], {})
    for category in sorted(
        content["categories"], key=lambda category: required_field(category, "id", f"a category of {path}")
    ):
        name = str(required_field(category, "name", f"category {category['id']} of {path}"))
        thing = bool(category["isthing"]) if "isthing" in category else None
        if any(category["id"] in ids for ids in categories.ids):
            raise ValueError(f"{path} has two categories of id {category['id']}")
        if name in categories.names:
            position = categories.names.index(name)
            if categories.is_thing[position] != thing:
                raise ValueError(f"{path} has two categories {name!r}, one a thing and one not; rename one")
            categories.ids[position].append(category["id"])
            continue
        categories.names.append(name)
        categories.ids.append([category["id"]])
        categories.is_thing.append(thing)
        if category.get("supercategory"):
            categories.supercategories[name] = str(category["supercategory"])
    if not categories.names:
        raise ValueError(f"{path} has no categories; each class needs an id and a name")
    return categories


def _read_images(content: dict[str, Any], path: Path) -> dict[Any, dict[str, Any]]:
    """Image id -> its entry in the json."""
    images: dict[Any, dict[str, Any]] = {}
    for image in content["images"]:
        image_id = required_field(image, "id", f"an image of {path}")
        if image_id in images:
            raise ValueError(f"{path} has two images of id {image_id}")
        for key in ("file_name", "height", "width"):
            required_field(image, key, f"image {image_id} of {path}")
        images[image_id] = image
    if not images:
        raise ValueError(f"{path} lists no images")
    return images


def required_field(record: dict[str, Any], key: str, where: str) -> Any:
    if key not in record:
        raise ValueError(f"{where} has no {key}; it has {sorted(record)}")
    return record[key]


def facts_of(categories: _Categories, problems: ProblemCounter) -> dict[str, Any]:
    return {
        "names": categories.names,
        "category_ids": categories.ids,
        "is_thing": categories.is_thing,
        "supercategories": categories.supercategories,
        "problems": problems.problems(),
    }
