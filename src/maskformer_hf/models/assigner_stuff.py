"""Query j is stuff class j (Panoptic SegFormer, https://arxiv.org/abs/2109.03814, section 3.3)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from .assigners import Assignment
from .prediction_head import PredictionSet
from .targets import Targets


def stuff_labels(config: Any) -> list[int]:
    """The classes with a fixed query: those of `label_ids_to_fuse`, and all of a semantic model that names none."""
    if config.label_ids_to_fuse is not None:
        return sorted(config.label_ids_to_fuse)
    return list(range(config.num_labels)) if config.task == "semantic" else []


def check_stuff(config: Any):
    """Refuse a configuration whose stuff classes cannot each have a query, or of which none is stuff."""
    if config.stuff_assignment != "fixed":
        return
    stuff = stuff_labels(config)
    if not stuff:
        raise ValueError(
            "`stuff_assignment='fixed'` gives each stuff class a query of its own, and there is none: name the stuff "
            "classes in `label_ids_to_fuse`, or choose 'matched'."
        )
    things = config.num_labels - len(stuff)
    if config.num_queries < len(stuff) + min(1, things):
        raise ValueError(
            f"`stuff_assignment='fixed'` gives each of the {len(stuff)} stuff classes a query of its own"
            f"{', and things need some too' if things else ''}: `num_queries` must be at least "
            f"{len(stuff) + min(1, things)}, got {config.num_queries}."
        )


class StuffAssigner:
    """The first S queries belong to the S stuff classes; an assigner matches the others with everything else.

    The first segment of a stuff class in an image is its query's target. Further ones of that class are matched as
    things are.
    """

    def __init__(self, assigner: Any, stuff: Sequence[int]):
        """`assigner`: For the other queries. `stuff`: The class of each of the first queries."""
        self.assigner = assigner
        self.query_of = {label: query for query, label in enumerate(stuff)}

    def __call__(
        self, predictions: PredictionSet, targets: Targets, generator: torch.Generator | None = None
    ) -> Assignment:
        num_stuff = len(self.query_of)
        fixed, others = [], []
        for labels in targets.labels:
            first: dict[int, int] = {}
            for place, label in enumerate(labels.tolist()):
                if label in self.query_of:
                    first.setdefault(self.query_of[label], place)
            fixed.append(first)
            others.append(np.setdiff1d(np.arange(len(labels)), list(first.values())))
        num_layers, _, num_queries = predictions.class_logits.shape[:3]
        if num_queries == num_stuff:
            empty = np.zeros(0, np.int64)
            matches: Sequence[Any] = [[(empty, empty)] * len(fixed)] * num_layers
        else:
            matches = self.assigner(_without(predictions, num_stuff), _targets_of(targets, others), generator).matches
        joined = [
            [
                _join(first, query + num_stuff, other[target])
                for first, other, (query, target) in zip(fixed, others, images, strict=True)
            ]
            for images in matches
        ]
        return Assignment(joined, sum(targets.counts))


def _without(predictions: PredictionSet, num_stuff: int) -> PredictionSet:
    """The predictions of all but the first queries."""
    queries = slice(num_stuff, None)
    boxes = None if predictions.boxes is None else predictions.boxes[:, :, queries]
    return predictions._replace(
        class_logits=predictions.class_logits[:, :, queries],
        masks=predictions.masks.part(queries=queries),
        boxes=boxes,
    )


def _targets_of(targets: Targets, chosen: Sequence[np.ndarray]) -> Targets:
    """Some targets of each image."""
    places = [torch.from_numpy(places).to(labels.device) for places, labels in zip(chosen, targets.labels, strict=True)]
    return targets._replace(
        masks=[masks[place] for masks, place in zip(targets.masks, places, strict=True)],
        labels=[labels[place] for labels, place in zip(targets.labels, places, strict=True)],
    )


def _join(fixed: dict[int, int], query: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fixed pairs, then matched ones; queries ascending."""
    pairs = sorted(fixed.items())
    queries = np.array([query for query, _ in pairs], dtype=np.int64)
    places = np.array([place for _, place in pairs], dtype=np.int64)
    return np.concatenate([queries, query]), np.concatenate([places, target])
