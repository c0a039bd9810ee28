"""Checkpoints of the original Panoptic SegFormer (github.com/zhiqi-li/Panoptic-SegFormer), made with mmdetection.

Released files have older names of the mask decoders than its code; both are read. The configuration is that of the
preset whose names and shapes are the file's.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from ..models.configuration_maskformer import MaskFormerHfConfig
from ..models.modeling_auto import MODEL_CLASSES
from ..models.pixel_decoder_encoder import NUM_BACKBONE_MAPS
from ..presets import SEGFORMER_PRESETS
from .detectron2_names import Target, swin_names
from .wording import check_names

# Names in the released files, and what the code calls them now.
RELEASED_NAMES = {
    "bbox_head.mask_head.": "bbox_head.things_mask_head.",
    "bbox_head.mask_head2.": "bbox_head.stuff_mask_head.",
    "bbox_head.cls_branches2.": "bbox_head.cls_thing_branches.",
}
_IGNORED = ("num_batches_tracked", "attn.relative_position_index")
_DECODER = "model.transformer_decoder"
_TRANSFORMER = "bbox_head.transformer"
_MASK_HEADS = {"bbox_head.things_mask_head": "thing_masks", "bbox_head.stuff_mask_head": "stuff_masks"}


def is_segformer(state: Mapping[str, Any]) -> bool:
    """Whether tensors have the names of a Panoptic SegFormer."""
    return "bbox_head.stuff_query.weight" in state


def matching_segformer(state: Mapping[str, torch.Tensor]) -> str:
    """The preset with the names and shapes of a checkpoint.

    Raises:
        ValueError: There is none.
    """
    shapes = {name: tuple(value.shape) for name, value in _with_later_names(state).items()}
    for preset, make in SEGFORMER_PRESETS.items():
        config = make()
        names = segformer_names(config)
        if names.keys() != shapes.keys():
            continue
        with torch.device("meta"):
            own = MODEL_CLASSES[config.model_type](config).state_dict()
        sizes = {target: tuple(value.shape) for target, value in own.items()}
        if all(_fits(shapes[name], target, sizes) for name, target in names.items()):
            return preset
    raise ValueError(
        "The checkpoint is a Panoptic SegFormer with other sizes than the released ones, "
        f"{', '.join(SEGFORMER_PRESETS)}: convert it by `maskformer_hf.conversion.segformer.convert_segformer` with a "
        "configuration of its own."
    )


def convert_segformer(state: Mapping[str, torch.Tensor], config: MaskFormerHfConfig) -> dict[str, torch.Tensor]:
    """Give the tensors of an original checkpoint our names.

    Raises:
        ValueError: The checkpoint does not belong to this configuration.
    """
    state = _with_later_names(state)
    names = segformer_names(config)
    check_names(state, names)
    converted: dict[str, torch.Tensor] = {}
    for name, target in names.items():
        parts = (target,) if isinstance(target, str) else target
        # Embeddings of queries have features and positions side by side.
        axis = 1 if name in ("bbox_head.query_embedding.weight", "bbox_head.stuff_query.weight") else 0
        converted |= zip(parts, (part.clone() for part in state[name].chunk(len(parts), axis)), strict=True)
    for name in list(converted):
        if name.endswith("running_mean"):
            converted[name.replace("running_mean", "num_batches_tracked")] = torch.zeros((), dtype=torch.int64)
    return converted


def _with_later_names(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    def later(name: str) -> str:
        for old, new in RELEASED_NAMES.items():
            if name.startswith(old):
                return new + name.removeprefix(old)
        return name

    return {later(name): value for name, value in state.items() if not name.endswith(_IGNORED)}


def _fits(shape: tuple[int, ...], target: Any, sizes: Mapping[str, tuple[int, ...]]) -> bool:
    parts = (target,) if isinstance(target, str) else target
    found = [sizes.get(part, ()) for part in parts]
    return (len(found) == 1 and found[0] == shape) or (len(found) > 1 and sum(map(_numel, found)) == _numel(shape))


def _numel(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()


def segformer_names(config: MaskFormerHfConfig) -> dict[str, Any]:
    """The original's name and ours, or ours of the parts that it stacks, of every tensor."""
    backbone: Any = config.backbone_config
    makers: dict[str, Callable[[Any], dict[str, Target]]] = {"resnet": _resnet, "swin": swin_names}
    if backbone.model_type not in makers:
        raise ValueError(f"Panoptic SegFormer with a {backbone.model_type!r} backbone cannot be converted yet.")
    names: dict[str, Any] = dict(makers[backbone.model_type](backbone))
    for kind in ("weight", "bias"):
        # No map of stride 4 leaves the backbone.
        names.pop(f"backbone.norm0.{kind}", None)
    return names | _neck_and_encoder(config) | _location_decoder(config) | _mask_decoders(config)


def _layer(theirs: str, ours: str) -> dict[str, Any]:
    return {f"{theirs}.{kind}": f"{ours}.{kind}" for kind in ("weight", "bias")}


def _resnet(config: Any) -> dict[str, Target]:
    ours = "model.backbone.body"
    names = _conv_batch_norm("backbone.conv1", "backbone.bn1", f"{ours}.embedder.embedder")
    for stage, depth in enumerate(config.depths):
        for block in range(depth):
            their_block = f"backbone.layer{stage + 1}.{block}"
            our_block = f"{ours}.encoder.stages.{stage}.layers.{block}"
            for i in range(3):
                names |= _conv_batch_norm(
                    f"{their_block}.conv{i + 1}", f"{their_block}.bn{i + 1}", f"{our_block}.layer.{i}"
                )
            if block == 0:
                names |= _conv_batch_norm(
                    f"{their_block}.downsample.0", f"{their_block}.downsample.1", f"{our_block}.shortcut"
                )
    return names


def _conv_batch_norm(convolution: str, norm: str, ours: str) -> dict[str, Target]:
    names: dict[str, Target] = {f"{convolution}.weight": f"{ours}.convolution.weight"}
    for kind in ("weight", "bias", "running_mean", "running_var"):
        names[f"{norm}.{kind}"] = f"{ours}.normalization.{kind}"
    return names


def _neck_and_encoder(config: Any) -> dict[str, Any]:
    ours = "model.pixel_decoder"
    names: dict[str, Any] = {f"{_TRANSFORMER}.level_embeds": f"{ours}.level_embedding"}
    maps = [*(f"neck.convs.{i}" for i in range(NUM_BACKBONE_MAPS)), "neck.extra_convs.0"]
    for i, theirs in enumerate(maps):
        names[f"{theirs}.conv.weight"] = f"{ours}.input_projections.{i}.0.weight"
        names |= _layer(f"{theirs}.gn", f"{ours}.input_projections.{i}.1")
    for i in range(config.encoder_layers):
        their_layer, our_layer = f"{_TRANSFORMER}.encoder.layers.{i}", f"{ours}.layers.{i}"
        names |= _deformable(f"{their_layer}.attentions.0", f"{our_layer}.self_attn")
        names |= _feed_forward(their_layer, our_layer)
        names |= _layer(f"{their_layer}.norms.0", f"{our_layer}.self_attn_norm")
        names |= _layer(f"{their_layer}.norms.1", f"{our_layer}.ffn_norm")
    return names


def _deformable(theirs: str, ours: str) -> dict[str, Any]:
    parts = {"value_proj": "v_proj", "output_proj": "o_proj"}
    names: dict[str, Any] = {}
    for part in ("sampling_offsets", "attention_weights", *parts):
        names |= _layer(f"{theirs}.{part}", f"{ours}.{parts.get(part, part)}")
    return names


def _feed_forward(theirs: str, ours: str) -> dict[str, Any]:
    return _layer(f"{theirs}.ffns.0.layers.0.0", f"{ours}.ffn.fc1") | _layer(
        f"{theirs}.ffns.0.layers.1", f"{ours}.ffn.fc2"
    )


def _location_decoder(config: Any) -> dict[str, Any]:
    names: dict[str, Any] = {
        # Positions come first in the one, features in the other.
        "bbox_head.query_embedding.weight": tuple(
            f"{_DECODER}.{part}.weight" for part in ("query_position", "query_features")
        ),
        "bbox_head.stuff_query.weight": tuple(
            f"{_DECODER}.{part}.weight" for part in ("stuff_features", "stuff_position")
        ),
        **_layer(f"{_TRANSFORMER}.reference_points", f"{_DECODER}.reference_points"),
    }
    for i in range(config.decoder_layers):
        theirs, ours = f"{_TRANSFORMER}.decoder.layers.{i}", f"{_DECODER}.layers.{i}"
        for kind in ("weight", "bias"):
            packed = tuple(f"{ours}.self_attn.{part}_proj.{kind}" for part in "qkv")
            names[f"{theirs}.attentions.0.attn.in_proj_{kind}"] = packed
        names |= _layer(f"{theirs}.attentions.0.attn.out_proj", f"{ours}.self_attn.o_proj")
        names |= _deformable(f"{theirs}.attentions.1", f"{ours}.cross_attn")
        names |= _feed_forward(theirs, ours)
        for number, norm in enumerate(("self_attn_norm", "cross_attn_norm", "ffn_norm")):
            names |= _layer(f"{theirs}.norms.{number}", f"{ours}.{norm}")
        names |= _layer(f"bbox_head.cls_branches.{i}", f"{_DECODER}.class_predictors.{i}")
        names |= _box_predictor(f"bbox_head.reg_branches.{i}", f"{_DECODER}.box_predictors.{i}")
    return names


def _box_predictor(theirs: str, ours: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    for i in range(3):
        names |= _layer(f"{theirs}.{2 * i}", f"{ours}.layers.{i}")
    return names


def _mask_decoders(config: Any) -> dict[str, Any]:
    names: dict[str, Any] = {}
    for head, own in _MASK_HEADS.items():
        is_stuff = own == "stuff_masks"
        for i in range(config.stuff_mask_layers if is_stuff else config.thing_mask_layers):
            theirs, ours = f"{head}.blocks.{i}", f"{_DECODER}.{own}.layers.{i}"
            names |= _mask_attention(f"{theirs}.attn", f"{ours}.cross_attn")
            names |= _layer(f"{theirs}.attn.v", f"{ours}.cross_attn.v_proj")
            names |= _layer(f"{theirs}.attn.proj", f"{ours}.cross_attn.o_proj")
            names |= _layer(f"{theirs}.head_norm1", f"{ours}.cross_attn_norm")
            names |= _layer(f"{theirs}.head_norm2", f"{ours}.ffn_norm")
            names |= _layer(f"{theirs}.mlp.fc1", f"{ours}.fc1") | _layer(f"{theirs}.mlp.fc2", f"{ours}.fc2")
            if is_stuff:
                names |= _layer(f"{theirs}.self_attention.qkv", f"{ours}.self_attn.qkv")
                names |= _layer(f"{theirs}.self_attention.proj", f"{ours}.self_attn.o_proj")
                names |= _layer(f"{theirs}.norm3", f"{ours}.self_attn_norm")
                names |= _layer(f"bbox_head.cls_stuff_branches.{i}", f"{_DECODER}.stuff_predictors.{i}")
            else:
                names |= _layer(f"bbox_head.cls_thing_branches.{i}", f"{_DECODER}.thing_class_predictors.{i}")
                names |= _box_predictor(f"bbox_head.reg_branches2.{i}", f"{_DECODER}.thing_box_predictors.{i}")
        names |= _mask_attention(f"{head}.attnen", f"{_DECODER}.{own}.last")
    return names


def _mask_attention(theirs: str, ours: str) -> dict[str, Any]:
    names = _layer(f"{theirs}.q", f"{ours}.q_proj") | _layer(f"{theirs}.k", f"{ours}.k_proj")
    for level in range(3):
        names |= _layer(f"{theirs}.linear_l{level + 1}.0", f"{ours}.maps.levels.{level}")
    return names | _layer(f"{theirs}.linear.0", f"{ours}.maps.join")
