"""COCO jsons written for a test, and where the real ones lie."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

COCO4 = Path(__file__).parent.parent / "fixtures/coco4"
HEIGHT, WIDTH = 20, 30


def rectangle(top, left, bottom, right):
    return [left, top, right, top, right, bottom, left, bottom]


def mask_of(top, left, bottom, right):
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


def photo(path, height=HEIGHT, width=WIDTH, **options):
    path.parent.mkdir(exist_ok=True, parents=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path, **options)


def annotation(segmentation, category_id=1, image_id=1, annotation_id=1, **fields):
    fields = {"iscrowd": 0, **fields}
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": category_id,
        "segmentation": segmentation,
        **fields,
    }


def write(folder, annotations, categories=("cat",), images=("a.png",), name="instances.json", **image_fields):
    """A json, and its photos where there are none. Categories are names, numbered from 1, or records."""
    content = {
        "images": [
            {"id": number, "file_name": image, "height": HEIGHT, "width": WIDTH, **image_fields}
            for number, image in enumerate(images, start=1)
        ],
        "annotations": annotations,
        "categories": [
            {"id": number, "name": category} if isinstance(category, str) else category
            for number, category in enumerate(categories, start=1)
        ],
    }
    for image in images:
        if not (folder / "images" / image).exists():
            photo(folder / "images" / image)
    (folder / name).write_text(json.dumps(content))
    return folder / name
