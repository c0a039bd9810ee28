"""Tiny data sets in every layout that `open_dataset` reads, with the splits "train" and "val"."""

import json
from pathlib import Path

import datasets
import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

HEIGHT, WIDTH = 64, 96
# Rows, columns: a square object, and ground below.
SQUARE = (slice(20, 40), slice(30, 60))
OUTLINE = [30, 20, 60, 20, 60, 40, 30, 40]
GROUND = (slice(48, 64), slice(0, 96))
NAMES = {"train": ("a", "b"), "val": ("c",)}


def _save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def _photo(path: Path) -> None:
    colors = np.full((HEIGHT, WIDTH, 3), 120, dtype=np.uint8)
    colors[SQUARE], colors[GROUND] = (220, 40, 30), (60, 60, 70)
    _save(path, colors + np.random.default_rng(len(path.name)).integers(0, 9, colors.shape, dtype=np.uint8))


def _map(dtype: str, square: int, ground: int, rest: int) -> np.ndarray:
    ids = np.full((HEIGHT, WIDTH), rest, dtype=dtype)
    ids[SQUARE], ids[GROUND] = square, ground
    return ids


def _photos(root: Path, folder: str, suffix: str = ".jpg") -> None:
    for split, names in NAMES.items():
        for name in names:
            _photo(root / folder.format(split=split) / f"{name}{suffix}")


def _maps(root: Path, folder: str, array: np.ndarray, suffix: str = ".png") -> None:
    for split, names in NAMES.items():
        for name in names:
            _save(root / folder.format(split=split) / f"{name}{suffix}", array)


def semantic_folder(root: Path) -> None:
    _photos(root, "{split}/images")
    _maps(root, "{split}/labels", _map("uint8", 1, 0, 255))
    (root / "classes.txt").write_text("road\ncar\n")


def color_folder(root: Path) -> None:
    _photos(root, "{split}", ".png")
    colors = np.array([[0, 0, 0], [128, 64, 128], [64, 0, 128]], dtype=np.uint8)
    _maps(root, "{split}_labels", colors[_map("uint8", 2, 1, 0)], "_L.png")
    (root / "class_dict.csv").write_text("name,r,g,b\nroad,128,64,128\ncar,64,0,128\nvoid,0,0,0\n")


def instance_folder(root: Path) -> None:
    _photos(root, "{split}/images")
    _maps(root, "{split}/instances", _map("uint16", 300, 7, 0))


def _coco_images(split: str) -> list[dict]:
    return [
        {"id": number, "file_name": f"{name}.jpg", "height": HEIGHT, "width": WIDTH}
        for number, name in enumerate(NAMES[split])
    ]


def coco_instances(root: Path) -> None:
    _photos(root, "images")
    for split in NAMES:
        images = _coco_images(split)
        annotations = [
            {"id": 9, "image_id": image["id"], "category_id": 3, "segmentation": [OUTLINE], "iscrowd": 0}
            for image in images
        ]
        content = {"images": images, "annotations": annotations, "categories": [{"id": 3, "name": "car"}]}
        (root / f"instances_{split}.json").write_text(json.dumps(content))


def coco_panoptic(root: Path) -> None:
    _photos(root, "images")
    categories = [{"id": 3, "name": "car", "isthing": 1}, {"id": 100, "name": "road", "isthing": 0}]
    ids = _map("int32", 700, 5, 0)
    _maps(root, "panoptic_{split}", np.stack([ids % 256, ids // 256, 0 * ids], -1).astype(np.uint8))
    for split in NAMES:
        images = _coco_images(split)
        segments = [{"id": 700, "category_id": 3, "iscrowd": 0}, {"id": 5, "category_id": 100, "iscrowd": 0}]
        annotations = [
            {"image_id": image["id"], "file_name": Path(image["file_name"]).stem + ".png", "segments_info": segments}
            for image in images
        ]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / f"panoptic_{split}.json").write_text(json.dumps(content))


def coco_instances_and_stuff(root: Path) -> None:
    coco_instances(root)
    _maps(root, "semantic_{split}", _map("uint8", 1, 0, 255))
    for split in NAMES:
        (root / f"semantic_{split}" / "classes.txt").write_text("road\ncar\n")


def ade20k(root: Path) -> None:
    for split, names in {"training": "ab", "validation": "c"}.items():
        for name in names:
            _photo(root / f"images/{split}/{name}.jpg")
            _save(root / f"annotations/{split}/{name}.png", _map("uint8", 21, 7, 0))
            objects = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
            objects[SQUARE] = 9, 1, 0
            _save(root / f"annotations_instance/{split}/{name}.png", objects)
    (root / "objectInfo150.txt").touch()


def cityscapes(root: Path) -> None:
    for split, names in NAMES.items():
        for name in names:
            stem = f"{name}_000000_000019"
            _photo(root / f"leftImg8bit/{split}/{name}/{stem}_leftImg8bit.png")
            truth = root / f"gtFine/{split}/{name}"
            _save(truth / f"{stem}_gtFine_labelIds.png", _map("uint8", 26, 7, 0))
            _save(truth / f"{stem}_gtFine_instanceIds.png", _map("uint16", 26001, 7, 0))


def mapillary(root: Path) -> None:
    for split, names in {"training": "ab", "validation": "c"}.items():
        for name in names:
            _photo(root / f"{split}/images/{name}.jpg")
            _save(root / f"{split}/labels/{name}.png", _map("uint8", 1, 0, 2))
            _save(root / f"{split}/instances/{name}.png", _map("uint16", 256, 0, 512))
    labels = [("Road", True, False), ("Car", True, True), ("Unlabeled", False, False)]
    content = [{"readable": name, "evaluate": used, "instances": thing} for name, used, thing in labels]
    (root / "config.json").write_text(json.dumps({"labels": content}))


def yolo(root: Path) -> None:
    _photos(root, "images/{split}")
    shares = np.reshape(OUTLINE, (-1, 2)) / [WIDTH, HEIGHT]
    for split, names in NAMES.items():
        (root / f"labels/{split}").mkdir(parents=True)
        for name in names:
            (root / f"labels/{split}/{name}.txt").write_text(f"0 {' '.join(map(str, shares.ravel()))}\n")
    (root / "data.yaml").write_text("train: images/train\nval: images/val\nnames:\n  0: car\n")


def labelme(root: Path) -> None:
    _photos(root, "{split}")
    points = np.reshape(OUTLINE, (-1, 2)).tolist()
    for split, names in NAMES.items():
        for name in names:
            content = {"imagePath": f"{name}.jpg", "imageData": None, "imageHeight": HEIGHT, "imageWidth": WIDTH}
            shapes = [{"label": "car", "points": points, "group_id": None, "shape_type": "polygon"}]
            (root / split / f"{name}.json").write_text(json.dumps({"shapes": shapes, **content}))


def youtube_vis(root: Path) -> None:
    for split, names in NAMES.items():
        for name in names:
            _photo(root / split / "JPEGImages" / "clip" / f"{name}.jpg")
        mask = coco_mask.encode(np.asfortranarray(_map("uint8", 1, 0, 0)))
        counts = {"size": mask["size"], "counts": mask["counts"].decode()}
        files = [f"clip/{name}.jpg" for name in names]
        content = {
            "videos": [{"id": 4, "file_names": files, "height": HEIGHT, "width": WIDTH}],
            "annotations": [{"id": 2, "video_id": 4, "category_id": 3, "segmentations": [counts] * len(names)}],
            "categories": [{"id": 3, "name": "car"}],
        }
        (root / split / "instances.json").write_text(json.dumps(content))


def davis(root: Path) -> None:
    _photos(root, "{split}/JPEGImages/clip")
    _maps(root, "{split}/Annotations/clip", _map("uint8", 1, 0, 0))


def saved_dataset(root: Path) -> None:
    parts = {}
    for split, names in NAMES.items():
        for name in names:
            _photo(root / f"{name}.png")
        columns = {
            "image": [str(root / f"{name}.png") for name in names],
            "label": [Image.fromarray(_map("uint8", 1, 0, 255)) for _ in names],
        }
        parts[split] = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    datasets.DatasetDict(parts).save_to_disk(root)
    (root / "id2label.json").write_text('{"0": "road", "1": "car"}')


LAYOUTS = {
    "semantic_folder": semantic_folder,
    "color_folder": color_folder,
    "instance_folder": instance_folder,
    "coco_instances": coco_instances,
    "coco_panoptic": coco_panoptic,
    "coco_instances_and_stuff": coco_instances_and_stuff,
    "ade20k": ade20k,
    "cityscapes": cityscapes,
    "mapillary": mapillary,
    "yolo": yolo,
    "labelme": labelme,
    "youtube_vis": youtube_vis,
    "davis": davis,
    "datasets": saved_dataset,
}
"""By the name of the format."""
