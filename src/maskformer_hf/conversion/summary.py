"""A model in a few lines, for `maskformer convert` to print."""

from typing import Any


def summary(model: Any) -> list[tuple[str, str]]:
    """Name and description of each part of a model."""
    config: Any = model.config
    encoder = f", {config.encoder_layers} encoder layers" if config.pixel_decoder != "fpn" else ""
    names = [config.id2label[label] for label in range(config.num_labels)]
    shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
    stuff = f", {len(config.label_ids_to_fuse)} of them stuff" if config.label_ids_to_fuse else ""
    return [
        ("backbone", f"{config.backbone_config.model_type}, {_backbone_sizes(model)}"),
        ("pixel decoder", f"{config.pixel_decoder}, width {config.feature_size}{encoder}"),
        ("decoder", _decoder_sizes(config)),
        ("classes", f"{config.num_labels} ({shown}){stuff}"),
        ("task", config.task),
        ("parameters", f"{sum(parameter.numel() for parameter in model.parameters()):,}"),
    ]


def _backbone_sizes(model: Any) -> str:
    backbone = model.config.backbone_config
    if backbone.model_type == "resnet":
        sizes = f"depths {_join(backbone.depths)}, widths {_join(backbone.hidden_sizes)}"
    elif backbone.model_type == "swin":
        sizes = f"depths {_join(backbone.depths)}, width {backbone.embed_dim}, window {backbone.window_size}"
    else:
        sizes = f"widths {_join(model.model.backbone.facts.channels)}"
    if getattr(backbone, "stem_type", "basic") == "deep":
        sizes += f", DeepLab's stem and dilations {_join(getattr(backbone, 'multi_grid', None) or [1])}"
    if getattr(backbone, "use_absolute_embeddings", False):
        sizes += ", absolute positions"
    return sizes


def _decoder_sizes(config: Any) -> str:
    sizes = "none: pixels are classified"
    if config.transformer_decoder is not None:
        sizes = (
            f"{config.decoder_layers} layers, {config.num_queries} queries, width {config.hidden_size}, "
            f"{config.num_attention_heads} heads"
        )
    return sizes + (", norms in front" if config.pre_norm else "")


def _join(values: Any) -> str:
    return " ".join(map(str, values))
