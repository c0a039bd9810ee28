"""The table of parts: what the names in a configuration stand for.

A part of one's own is registered before a configuration names it:

    register("pixel_decoder", "sum", Part(SumPixelDecoder.from_config))

What `build` is called with, and what it has to make, is told by the docstring of the part that is there already:

| slot | field of a configuration | `build(...)` | see |
|---|---|---|---|
| pixel_decoder | `pixel_decoder` | `(config, facts)` | `FPNPixelDecoder` |
| transformer_decoder | `transformer_decoder` | `(config, facts, memory, make_mask_head)` | `DetrTransformerDecoder` |
| cross_attention | `cross_attention` | `(config)` | `MaskedCrossAttention` |
| query_relations | `query_relations` | `(config)` | `QueryRelations` |
| class_head | `class_head` | `(config)` | `LinearClassHead` |
| mask_head | `mask_head` | `(config, facts)` | `ProductMaskHead` |
| query_source | `query_source` | `(config)` | `OneToManyQueries` |
| assigner | `assigner` | `(config)` | `HungarianAssigner` |
| criterion | `criterion` | `(config)` | `SegFormerCriterion` |
| class_loss | `class_loss` | `(config)` | `ClassCrossEntropy` |
| loss_term | `mask_term`, `loss_terms` | `(config)` | `loss_terms.py` |
| merging | `panoptic_merging` | `(class_logits, masks, geometry, options)` | `panoptic_segmentation` |
| plan | none; an argument of `predict` | `(...)` | `inference/plans.py` |
"""

from collections.abc import Callable
from typing import Any

from .assigners import HungarianAssigner, OneToManyAssigner, SharedAssigner, StableAssigner
from .boundary_loss import BoundaryLoss
from .criterion_segformer import SegFormerCriterion
from .cross_attention_prototype import PrototypeCrossAttention
from .interfaces import Facts
from .loss_terms import ClassCrossEntropy, CrossEntropyLoss, DiceLoss, FocalLoss
from .mask_head import GeluMaskHead, ProductMaskHead
from .mask_head_dynamic import DynamicMaskHead
from .panoptic import MERGINGS
from .part import Part
from .pixel_decoder_deformable import DeformablePixelDecoder
from .pixel_decoder_encoder import EncodedMaps
from .pixel_decoder_fapn import FaPNPixelDecoder
from .pixel_decoder_fpn import FPNPixelDecoder, TransformerFPNPixelDecoder
from .pixel_decoder_hybrid import HybridPixelDecoder
from .pixel_decoder_none import NoPixelDecoder
from .pixel_decoder_pem import PEMPixelDecoder
from .prediction_head import LinearClassHead
from .query_relations import BoxRelations, MaskRelations
from .query_source_denoising import DenoisingQueries
from .query_source_one_to_many import OneToManyQueries
from .transformer_decoder_detr import DetrTransformerDecoder
from .transformer_decoder_joint import JointTransformerDecoder
from .transformer_decoder_masked import MaskedCrossAttention, MaskedTransformerDecoder
from .transformer_decoder_segformer import PanopticSegFormerDecoder


def _masked_decoder(
    config: Any, facts: Facts, memory: Facts, make_mask_head: Callable[[], Any]
) -> MaskedTransformerDecoder:
    cross_attention = part_of("cross_attention", config.cross_attention)
    cross_attentions = [cross_attention.build(config) for _ in range(config.decoder_layers)]
    relations = None
    if config.query_relations is not None:
        relations = part_of("query_relations", config.query_relations).build(config)
    return MaskedTransformerDecoder(config, memory, make_mask_head(), cross_attentions, relations)


def _joint_decoder(
    config: Any, facts: Facts, memory: Facts, make_mask_head: Callable[[], Any]
) -> JointTransformerDecoder:
    return JointTransformerDecoder(config, memory, make_mask_head())


_TABLE: dict[str, dict[str, Part]] = {
    "pixel_decoder": {
        "fpn": Part(FPNPixelDecoder.from_config, FPNPixelDecoder.check),
        "transformer_fpn": Part(
            TransformerFPNPixelDecoder.from_config, TransformerFPNPixelDecoder.check, ("TransformerEncoderLayer",)
        ),
        "deformable": Part(
            DeformablePixelDecoder.from_config, DeformablePixelDecoder.check, ("DeformableEncoderLayer",)
        ),
        "fapn": Part(FaPNPixelDecoder.from_config, FaPNPixelDecoder.check),
        "encoder": Part(EncodedMaps.from_config, EncodedMaps.check, ("DeformableEncoderLayer",)),
        "hybrid": Part(HybridPixelDecoder.from_config, HybridPixelDecoder.check, ("TransformerEncoderLayer",)),
        "pem": Part(PEMPixelDecoder.from_config, PEMPixelDecoder.check),
        "none": Part(NoPixelDecoder.from_config, NoPixelDecoder.check),
    },
    "transformer_decoder": {
        "detr": Part(
            DetrTransformerDecoder.from_config,
            DetrTransformerDecoder.check,
            ("TransformerEncoderLayer", "DetrDecoderLayer"),
        ),
        "masked": Part(_masked_decoder, MaskedTransformerDecoder.check, ("MaskedDecoderLayer",)),
        "joint": Part(_joint_decoder, JointTransformerDecoder.check, ("VitBlock",)),
        "panoptic_segformer": Part(
            PanopticSegFormerDecoder, PanopticSegFormerDecoder.check, ("LocationLayer", "MaskBlock")
        ),
    },
    "cross_attention": {
        "softmax": Part(MaskedCrossAttention.from_config),
        "prototype": Part(PrototypeCrossAttention.from_config, PrototypeCrossAttention.check),
    },
    "query_relations": {
        "boxes": Part(BoxRelations.from_config, BoxRelations.check),
        "masks": Part(MaskRelations.from_config, MaskRelations.check),
    },
    "class_head": {"linear": Part(LinearClassHead.from_config)},
    "mask_head": {
        "product": Part(ProductMaskHead.from_config),
        "product_gelu": Part(GeluMaskHead.from_config),
        "dynamic": Part(DynamicMaskHead.from_config, DynamicMaskHead.check),
    },
    "query_source": {
        "denoising": Part(DenoisingQueries, DenoisingQueries.check),
        "one_to_many": Part(OneToManyQueries.from_config, OneToManyQueries.check),
    },
    "assigner": {
        "hungarian": Part(HungarianAssigner.from_config),
        "shared": Part(SharedAssigner.from_config),
        "stable": Part(StableAssigner.from_config),
        "one_to_many": Part(OneToManyAssigner.from_config, OneToManyAssigner.check),
    },
    "criterion": {"panoptic_segformer": Part(SegFormerCriterion, SegFormerCriterion.check)},
    "class_loss": {"cross_entropy": Part(ClassCrossEntropy.from_config)},
    "loss_term": {
        "focal": Part(lambda config: FocalLoss()),
        "cross_entropy": Part(lambda config: CrossEntropyLoss()),
        "dice": Part(lambda config: DiceLoss()),
        "boundary": Part(BoundaryLoss.from_config),
    },
    "merging": MERGINGS,
    "plan": {},
}
# What the table has by itself, and a copy of this code on the Hub has too.
_OWN = {(slot, name) for slot, parts in _TABLE.items() for name in parts}


def register(slot: str, name: str, part: Part, *, exist_ok: bool = False) -> None:
    """Make `name` a choice of `slot`, for every configuration class.

    Such a part works where this has run. Its code does not travel to the Hub with a checkpoint.

    Raises:
        ValueError: If there is no such slot, or it has a part of this name already, unless `exist_ok`.
        TypeError: If `part` is no `Part`.
    """
    parts = _slot(slot)
    if not isinstance(part, Part):
        raise TypeError(f"{slot} {name!r} must be a `Part(build, check, layers)`, got {type(part).__name__}.")
    if name in parts and not exist_ok:
        raise ValueError(
            f"There is a {slot} {name!r} already: choose another name than {sorted(parts)}, or pass `exist_ok=True`."
        )
    parts[name] = part


def part_of(slot: str, name: Any) -> Part:
    """The part of this name; a ValueError that says what there is if there is none."""
    parts = _slot(slot)
    if name not in parts:
        raise ValueError(f"`{slot}` must be one of {list(parts)}, got {name!r}.")
    return parts[name]


def names_of(slot: str) -> tuple[str, ...]:
    return tuple(_slot(slot))


def is_own(slot: str, name: str) -> bool:
    """Whether a part is one of this package's, and not registered from outside."""
    return (slot, name) in _OWN


def _slot(slot: str) -> dict[str, Part]:
    if slot not in _TABLE:
        raise ValueError(f"There is no slot {slot!r} for parts, only {list(_TABLE)}.")
    return _TABLE[slot]
