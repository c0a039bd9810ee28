"""The classes of the data sets that presets are for, from `class_names.json`."""

import json
from functools import cache
from pathlib import Path
from typing import Any


@cache
def class_names(dataset: str) -> tuple[tuple[str, bool | None, int], ...]:
    """Name, whether a thing (None: unknown), and the id in the data set, of every class in the order of training.

    Args:
        dataset: `"ade20k_150"`, `"ade20k_full_847"`, `"coco_panoptic_133"`, `"cityscapes_19"`, `"coco_stuff_10k_171"`,
            `"mapillary_vistas_65"`, `"youtube_vis_2019_40"` or `"youtube_vis_2021_40"`.
    """
    lists = json.loads(Path(__file__).with_name("class_names.json").read_text())
    return tuple((name, None if thing is None else bool(thing), source) for name, thing, source in lists[dataset])


def labels_of(dataset: str) -> dict[str, Any]:
    """The fields of a configuration that name the classes of a data set."""
    return numbered([name for name, _, _ in class_names(dataset)])


def numbered(names: list[str]) -> dict[str, Any]:
    """The same of names that are given, in the order of their classes."""
    return {"id2label": dict(enumerate(names)), "label2id": {name: label for label, name in enumerate(names)}}
