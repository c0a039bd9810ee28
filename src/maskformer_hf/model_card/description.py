"""Sentences about a model: what it is, its parts, its limits, its licence."""

from typing import Any

from .records import Records

NUM_LABELS_SHOWN = 40
# How a pixel decoder is described, by its name; a part from outside the package is called by its name.
_PIXEL_DECODER_TEXTS = {
    "fpn": "FPN, {0.feature_size} channels",
    "transformer_fpn": "FPN with {0.encoder_layers} transformer encoder layers, {0.feature_size} channels",
    "deformable": "{0.encoder_layers} layers of multi-scale deformable attention, {0.feature_size} channels",
}
# Model and paper, by kind and transformer decoder.
_PAPERS = {
    ("image", "detr"): ("MaskFormer", "https://arxiv.org/abs/2107.06278"),
    ("image", "masked"): ("Mask2Former", "https://arxiv.org/abs/2112.01527"),
    ("clip", "masked"): ("Mask2Former-VIS", "https://arxiv.org/abs/2112.10764"),
}


def backbone_name(config: Any) -> str:
    backbone = config.backbone_config
    if backbone.model_type == "timm_backbone":
        return f"timm's {backbone.backbone}"
    depths = getattr(backbone, "depths", None)
    return backbone.model_type + (f" ({'-'.join(map(str, depths))} blocks)" if depths else "")


def paper_of(config: Any) -> tuple[str, str]:
    """The model's name, and where it is described."""
    return _PAPERS.get((config.kind, config.transformer_decoder), _PAPERS["image", "detr"])


def describe(config: Any, dataset_name: str | None) -> str:
    trained = f", trained on {dataset_name}" if dataset_name else ""
    model, paper = paper_of(config)
    where = " of videos" if config.kind == "clip" else ""
    classes = f"{len(config.id2label)} class{'es' if len(config.id2label) > 1 else ''}"
    return f"{model} ({paper}) for {config.task} segmentation{where} into {classes}{trained}."


def parts_table(records: Records) -> dict[str, str]:
    """The rows of the table of parts: name and description."""
    config, weights = records.config, records.weights
    labels = [config.id2label[label] for label in sorted(config.id2label)]
    shown = ", ".join(labels[:NUM_LABELS_SHOWN]).replace("|", "\\|")
    if len(labels) > NUM_LABELS_SHOWN:
        shown += f" and {len(labels) - NUM_LABELS_SHOWN} more, see config.json"
    decoder = "none"
    if config.transformer_decoder:
        decoder = f"{config.decoder_layers} layers, {config.num_queries} queries, {config.hidden_size} channels"
    return {
        "Task": config.task + (", in videos" if config.kind == "clip" else ""),
        "Classes": f"{len(labels)}: {shown}",
        "Backbone": backbone_name(config),
        "Pixel decoder": _PIXEL_DECODER_TEXTS.get(config.pixel_decoder, config.pixel_decoder).format(config),
        "Transformer decoder": decoder,
        "Input": _describe_input(records.processor),
        "Weights": f"{weights.count / 1e6:.2f} million, {weights.num_bytes / 1e6:.1f} MB in "
        f"{' and '.join(weights.types)}",
    }


def _describe_input(processor: dict[str, Any]) -> str:
    size = processor.get("size") or {}
    parts = []
    if processor.get("do_resize", True) and "shortest_edge" in size:
        parts.append(f"shorter side {size['shortest_edge']} pixels, aspect ratio kept")
        if size.get("longest_edge"):
            parts.append(f"longer side {size['longest_edge']} at most")
    if processor.get("size_divisor"):
        parts.append(f"padded to multiples of {processor['size_divisor']}")
    if processor.get("do_normalize", True) and processor.get("image_mean"):
        mean, std = ([round(value, 3) for value in processor[name]] for name in ("image_mean", "image_std"))
        parts.append(f"mean {mean}, deviation {std}")
    return "; ".join(parts) or "as given"


def describe_speed(speed: dict[str, Any], kind: str) -> str | None:
    if not speed:
        return None
    unit = "frame" if kind == "clip" else "photo"
    return (
        f"{speed['milliseconds']:.0f} ms for a {unit} of {speed['width']} x {speed['height']} pixels, from the {unit} "
        f"to its segments ({speed['task']}, {speed['dtype']}), on {speed['machine']}."
    )


def default_limits(config: Any) -> str:
    return (
        f"It knows the {len(config.id2label)} classes above and no others, as they look in the data it was trained on; "
        "on other cameras, places or weather it is worse, without saying so. Nobody's safety may depend on it. It was "
        f"trained for {config.task} segmentation; what it makes of other tasks was not measured."
    )


def describe_licence(words: dict[str, Any]) -> str:
    weights = f"The weights: {words['licence']}." if words.get("licence") else "None was stated for the weights."
    note = f" {words['licence_note'].strip()}" if words.get("licence_note") else ""
    return f"{weights}{note} The code files beside them are Apache-2.0, from the package `maskformer_hf`."
