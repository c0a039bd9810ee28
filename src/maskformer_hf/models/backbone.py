"""Backbones of transformers (`AutoBackbone`) and timm as one part: an image in, four feature maps out."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from transformers import AutoBackbone, AutoConfig, PreTrainedConfig

from .backbone_frozen import FreezableBackbone
from .backbone_tokens import TokenBackbone
from .backbone_vit import PlainBackbone
from .interfaces import Facts

logger = logging.getLogger(__name__)

# A feature pyramid, finest map first.
STRIDES = (4, 8, 16, 32)

# These backbones keep the final norm of a classifier, although no feature map passes it: distributed training would
# wait for the gradients of its parameters.
_UNUSED_NORMS = {"bit": "bit.norm", "maskformer-swin": "model.layernorm", "swin": "swin.layernorm"}
# Norms that a backbone of transformers adds behind the stages of the classifier it is made from; they start as
# identities. The rest is the counter of BatchNorm, which means nothing where statistics are given.
_NEW_WEIGHTS = ("hidden_states_norms.", "num_batches_tracked")


class Backbone(FreezableBackbone):
    """
    Attributes:
        facts: Of the four feature maps, finest first. `output_stride` of a timm backbone replaces strides of its last
            stages by dilation.
    """

    def __init__(self, config: PreTrainedConfig, freeze_batch_norm: bool, num_maps: int = len(STRIDES)):
        super().__init__()
        self.freeze_batch_norm = freeze_batch_norm
        self.body: Any = AutoBackbone.from_config(config)
        channels = list(self.body.channels)
        if len(channels) != num_maps:
            raise ValueError(
                f"The backbone gives {len(channels)} feature maps ({channels} channels), but the pixel decoder needs "
                f"{num_maps}: set `out_features` or `out_indices` of `backbone_config`."
            )
        coarsest = getattr(config, "output_stride", None) or STRIDES[-1]
        self.facts = Facts(tuple(channels), tuple(min(stride, coarsest) for stride in STRIDES[-num_maps:]))
        if config.model_type in _UNUSED_NORMS:
            self.body.set_submodule(_UNUSED_NORMS[config.model_type], nn.Identity())
        if config.model_type == "resnet":
            _shape_resnet(self.body, config)
        if config.model_type == "swin":
            _drop_both_branches(self.body)
        has_absolute_positions = config.model_type == "swin" and config.use_absolute_embeddings
        self.position_stride: int | None = config.patch_size if has_absolute_positions else None
        timm_model = getattr(self.body, "_backbone", None)
        self.is_channels_last = str(getattr(timm_model, "output_fmt", "")).endswith("NHWC")
        if freeze_batch_norm:
            for module in _batch_norms(self):
                for name in ("weight", "bias"):
                    parameter = module._parameters.pop(name)
                    module.register_buffer(name, None if parameter is None else parameter.detach())
                module.eval()
                if type(module) is nn.BatchNorm2d:
                    module.__class__ = FrozenBatchNorm2d

    def train(self, mode: bool = True) -> "Backbone":
        super().train(mode)
        if self.freeze_batch_norm:
            for module in _batch_norms(self):
                module.eval()
        return self

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Feature maps (B, C, H/s, W/s) at the strides s of `facts` for `pixel_values` (B, C, H, W)."""
        if self.position_stride is not None:
            # Swin pads to whole patches itself, but resizes its position embeddings to the unpadded size.
            height, width = pixel_values.shape[-2:]
            pixel_values = F.pad(pixel_values, (0, -width % self.position_stride, 0, -height % self.position_stride))
            features = self.run(pixel_values, interpolate_pos_encoding=True)
        else:
            features = self.run(pixel_values)
        if self.is_channels_last:
            features = [feature.permute(0, 3, 1, 2).contiguous() for feature in features]
        if not torch.compiler.is_compiling():
            self._check_features(features, *pixel_values.shape[-2:])
        return tuple(features)

    def _check_features(self, features: Sequence[torch.Tensor], height: int, width: int):
        """A vision transformer has one stride for all its maps, and some backbones announce other channels."""
        for feature, channels, stride in zip(features, self.facts.channels, self.facts.strides, strict=True):
            # Some backbones round up and some down.
            sizes = zip(feature.shape[-2:], (height, width), strict=True)
            if feature.shape[1] == channels and all(abs(cells - size / stride) < 1 for cells, size in sizes):
                continue
            raise ValueError(
                f"The {self.body.config.model_type!r} backbone gives a feature map of shape {tuple(feature.shape)} for "
                f"an image of {height}x{width} pixels; the pixel decoder needs {channels} channels at stride {stride}. "
                f"Choose a backbone with maps of strides {self.facts.strides}, or the right ones by `out_features` or "
                "`out_indices` of `backbone_config`; for a vision transformer set `backbone_pyramid='simple'`."
            )


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm with fixed statistics, which in training keeps no copy of its input: half of what a ResNet keeps."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        statistics: Any = (self.weight, self.bias, self.running_mean, self.running_var)
        # In half precision, PyTorch's computes in single precision; without gradients, nothing is kept.
        if not torch.is_grad_enabled() or input.dtype != torch.float32 or any(part is None for part in statistics):
            return super().forward(input)
        weight, bias, mean, variance = (part.float() for part in statistics)
        scale = weight * (variance + self.eps).rsqrt()
        return torch.addcmul((bias - mean * scale)[:, None, None], input, scale[:, None, None])


def make_backbone(config: Any) -> FreezableBackbone:
    """The backbone of a model's configuration."""
    backbone: FreezableBackbone
    if config.backbone_pyramid is None:
        backbone = Backbone(config.backbone_config, config.freeze_batch_norm, config.num_feature_maps)
    elif config.backbone_pyramid == "tokens":
        backbone = TokenBackbone(config.backbone_config)
    else:
        backbone = PlainBackbone(config.backbone_config, config.feature_size)
    if config.freeze_backbone:
        backbone.freeze()
    return backbone


def _batch_norms(module: nn.Module) -> list[nn.Module]:
    return [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def _drop_both_branches(swin: nn.Module):
    """Let stochastic depth drop the MLP of a Swin block as well. transformers drops its attention only."""
    rates = {block: getattr(getattr(block, "drop_path", None), "drop_prob", 0.0) for block in swin.modules()}
    for block, rate in rates.items():
        if rate > 0:
            mlp: Any = block.get_submodule("mlp")
            mlp.drop_path = type(block.drop_path)(rate)
            mlp.register_forward_hook(_drop_path)


def _drop_path(branch: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    return branch.drop_path(output)


def _shape_resnet(backbone: Any, config: PreTrainedConfig):
    """Give a ResNet the stem and the dilations of DeepLab's "c" variants (R50c, R101c), where its configuration asks.

    `stem_type="deep"`: 3x3 convolutions of stride 2, 1, 1, the first two half as wide as the third. `multi_grid`:
    dilation of each 3x3 convolution of the last stage; its stride stays.
    """
    stem_type = getattr(config, "stem_type", "basic")
    if stem_type == "deep":
        layer = type(backbone.embedder.embedder)
        width = config.embedding_size
        backbone.embedder.embedder = nn.Sequential(
            layer(config.num_channels, width // 2, kernel_size=3, stride=2, activation=config.hidden_act),
            layer(width // 2, width // 2, kernel_size=3, activation=config.hidden_act),
            layer(width // 2, width, kernel_size=3, activation=config.hidden_act),
        )
    elif stem_type != "basic":
        raise ValueError(f"`stem_type` of a resnet backbone must be 'basic' or 'deep', got {stem_type!r}.")
    multi_grid = getattr(config, "multi_grid", None)
    if multi_grid is None:
        return
    blocks = backbone.encoder.stages[-1].layers
    if len(multi_grid) != len(blocks):
        raise ValueError(f"`multi_grid` needs a dilation for each of the {len(blocks)} last blocks, got {multi_grid}.")
    for block, dilation in zip(blocks, multi_grid, strict=True):
        for convolution in block.layer.modules():
            if isinstance(convolution, nn.Conv2d) and convolution.kernel_size == (3, 3):
                convolution.dilation = convolution.padding = (dilation, dilation)


def pretrained_backbone_config(source: str) -> PreTrainedConfig:
    """The configuration of a backbone by name: `timm/NAME`, a Hub name of transformers, or a local folder."""
    if source.startswith("timm/"):
        return AutoConfig.for_model("timm_backbone", backbone=source.removeprefix("timm/"))
    return AutoConfig.from_pretrained(source)


def load_pretrained_backbone(backbone: FreezableBackbone, source: str, weights_file: str | None = None) -> int:
    """Fill `backbone` with the pretrained weights of `source` and return how many tensors were loaded.

    The first convolution is adapted to another number of input channels, see [`adapt_input_channels`].

    Args:
        source: As for [`pretrained_backbone_config`].
        weights_file: A safetensors file with the weights, in the key names of the backbone's own library. Without it
            the weights come from the Hub or the folder.

    Raises:
        ValueError: If a weight of the backbone would have stayed random, or has another shape.
    """
    own = backbone.body.state_dict()
    if source.startswith("timm/"):
        state = _timm_weights(source.removeprefix("timm/"), weights_file, own)
    else:
        state = _transformers_weights(backbone.body, source, weights_file)
    missing = [name for name in own if name not in state and not any(new in name for new in _NEW_WEIGHTS)]
    loaded = {name: state[name] for name in own if name in state}
    num_channels = backbone.body.config.num_channels
    for name, weight in loaded.items():
        if weight.dim() == 4 and weight.shape[1] != own[name].shape[1] == num_channels:
            loaded[name] = adapt_input_channels(weight, num_channels)
    mismatched = [name for name, weight in loaded.items() if weight.shape != own[name].shape]
    if missing or mismatched:
        raise ValueError(
            f"Weights of the pretrained backbone {source!r} do not fit and would have stayed random: {len(missing)} of "
            f"{len(own)} tensors are missing {missing[:3]}, {len(mismatched)} have another shape {mismatched[:3]}."
        )
    backbone.body.load_state_dict(loaded, strict=False)
    logger.info("Loaded all %d tensors of the pretrained backbone %s.", len(loaded), source)
    return len(loaded)


def _timm_weights(name: str, weights_file: str | None, own: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of a timm classifier under the names its feature extractor has for them in `TimmBackbone`."""
    if weights_file is None:
        try:
            import timm
        except ImportError as error:
            raise ImportError(f"The backbone timm/{name} needs timm: pip install timm") from error
        classifier = timm.create_model(name, pretrained=True).state_dict()
    else:
        classifier = load_file(weights_file)
    weights = {}
    for key, weight in classifier.items():
        # timm's three extractors: the model without its end, a flat list of its stages, the model inside a module.
        for own_key in (key, key.replace(".", "_", 1), f"model.{key}"):
            if f"_backbone.{own_key}" in own:
                weights[f"_backbone.{own_key}"] = weight
    return weights


def _transformers_weights(body: Any, source: str, weights_file: str | None) -> dict[str, torch.Tensor]:
    """Weights of a transformers model under the names its backbone class has for them; those not found are left out."""
    config = AutoConfig.from_pretrained(source)
    if hasattr(body, "out_features"):
        config.out_features = body.out_features
    pretrained, info = type(body).from_pretrained(
        None if weights_file else source,
        config=config,
        state_dict=load_file(weights_file) if weights_file else None,
        dtype=torch.float32,
        output_loading_info=True,
    )
    return {name: weight for name, weight in pretrained.state_dict().items() if name not in info["missing_keys"]}


def adapt_input_channels(weight: torch.Tensor, num_channels: int) -> torch.Tensor:
    """A pretrained first convolution (O, C, h, w) for images of `num_channels` channels.

    One channel gets the sum over the pretrained ones: a grey image has the response it has as a colour image. More
    channels repeat the pretrained ones, scaled such that responses keep their size: inputs are expected to be
    normalised channel by channel.
    """
    if num_channels == 1:
        return weight.sum(1, keepdim=True)
    channels = weight.shape[1]
    repeated = weight.repeat(1, -(-num_channels // channels), 1, 1)[:, :num_channels]
    return repeated * (channels / num_channels)
