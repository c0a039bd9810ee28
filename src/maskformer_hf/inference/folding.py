"""BatchNorm folded into the convolution in front of it: the same numbers, and one pass over each map less.

Weights stay what they were. The folded ones lie beside them, are in no state dict, and serve where no gradient is asked
for; training, or loading other weights, puts an end to them.
"""

import logging
from typing import Any

import torch
from torch import nn

from ..models.backbone import FrozenBatchNorm2d
from ..models.interfaces import Ask
from ..models.modeling_pretrained import MaskFormerHfPreTrainedModel

logger = logging.getLogger(__name__)

# Largest difference of maps in shares of their largest value: rounding stays below, a wrong pair of layers does not.
LARGEST_DIFFERENCE = 1e-4
# Side of the image by which pairs are found and checked.
IMAGE_SIZE = 64


def fold_batch_norms(model: MaskFormerHfPreTrainedModel) -> int:
    """Fold what can be folded of backbone and pixel decoder, and return how many layers that are.

    A BatchNorm is folded if it reads the output of a convolution, as one forward shows. If another layer reads that
    output as well, the results differ, and nothing is folded. Only in float32: with fewer bits the two round
    differently.

    Args:
        model: In evaluation mode.
    """
    if model.dtype != torch.float32 or not any(_is_batch_norm(module) for module in model.modules()):
        return 0
    base: Any = model.base_model
    lead = (1, 1) if model.config.kind == "clip" else (1,)
    generator = torch.Generator(model.device).manual_seed(0)
    size = (*lead, model.config.num_channels, IMAGE_SIZE, IMAGE_SIZE)
    image = torch.randn(size, generator=generator, device=model.device)
    with torch.inference_mode(False), torch.no_grad():
        try:
            pairs, before = _observed(base, image)
        except (AssertionError, RuntimeError, ValueError) as error:
            logger.info("BatchNorm is not folded: the backbone takes no image of %s pixels (%s).", IMAGE_SIZE, error)
            return 0
        for convolution, norm in pairs:
            _fold(convolution, norm)
        after = _maps(base, image)
    for old, new in zip(before, after, strict=True):
        difference = (new - old).abs().max() / old.abs().max().clamp(min=1e-12)
        if not difference < LARGEST_DIFFERENCE:
            for convolution, _ in pairs:
                convolution.unfold()
            logger.info("BatchNorm is not folded into convolutions: maps differ by %.1e.", difference)
            return 0
    return len(pairs)


def unfold_batch_norms(module: nn.Module):
    """Undo it in all layers below."""
    for layer in list(module.modules()):
        if isinstance(layer, Folded):
            layer.unfold()


class Folded(nn.Module):
    """What a folded convolution and its BatchNorm have in common."""

    plain_class: type[nn.Module]
    # A tuple, because a module in an attribute would be a child.
    convolution: tuple[nn.Module, ...]
    norm: tuple[nn.Module, ...]

    def serves(self) -> bool:
        """Whether the folded weights may be used: not where a gradient of the weights is wanted."""
        parameters = (*self.convolution[0].parameters(), *self.norm[0].parameters())
        return not (torch.is_grad_enabled() and any(parameter.requires_grad for parameter in parameters))

    def unfold(self):
        """Both layers as they were."""
        convolution, norm = self.convolution[0], self.norm[0]
        for module in (convolution, norm):
            module.__class__ = module.plain_class  # pyrefly: ignore
            for name in ("plain_class", "convolution", "norm"):
                module.__dict__.pop(name)
        for name in ("folded_weight", "folded_bias"):
            delattr(convolution, name)

    def train(self, mode: bool = True) -> Any:
        if not mode:
            return super().train(mode)
        self.unfold()
        # Now that of the plain class.
        return self.train(mode)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any):
        self.unfold()
        self._load_from_state_dict(*args, **kwargs)


class FoldedConv2d(Folded, nn.Conv2d):
    folded_weight: torch.Tensor
    folded_bias: torch.Tensor

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not self.serves():
            return super().forward(input)
        return self._conv_forward(input, self.folded_weight, self.folded_bias)


class FoldedBatchNorm2d(Folded, nn.BatchNorm2d):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return input if self.serves() else super().forward(input)


class FoldedFrozenBatchNorm2d(Folded, FrozenBatchNorm2d):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return input if self.serves() else super().forward(input)


def _folded_class(norm: nn.Module) -> type | None:
    """What a BatchNorm becomes. A class of its own may do more than these, and is not folded."""
    if type(norm).__module__.startswith("timm."):
        # timm takes its time to be imported: only where a model is made of it.
        from .folding_timm import FOLDED_NORMS

        return FOLDED_NORMS.get(type(norm))
    classes: dict[type, type] = {nn.BatchNorm2d: FoldedBatchNorm2d, FrozenBatchNorm2d: FoldedFrozenBatchNorm2d}
    return classes.get(type(norm))


def _is_batch_norm(module: Any) -> bool:
    return _folded_class(module) is not None and module.running_mean is not None


def _observed(base: Any, image: torch.Tensor) -> tuple[list[tuple[Any, Any]], list[torch.Tensor]]:
    """Convolutions with the BatchNorm that reads their output, and the maps of a forward."""
    # Outputs are kept, so that no later one can lie at the place of an earlier one.
    outputs: dict[int, tuple[nn.Module, torch.Tensor]] = {}
    readers: list[tuple[nn.Module, nn.Module]] = []
    calls: dict[nn.Module, int] = {}

    def after_convolution(module: nn.Module, inputs: Any, output: torch.Tensor):
        calls[module] = calls.get(module, 0) + 1
        outputs[id(output)] = module, output

    def before_norm(module: nn.Module, inputs: Any):
        calls[module] = calls.get(module, 0) + 1
        if id(inputs[0]) in outputs:
            readers.append((outputs[id(inputs[0])][0], module))

    hooks = []
    for module in base.modules():
        if type(module) is nn.Conv2d:
            hooks.append(module.register_forward_hook(after_convolution))
        elif _is_batch_norm(module):
            hooks.append(module.register_forward_pre_hook(before_norm))
    try:
        maps = _maps(base, image)
    finally:
        for hook in hooks:
            hook.remove()
    return [pair for pair in readers if all(calls[module] == 1 for module in pair)], maps


def _maps(base: Any, image: torch.Tensor) -> list[torch.Tensor]:
    encoded = base.encode(image, Ask())
    return [*encoded.features, encoded.pixels.embeddings, *encoded.pixels.memory]


def _fold(convolution: Any, norm: Any):
    # Rounded once, at the end.
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight
    bias = -norm.running_mean if convolution.bias is None else convolution.bias - norm.running_mean
    bias = bias * scale
    if norm.bias is not None:
        bias = bias + norm.bias
    weight = convolution.weight * scale[:, None, None, None]
    convolution.register_buffer("folded_weight", weight.float(), persistent=False)
    convolution.register_buffer("folded_bias", bias.float(), persistent=False)
    for module, folded_class in ((convolution, FoldedConv2d), (norm, _folded_class(norm))):
        module.plain_class, module.convolution, module.norm = type(module), (convolution,), (norm,)
        module.__class__ = folded_class
