"""The name of every tensor in the original's checkpoints, and ours.

Left is the original's name, right ours. Nothing is guessed: the map depends on the configuration alone.
"""

from typing import Any

from ..models.configuration_maskformer import MaskFormerHfConfig
from ..models.pixel_decoder_deformable import NUM_MEMORY_LEVELS

# The strides of the backbone's maps are 4, 8, 16 and 32. The original calls them res2 to res5.
NUM_FEATURE_MAPS = 4

# Our name of one tensor, or our three names for a tensor that stacks the weights of queries, keys and values.
Target = str | tuple[str, str, str]


def later_name(name: str) -> str:
    """The name that the original's later versions give to a tensor; `name` may be of any version."""
    head, own = "sem_seg_head.", ("sem_seg_head.pixel_decoder.", "sem_seg_head.predictor.")
    # The early name of Mask2Former's learned queries.
    name = name.replace("static_query", "query_feat")
    if name.startswith(head) and not name.startswith(own):
        return f"{head}pixel_decoder.{name.removeprefix(head)}"
    return name


def tensor_names(config: MaskFormerHfConfig) -> dict[str, Target]:
    """The original's name and ours for every tensor of a model with this configuration.

    Raises:
        ValueError: The original has no such backbone.
    """
    backbone: Any = config.backbone_config
    backbone_names = {"resnet": _resnet, "swin": swin_names}.get(backbone.model_type)
    if backbone_names is None:
        raise ValueError(f"The original MaskFormer has no {backbone.model_type!r} backbone, only 'resnet' and 'swin'.")
    pixel_decoder = {"deformable": _deformable_pixel_decoder, "pem": _pem_pixel_decoder}.get(
        config.pixel_decoder, _pixel_decoder
    )
    predictor = _masked_predictor if config.transformer_decoder == "masked" else _predictor
    return backbone_names(backbone) | pixel_decoder(config) | predictor(config)


def _resnet(config: Any) -> dict[str, Target]:
    theirs, ours = "backbone", "model.backbone.body"
    names = {}
    if getattr(config, "stem_type", "basic") == "deep":
        for i in range(3):
            names |= _conv_batch_norm(f"{theirs}.stem.conv{i + 1}", f"{ours}.embedder.embedder.{i}")
    else:
        names |= _conv_batch_norm(f"{theirs}.stem.conv1", f"{ours}.embedder.embedder")
    in_channels = config.embedding_size
    for stage, (depth, channels) in enumerate(zip(config.depths, config.hidden_sizes, strict=True)):
        for block in range(depth):
            their_block, our_block = f"{theirs}.res{stage + 2}.{block}", f"{ours}.encoder.stages.{stage}.layers.{block}"
            for i in range(3):
                names |= _conv_batch_norm(f"{their_block}.conv{i + 1}", f"{our_block}.layer.{i}")
            if in_channels != channels:
                names |= _conv_batch_norm(f"{their_block}.shortcut", f"{our_block}.shortcut")
            in_channels = channels
    return names


def _conv_batch_norm(theirs: str, ours: str) -> dict[str, Target]:
    return {
        f"{theirs}.weight": f"{ours}.convolution.weight",
        **_batch_norm(f"{theirs}.norm", f"{ours}.normalization"),
    }


def _batch_norm(theirs: str, ours: str) -> dict[str, Target]:
    return {f"{theirs}.{kind}": f"{ours}.{kind}" for kind in ("weight", "bias", "running_mean", "running_var")}


def swin_names(config: Any) -> dict[str, Target]:
    theirs, ours = "backbone", "model.backbone.body.swin"
    names: dict[str, Target] = {}
    if config.use_absolute_embeddings:
        names[f"{theirs}.absolute_pos_embed"] = f"{ours}.embeddings.position_embeddings"
    names |= _layer(f"{theirs}.patch_embed.proj", f"{ours}.embeddings.patch_embeddings.projection")
    names |= _layer(f"{theirs}.patch_embed.norm", f"{ours}.embeddings.norm")
    for stage, depth in enumerate(config.depths):
        their_stage, our_stage = f"{theirs}.layers.{stage}", f"{ours}.encoder.layers.{stage}"
        for block in range(depth):
            names |= _swin_block(f"{their_stage}.blocks.{block}", f"{our_stage}.blocks.{block}", config.qkv_bias)
        if stage < len(config.depths) - 1:
            names[f"{their_stage}.downsample.reduction.weight"] = f"{our_stage}.downsample.reduction.weight"
            names |= _layer(f"{their_stage}.downsample.norm", f"{our_stage}.downsample.norm")
        names |= _layer(f"{theirs}.norm{stage}", f"model.backbone.body.hidden_states_norms.stage{stage + 1}")
    return names


def _swin_block(theirs: str, ours: str, qkv_bias: bool) -> dict[str, Target]:
    names: dict[str, Target] = {
        f"{theirs}.attn.qkv.{kind}": _packed(f"{ours}.attention", kind)
        for kind in (["weight", "bias"] if qkv_bias else ["weight"])
    }
    table = "relative_position_bias_table"
    names[f"{theirs}.attn.{table}"] = f"{ours}.attention.relative_position_bias.{table}"
    names |= _layer(f"{theirs}.attn.proj", f"{ours}.attention.o_proj")
    names |= _layer(f"{theirs}.norm1", f"{ours}.layernorm_before")
    names |= _layer(f"{theirs}.norm2", f"{ours}.layernorm_after")
    names |= _layer(f"{theirs}.mlp.fc1", f"{ours}.mlp.fc1")
    names |= _layer(f"{theirs}.mlp.fc2", f"{ours}.mlp.fc2")
    return names


def _pixel_decoder(config: MaskFormerHfConfig) -> dict[str, Target]:
    theirs, ours = "sem_seg_head.pixel_decoder", "model.pixel_decoder"
    names = _conv_group_norm(f"{theirs}.layer_4", f"{ours}.stem")
    # The original numbers levels from fine to coarse; we number them in the order of use, from coarse to fine.
    for i, level in enumerate((3, 2, 1)):
        names |= _conv_group_norm(f"{theirs}.adapter_{level}", f"{ours}.laterals.{i}")
        names |= _conv_group_norm(f"{theirs}.layer_{level}", f"{ours}.outputs.{i}")
    names |= _layer(f"{theirs}.mask_features", f"{ours}.mask_projection")
    if config.pixel_decoder == "transformer_fpn":
        names |= _layer(f"{theirs}.input_proj", f"{ours}.input_projection")
        names |= _encoder(f"{theirs}.transformer.encoder", f"{ours}.encoder", config.encoder_layers, config.pre_norm)
    return names


def _deformable_pixel_decoder(config: MaskFormerHfConfig) -> dict[str, Target]:
    theirs, ours = "sem_seg_head.pixel_decoder", "model.pixel_decoder"
    names: dict[str, Target] = {f"{theirs}.transformer.level_embed": f"{ours}.level_embedding"}
    for level in range(config.encoder_levels):
        for part in (0, 1):
            names |= _layer(f"{theirs}.input_proj.{level}.{part}", f"{ours}.input_projections.{level}.{part}")
    for i in range(config.encoder_layers):
        their_layer, our_layer = f"{theirs}.transformer.encoder.layers.{i}", f"{ours}.layers.{i}"
        for part, own in {"value_proj": "v_proj", "output_proj": "o_proj"}.items():
            names |= _layer(f"{their_layer}.self_attn.{part}", f"{our_layer}.self_attn.{own}")
        for part in ("sampling_offsets", "attention_weights"):
            names |= _layer(f"{their_layer}.self_attn.{part}", f"{our_layer}.self_attn.{part}")
        names |= _layer(f"{their_layer}.norm1", f"{our_layer}.self_attn_norm")
        names |= _feed_forward(their_layer, our_layer)
        names |= _layer(f"{their_layer}.norm2", f"{our_layer}.ffn_norm")
    # The original numbers levels from fine to coarse; we number them in the order of use, from coarse to fine.
    num_finer = NUM_FEATURE_MAPS - config.encoder_levels
    for i in range(num_finer):
        names |= _conv_group_norm(f"{theirs}.adapter_{num_finer - i}", f"{ours}.laterals.{i}")
        names |= _conv_group_norm(f"{theirs}.layer_{num_finer - i}", f"{ours}.outputs.{i}")
    return names | _layer(f"{theirs}.mask_features", f"{ours}.mask_projection")


def _pem_pixel_decoder(config: MaskFormerHfConfig) -> dict[str, Target]:
    theirs, ours = "sem_seg_head.pixel_decoder", "model.pixel_decoder"
    names: dict[str, Target] = {}
    parts = {f"in_projections.{NUM_FEATURE_MAPS - 1 - i}": f"laterals.{i}" for i in range(NUM_FEATURE_MAPS)}
    for part, own in {**parts, "conv_avg": "context", "out": "mask_projection"}.items():
        names[f"{theirs}.{part}.conv.weight"] = f"{ours}.{own}.0.weight"
        names |= _batch_norm(f"{theirs}.{part}.bn", f"{ours}.{own}.1")
    for i in range(NUM_FEATURE_MAPS):
        mlp, own = f"{theirs}.csm.{i}.mlp.0.mlp", f"{ours}.modulations.{i}"
        names |= {f"{mlp}.0.weight": f"{own}.reduce.weight", f"{mlp}.3.weight": f"{own}.expand.weight"}
        names |= _batch_norm(f"{mlp}.1", f"{own}.norm")
    for i in range(NUM_FEATURE_MAPS - 1):
        theirs_i, convolution, upsampling = f"{theirs}.dcn.{i}", f"{ours}.convolutions.{i}", f"{ours}.upsamplings.{i}"
        names |= _layer(f"{theirs_i}.dcn_offset", f"{convolution}.places")
        names[f"{theirs_i}.dcn.weight"] = f"{convolution}.convolution.weight"
        names |= _batch_norm(f"{theirs_i}.dcn_bn", f"{convolution}.norm")
        names[f"{theirs_i}.up_sample.weight"] = f"{upsampling}.convolution.weight"
        names |= _batch_norm(f"{theirs_i}.up_bn", f"{upsampling}.norm")
    return names


def _conv_group_norm(theirs: str, ours: str) -> dict[str, Target]:
    return {f"{theirs}.weight": f"{ours}.0.weight", **_layer(f"{theirs}.norm", f"{ours}.1")}


def _predictor(config: MaskFormerHfConfig) -> dict[str, Target]:
    theirs, ours = "sem_seg_head.predictor", "model.transformer_decoder"
    if config.transformer_decoder is None:
        return _layer(theirs, "head.classifier")
    names: dict[str, Target] = {f"{theirs}.query_embed.weight": f"{ours}.query_position.weight"}
    if config.enforce_input_projection or memory_channels(config) != config.hidden_size:
        names |= _layer(f"{theirs}.input_proj", f"{ours}.input_projection")
    names |= _encoder(
        f"{theirs}.transformer.encoder", f"{ours}.encoder", config.decoder_encoder_layers, config.pre_norm
    )
    for i in range(config.decoder_layers):
        names |= _decoder_layer(f"{theirs}.transformer.decoder.layers.{i}", f"{ours}.layers.{i}")
    names |= _layer(f"{theirs}.transformer.decoder.norm", f"{ours}.norm")
    if not config.is_per_pixel:
        names |= _layer(f"{theirs}.class_embed", "head.class_predictor")
    for i in range(3):
        names |= _layer(f"{theirs}.mask_embed.layers.{i}", f"head.mask_embedder.layers.{i}")
    return names


def _masked_predictor(config: MaskFormerHfConfig) -> dict[str, Target]:
    theirs, ours = "sem_seg_head.predictor", "model.transformer_decoder"
    names: dict[str, Target] = {
        f"{theirs}.query_feat.weight": f"{ours}.query_features.weight",
        f"{theirs}.level_embed.weight": f"{ours}.level_embedding.weight",
    }
    if config.query_position:
        names[f"{theirs}.query_embed.weight"] = f"{ours}.query_position.weight"
    if config.query_source == "denoising":
        names[f"{theirs}.label_enc.weight"] = "query_source.label_embedding.weight"
    if config.enforce_input_projection or config.feature_size != config.hidden_size:
        for level in range(NUM_MEMORY_LEVELS):
            names |= _layer(f"{theirs}.input_proj.{level}", f"{ours}.input_projections.{level}")
    for i in range(config.decoder_layers):
        layer = f"{ours}.layers.{i}"
        cross, own, ffn = (
            f"{theirs}.transformer_{part}_layers.{i}" for part in ("cross_attention", "self_attention", "ffn")
        )
        names |= _cross_attention(config, cross, layer)
        names |= _attention(f"{own}.self_attn", f"{layer}.self_attn")
        names |= _layer(f"{own}.norm", f"{layer}.self_attn_norm")
        names |= _feed_forward(ffn, layer)
        names |= _layer(f"{ffn}.norm", f"{layer}.ffn_norm")
    names |= _layer(f"{theirs}.decoder_norm", f"{ours}.norm")
    for i in range(3):
        names |= _layer(f"{theirs}.mask_embed.layers.{i}", f"{ours}.mask_embedder.layers.{i}")
    return names | _layer(f"{theirs}.class_embed", "head.class_predictor")


def _cross_attention(config: MaskFormerHfConfig, theirs: str, layer: str) -> dict[str, Target]:
    ours = f"{layer}.cross_attn"
    if config.cross_attention == "prototype":
        cells = f"{theirs}.feature_proj"
        return {
            **_batch_norm(f"{cells}.bn", f"{ours}.cell_proj.norm"),
            **_layer(f"{cells}.to_query_3x3", f"{ours}.cell_proj.local"),
            **_layer(f"{cells}.out", f"{ours}.cell_proj.linear"),
            **_layer(f"{theirs}.query_proj.0", f"{ours}.query_norm"),
            **_layer(f"{theirs}.query_proj.1", f"{ours}.query_proj"),
            **_layer(f"{theirs}.proj", f"{ours}.proj"),
            **_layer(f"{theirs}.final", f"{ours}.o_proj"),
            f"{theirs}.alpha": f"{ours}.scale",
        }
    return {
        **{f"{theirs}.multihead_attn.in_proj_{kind}": f"{ours}.in_proj.{kind}" for kind in ("weight", "bias")},
        **_layer(f"{theirs}.multihead_attn.out_proj", f"{ours}.o_proj"),
        **_layer(f"{theirs}.norm", f"{layer}.cross_attn_norm"),
    }


def memory_channels(config: MaskFormerHfConfig) -> int:
    """Channels of the map that a DETR-style transformer decoder attends to, before any projection."""
    if config.pixel_decoder != "fpn":
        return config.feature_size
    backbone: Any = config.backbone_config
    return backbone.hidden_sizes[-1] if backbone.model_type == "resnet" else backbone.hidden_size


def _encoder(theirs: str, ours: str, num_layers: int, pre_norm: bool) -> dict[str, Target]:
    names: dict[str, Target] = {}
    for i in range(num_layers):
        their_layer, our_layer = f"{theirs}.layers.{i}", f"{ours}.layers.{i}"
        names |= _attention(f"{their_layer}.self_attn", f"{our_layer}.self_attn")
        names |= _layer(f"{their_layer}.norm1", f"{our_layer}.self_attn_norm")
        names |= _feed_forward(their_layer, our_layer)
        names |= _layer(f"{their_layer}.norm2", f"{our_layer}.ffn_norm")
    if pre_norm:
        names |= _layer(f"{theirs}.norm", f"{ours}.norm")
    return names


def _decoder_layer(theirs: str, ours: str) -> dict[str, Target]:
    return {
        **_attention(f"{theirs}.self_attn", f"{ours}.self_attn"),
        **_layer(f"{theirs}.norm1", f"{ours}.self_attn_norm"),
        **_attention(f"{theirs}.multihead_attn", f"{ours}.cross_attn"),
        **_layer(f"{theirs}.norm2", f"{ours}.cross_attn_norm"),
        **_feed_forward(theirs, ours),
        **_layer(f"{theirs}.norm3", f"{ours}.ffn_norm"),
    }


def _attention(theirs: str, ours: str) -> dict[str, Target]:
    return {
        f"{theirs}.in_proj_weight": _packed(ours, "weight"),
        f"{theirs}.in_proj_bias": _packed(ours, "bias"),
        **_layer(f"{theirs}.out_proj", f"{ours}.o_proj"),
    }


def _feed_forward(theirs: str, ours: str) -> dict[str, Target]:
    return _layer(f"{theirs}.linear1", f"{ours}.ffn.fc1") | _layer(f"{theirs}.linear2", f"{ours}.ffn.fc2")


def _packed(ours: str, kind: str) -> Target:
    return f"{ours}.q_proj.{kind}", f"{ours}.k_proj.{kind}", f"{ours}.v_proj.{kind}"


def _layer(theirs: str, ours: str) -> dict[str, Target]:
    return {f"{theirs}.{kind}": f"{ours}.{kind}" for kind in ("weight", "bias")}


# --- configuration ---------------------------------------------------------------------------------------------------
