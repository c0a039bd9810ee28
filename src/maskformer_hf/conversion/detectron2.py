"""Checkpoints of the original MaskFormer and Mask2Former (github.com/facebookresearch), made with Detectron2.

Nothing is guessed: a tensor that the map of names does not know, or one of ours that it leaves empty, is an error that
names it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..models.configuration_maskformer import MaskFormerHfConfig
from ..models.modeling_auto import MODEL_CLASSES
from .detectron2_config import config_from_detectron2, read_config_file
from .detectron2_names import later_name, tensor_names
from .safe_reader import read_checkpoint
from .wording import check_names, shorten

# What the original saves and our models do not need: the end of a name, and why.
IGNORED = {
    "criterion.empty_weight": "the class weights of the loss; they are `no_object_weight` in the configuration",
    "attn.relative_position_index": "Swin's lookup table; it follows from the window size",
    "num_batches_tracked": "BatchNorm's counter, which nothing reads",
    "pixel_mean": "belongs to the image processor",
    "pixel_std": "belongs to the image processor",
}


def load_detectron2(path: str | Path, config: MaskFormerHfConfig | None = None) -> Any:
    """Build the model of an original checkpoint: MaskFormer, Mask2Former, its video form, or a per-pixel baseline.

    Args:
        path: A `.pkl` from the model zoo, a `.pth` from your own training, or the same state dict as `.safetensors`.
        config: The configuration, from a preset or [`config_from_detectron2`]. Without it, the `config.yaml` that
            Detectron2 writes beside its checkpoints (or the same as `config.json`) is read.

    Raises:
        ValueError: There is neither `config` nor such a file, or the checkpoint does not fit it.
    """
    path = Path(path)
    config = _config_beside(path) if config is None else config
    state = convert_state_dict(read_checkpoint(path), config)
    model = MODEL_CLASSES[config.model_type](config)
    model.load_state_dict(state)
    return model.eval()


def convert_state_dict(state: Mapping[str, torch.Tensor], config: MaskFormerHfConfig) -> dict[str, torch.Tensor]:
    """Give the tensors of an original checkpoint our names and layouts.

    Args:
        state: Either of the original's layouts: `sem_seg_head.adapter_1...` as in the released files, or
            `sem_seg_head.pixel_decoder.adapter_1...` as its later versions save. The original decides by a version
            number, which a plain dictionary does not keep; here the names decide.

    Raises:
        ValueError: A tensor has no place in a model of this configuration, the model needs one that is missing, or the
            shapes differ.
    """
    state = {later_name(name): value for name, value in state.items() if not name.endswith(tuple(IGNORED))}
    names = tensor_names(config)
    check_names(state, names)
    converted = {}
    for name, target in names.items():
        value = state[name]
        if name == "backbone.absolute_pos_embed":
            value = value.flatten(2).transpose(1, 2)  # (1, C, h, w) -> (1, hw, C)
        if isinstance(target, str):
            converted[target] = value.contiguous()
        elif value.dim() and len(value) % 3 == 0:
            converted.update(zip(target, (part.clone() for part in value.chunk(3)), strict=True))
        else:
            raise ValueError(
                f"{name} of the checkpoint has the shape {tuple(value.shape)}, which cannot be divided into queries, "
                "keys and values."
            )
    _check_against_model(converted, config)
    return converted


def _config_beside(path: Path) -> MaskFormerHfConfig:
    for file in (path.with_name("config.yaml"), path.with_name("config.json")):
        if file.is_file():
            return config_from_detectron2(read_config_file(file))
    raise ValueError(
        f"{path} does not say what model it holds, and there is no config.yaml of Detectron2 beside it: pass `config`, "
        "such as `maskformer_hf.presets.PRESETS[name]()`, or `config_from_detectron2` of the dumped configuration."
    )


def _check_against_model(converted: dict[str, torch.Tensor], config: MaskFormerHfConfig):
    """Adds BatchNorm's counters, which the original does not save, and compares names and shapes with the model's."""
    with torch.device("meta"):
        own = MODEL_CLASSES[config.model_type](config).state_dict()
    for name in own.keys() - converted.keys():
        if name.endswith("num_batches_tracked"):
            converted[name] = torch.zeros((), dtype=torch.int64)
    homeless, empty = sorted(converted.keys() - own.keys()), sorted(own.keys() - converted.keys())
    if homeless or empty:
        raise ValueError(
            f"The map of names does not fit the model: the model does not have {shorten(homeless)}, and the map leaves "
            f"{shorten(empty)} empty."
        )
    shapes = {name: (tuple(converted[name].shape), tuple(own[name].shape)) for name in own}
    wrong = [f"{name}: {a} in the checkpoint, {b} in the model" for name, (a, b) in shapes.items() if a != b]
    if wrong:
        raise ValueError(f"The checkpoint has other sizes than the configuration: {shorten(wrong)}.")
