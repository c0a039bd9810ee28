"""Backbones that were pretrained on ImageNet, in Detectron2's files: where the original's training starts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..models.configuration_maskformer import MaskFormerHfConfig
from .detectron2_names import tensor_names
from .safe_reader import read_checkpoint

# Detectron2's Swin and ours add norms to the outputs of its stages, which no classifier has: they start as identities.
_NEW = "hidden_states_norms."


def load_detectron2_backbone(path: str | Path, model: Any) -> int:
    """Fill the backbone of a model and return how many tensors were loaded.

    Args:
        path: The `.pkl` of a ResNet (R-50.pkl and R-101.pkl from `ImageNetPretrained/torchvision`, R-103.pkl from
            `DeepLab`), or of a Swin, as the original's tools/convert-pretrained-swin-model-to-d2.py writes it. The
            classifier is left out.
        model: A model with a `resnet` or `swin` backbone.

    Raises:
        ValueError: A weight of the backbone would stay random, or has another shape.
    """
    state = read_checkpoint(path)
    weights = _in_our_layout(state, model.config)
    own = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("model.backbone.")}
    missing = [name for name in own if name not in weights and _NEW not in name and "num_batches_tracked" not in name]
    mismatched = [name for name, weight in weights.items() if weight.shape != own[name].shape]
    if missing or mismatched:
        raise ValueError(
            f"{path} does not fit the backbone, which would stay random: {len(missing)} of {len(own)} tensors are "
            f"missing {missing[:3]}, {len(mismatched)} have another shape {mismatched[:3]}. The file holds "
            f"{sorted(state)[:3]} and so on"
        )
    model.load_state_dict(weights, strict=False)
    return len(weights)


def _in_our_layout(state: Mapping[str, torch.Tensor], config: MaskFormerHfConfig) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = {}
    for name, target in tensor_names(config).items():
        theirs = name.removeprefix("backbone.")
        if theirs == name or theirs not in state:
            continue
        if isinstance(target, str):
            weights[target] = state[theirs]
        else:
            weights.update(zip(target, state[theirs].chunk(3), strict=True))
    return weights
