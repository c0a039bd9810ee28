"""From a configuration to the parts that it names."""

from functools import partial
from typing import Any

from torch import nn

from .assigner_stuff import StuffAssigner, stuff_labels
from .boundary_blocks import add_boundary_blocks
from .criterion import Criterion
from .interfaces import Facts
from .loss_terms import TargetMap
from .mask_losses import DenseMaskLosses, PointMaskLosses, WeightedTerm
from .parts import is_own, names_of, part_of
from .prediction_head import PredictionHead

# Fields of a configuration that name a part, and the slot of the table that they name it from.
SLOT_FIELDS = {
    "pixel_decoder": "pixel_decoder",
    "transformer_decoder": "transformer_decoder",
    "cross_attention": "cross_attention",
    "query_relations": "query_relations",
    "class_head": "class_head",
    "mask_head": "mask_head",
    "query_source": "query_source",
    "assigner": "assigner",
    "class_loss": "class_loss",
    "criterion": "criterion",
    "panoptic_merging": "merging",
}


def parts_of(config: Any) -> dict[str, Any]:
    """The parts of the table that a configuration names, by field; none where it says None and may.

    Raises:
        ValueError: For a name that the table does not have.
    """
    parts = {}
    for field, slot in SLOT_FIELDS.items():
        name = getattr(config, field)
        if name is None and field in config.optional_parts:
            continue
        if name not in names_of(slot):
            none = [None] if field in config.optional_parts else []
            raise ValueError(f"`{field}` must be one of {[*none, *names_of(slot)]}, got {name!r}.")
        parts[field] = part_of(slot, name)
    return parts


def outside_parts(config: Any) -> list[str]:
    """The parts that a configuration names and this package does not have, as "field='name'"."""
    named = [(field, slot, getattr(config, field)) for field, slot in SLOT_FIELDS.items()]
    named += [("loss_terms", "loss_term", name) for name, _ in _further(config)]
    return [f"{field}={name!r}" for field, slot, name in named if name is not None and not is_own(slot, name)]


def layer_names(config: Any) -> list[str]:
    """Class names of the layers that the parts of a configuration repeat."""
    return sorted({layer for part in parts_of(config).values() for layer in part.layers})


def make_pixel_decoder(config: Any, facts: Facts) -> nn.Module:
    pixel_decoder = part_of("pixel_decoder", config.pixel_decoder).build(config, facts)
    if config.boundary_blocks:
        add_boundary_blocks(pixel_decoder, config.boundary_blocks)
    return pixel_decoder


def make_transformer_decoder(config: Any, facts: Facts, memory: Facts) -> nn.Module:
    """The transformer decoder, with the mask head if its layers need masks."""
    make_mask_head = partial(part_of("mask_head", config.mask_head).build, config, facts)
    return part_of("transformer_decoder", config.transformer_decoder).build(config, facts, memory, make_mask_head)


def make_head(config: Any, facts: Facts, transformer_decoder: Any) -> PredictionHead:
    """Class head and mask head; each only where the transformer decoder has none."""
    class_head: nn.Module | None = None
    if not getattr(transformer_decoder, "has_class_head", False):
        class_head = part_of("class_head", config.class_head).build(config)
    mask_head = None
    if not transformer_decoder.has_mask_head:
        mask_head = part_of("mask_head", config.mask_head).build(config, facts)
    return PredictionHead(class_head, mask_head, config.assigner)


class Assigners:
    """Assigners by their names in the table of parts, made for one configuration when they are first asked for."""

    def __init__(self, config: Any):
        self.config = config
        self.made: dict[str, Any] = {}

    def __getitem__(self, name: Any) -> Any:
        if name not in self.made:
            made = part_of("assigner", name).build(self.config)
            if name == self.config.assigner and self.config.stuff_assignment == "fixed":
                made = StuffAssigner(made, stuff_labels(self.config))
            self.made[name] = made
        return self.made[name]


def make_query_source(config: Any) -> nn.Module | None:
    return None if config.query_source is None else part_of("query_source", config.query_source).build(config)


def make_criterion(config: Any) -> Any:
    """The criterion that the configuration names, or that of queries which are matched by class and mask."""
    if config.criterion is not None:
        return part_of("criterion", config.criterion).build(config)
    terms = [
        WeightedTerm("mask", config.mask_weight, part_of("loss_term", config.mask_term).build(config)),
        WeightedTerm("dice", config.dice_weight, part_of("loss_term", "dice").build(config)),
        *(WeightedTerm(name, weight, part_of("loss_term", name).build(config)) for name, weight in _further(config)),
    ]
    if config.mask_loss == "dense":
        mask_losses: Any = DenseMaskLosses(terms, config.mask_term)
    else:
        points = config.num_points, config.oversample_ratio, config.importance_sample_ratio
        mask_losses = PointMaskLosses(terms, *points)
    class_loss = part_of("class_loss", config.class_loss).build(config)
    return Criterion(
        config.num_labels, config.class_weight, class_loss, mask_losses, target_maps_of(config), Assigners(config)
    )


def target_maps_of(config: Any) -> dict[str, TargetMap]:
    """The maps of targets that the loss of a configuration needs, and the functions that make them of masks."""
    maps: dict[str, TargetMap] = {}
    for name, _ in _further(config):
        maps |= part_of("loss_term", name).build(config).maps
    return maps


def _further(config: Any) -> list[tuple[str, float]]:
    return list((config.loss_terms or {}).items())
