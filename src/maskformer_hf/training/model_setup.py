"""What a recipe asks of a model before it trains: memory layout, precision, gradient checkpointing, compilation."""

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only
from torch.utils.checkpoint import checkpoint
from transformers.models.resnet.modeling_resnet import ResNetBasicLayer, ResNetBottleNeckLayer

from .arguments import Recipe


def prepare_model(model: Any, recipe: Recipe, device_type: str) -> Any:
    """Applies the options of a recipe to a model, and returns it."""
    if recipe.channels_last:
        model = model.to(memory_format=torch.channels_last)
    keep_float32(model, recipe.float32_modules, device_type)
    if recipe.frozen_dtype != "float32":
        _shorten_frozen(model, recipe.frozen_dtype)
    if recipe.gradient_checkpointing:
        enable_gradient_checkpointing(model)
    if recipe.compile:
        model.base_model.compile()  # without the loss, as matching leaves the graph
    return model


def _shorten_frozen(model: Any, dtype: str) -> None:
    backbone = model.base_model.backbone
    if not backbone.is_frozen:
        raise ValueError(
            f"frozen_dtype is {dtype!r}, but the backbone is trained: set model.config.freeze_backbone to true, or use "
            "mixed_precision"
        )
    backbone.body.to(getattr(torch, dtype))


def keep_float32(model: nn.Module, names: list[str], device_type: str) -> None:
    """Lets submodules compute in float32 under autocast. Raises ValueError for a name that the model does not have."""
    for name in names:
        _keep_float32(model, name, device_type)


def _keep_float32(model: nn.Module, name: str, device_type: str) -> None:
    try:
        module = model.get_submodule(name)
    except AttributeError as error:
        children = [child for child, _ in model.named_modules() if child.count(".") <= name.count(".") and child]
        raise ValueError(f"float32_modules names {name!r}; the model has {children}") from error
    forward = torch.autocast(device_type, enabled=False)(module.forward)

    def float32(value: torch.Tensor) -> torch.Tensor:
        return value.float() if value.is_floating_point() else value

    def forward_in_float32(*arguments: Any, **options: Any) -> Any:
        # Inputs from modules under autocast have a lower precision.
        return forward(
            *tree_map_only(torch.Tensor, float32, arguments), **tree_map_only(torch.Tensor, float32, options)
        )

    module.forward = forward_in_float32


def enable_gradient_checkpointing(model: Any) -> None:
    """Makes the backward pass compute transformer layers and blocks of the backbone again, in place of keeping them."""
    # transformers 5.23 renamed the method.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable()
    body = model.base_model.backbone.body
    timm_model = getattr(body, "_backbone", None)
    if hasattr(timm_model, "set_grad_checkpointing"):
        timm_model.set_grad_checkpointing()
    for module in body.modules():
        # ResNets are the only backbones of transformers without gradient checkpointing.
        if isinstance(module, ResNetBasicLayer | ResNetBottleNeckLayer):
            module.forward = partial(checkpoint, module.forward, use_reentrant=False)
