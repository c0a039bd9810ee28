"""Backbones of transformers (`AutoBackbone`) and timm as one part: an image in, four feature maps out."""

import logging
from collections.abc import Mapping

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from transformers import AutoBackbone, AutoConfig, PreTrainedConfig

from .configuration_maskformer import NUM_FEATURE_LEVELS

logger = logging.getLogger(__name__)

# Weights of a pretrained backbone that a feature extractor has no use for, and weights it adds.
_CLASSIFIER_PREFIXES = (
    "classifier.",
    "head.",
    "fc.",
    "conv_head.",
    "bn2.",
    "norm.",
    "norm_head.",
    "layernorm.",
    "head_dist.",
)
_ADDED_NAMES = ("hidden_states_norms.",)


class Backbone(nn.Module):
    """
    Attributes:
        channels: Channels of the four feature maps, finest first.
    """

    def __init__(self, config: PreTrainedConfig, freeze_batch_norm: bool):
        super().__init__()
        self.freeze_batch_norm = freeze_batch_norm
        self.body = AutoBackbone.from_config(config)
        self.channels = list(self.body.channels)
        if len(self.channels) != NUM_FEATURE_LEVELS:
            raise ValueError(
                f"The backbone gives {len(self.channels)} feature maps ({self.channels} channels), but the pixel decoder "
                f"needs {NUM_FEATURE_LEVELS}: set `out_features` or `out_indices` of `backbone_config`."
            )
        # The port keeps Swin's classification LayerNorm, which no feature map passes: DDP would wait for its gradient.
        if config.model_type == "swin":
            self.body.swin.layernorm = nn.Identity()
        if config.model_type == "resnet":
            _shape_resnet(self.body, config)
        self.has_absolute_positions = bool(getattr(config, "use_absolute_embeddings", False))
        self.patch_size = getattr(config, "patch_size", None)
        if freeze_batch_norm:
            for module in _batch_norms(self):
                for name in ("weight", "bias"):
                    parameter = module._parameters.pop(name)
                    module.register_buffer(name, None if parameter is None else parameter.detach())
                module.eval()

    def train(self, mode: bool = True) -> "Backbone":
        super().train(mode)
        if self.freeze_batch_norm:
            for module in _batch_norms(self):
                module.eval()
        return self

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Feature maps (B, C_s, H/s, W/s) at strides s = 4, 8, 16, 32 for `pixel_values` (B, C, H, W)."""
        if self.has_absolute_positions:
            # Swin pads to whole patches itself, but resizes its position embeddings to the size before that.
            height, width = pixel_values.shape[-2:]
            pixel_values = F.pad(pixel_values, (0, -width % self.patch_size, 0, -height % self.patch_size))
            features = self.body(pixel_values, interpolate_pos_encoding=True).feature_maps
        else:
            features = self.body(pixel_values).feature_maps
        # Some timm models give channels last.
        return tuple(
            feature if feature.shape[1] == channels else feature.permute(0, 3, 1, 2).contiguous()
            for feature, channels in zip(features, self.channels, strict=True)
        )


def _batch_norms(module: nn.Module) -> list[nn.Module]:
    return [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def _shape_resnet(backbone: nn.Module, config: PreTrainedConfig):
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


def pretrained_backbone_config(source: str, num_channels: int = 3) -> PreTrainedConfig:
    """The configuration of a backbone by name: `timm/NAME`, a Hub name of transformers, or a local folder."""
    if source.startswith("timm/"):
        return AutoConfig.for_model("timm_backbone", backbone=source.removeprefix("timm/"), num_channels=num_channels)
    return AutoConfig.from_pretrained(source)


def load_pretrained_backbone(backbone: Backbone, source: str, weights_file: str | None = None) -> int:
    """Fill `backbone` with the pretrained weights of `source` and return how many tensors were loaded.

    Args:
        source: As for [`pretrained_backbone_config`].
        weights_file: A safetensors file with the weights, in the key names of the backbone's own library. Without it
            the weights come from the Hub or the folder.

    Raises:
        ValueError: If a weight of the backbone stayed random or has another shape. The first convolution is adapted to
            another number of channels.
    """
    state = load_file(weights_file) if weights_file else _download_state(source)
    # transformers saves a classifier's backbone below its model type; TimmBackbone keeps its model in `_backbone`.
    own_keys = backbone.body.state_dict().keys()
    state = _match_prefix({key: value.float() for key, value in state.items() if value.is_floating_point()}, own_keys)
    own_state = backbone.body.state_dict()
    _adapt_stem(state, own_state)
    mismatched = [key for key in state.keys() & own_keys if state[key].shape != own_state[key].shape]
    missing = [
        key
        for key, value in own_state.items()
        if value.is_floating_point() and key not in state and not key.startswith(_ADDED_NAMES)
    ]
    if mismatched or missing:
        raise ValueError(
            f"Weights of the pretrained backbone {source!r} do not fit: {len(missing)} tensors are missing "
            f"({missing[:3]} ...), {len(mismatched)} have another shape ({mismatched[:3]} ...). They would have stayed "
            "random."
        )
    unused = [key for key in state.keys() - own_keys if not _is_classifier(key)]
    loaded = {key: value for key, value in state.items() if key in own_keys}
    backbone.body.load_state_dict(loaded, strict=False)
    logger.info("Loaded %d tensors into the pretrained backbone %s (unused: %s)", len(loaded), source, unused or "none")
    return len(loaded)


def _download_state(source: str) -> Mapping[str, torch.Tensor]:
    if source.startswith("timm/"):
        import timm

        # A classifier, because timm's feature extractors do not say what they leave out.
        return timm.create_model(source.removeprefix("timm/"), pretrained=True).state_dict()
    from transformers import AutoModel

    return AutoModel.from_pretrained(source).state_dict()


def _match_prefix(state: dict[str, torch.Tensor], own_keys) -> dict[str, torch.Tensor]:
    """Try the prefixes that the same weights have in other classes, and keep the one most keys agree with."""
    own_keys = set(own_keys)
    first_parts = {key.split(".")[0] + "." for key in state} | {key.split(".")[0] + "." for key in own_keys}
    candidates = [state]
    candidates += [{prefix + key: value for key, value in state.items()} for prefix in first_parts]
    candidates += [{key.removeprefix(prefix): value for key, value in state.items()} for prefix in first_parts]
    return dict(max(candidates, key=lambda candidate: len(candidate.keys() & own_keys)))


def _is_classifier(key: str) -> bool:
    return any(part in f".{key}" for part in (f".{prefix}" for prefix in _CLASSIFIER_PREFIXES))


def _adapt_stem(state: dict[str, torch.Tensor], own_state: Mapping[str, torch.Tensor]):
    """Repeat a first convolution's input channels to the wanted number, and keep the size of its responses."""
    for key, own in own_state.items():
        weight = state.get(key)
        if weight is None or own.dim() != 4 or weight.dim() != 4 or weight.shape[1] == own.shape[1]:
            continue
        channels, wanted = weight.shape[1], own.shape[1]
        if weight.shape[0] == own.shape[0] and weight.shape[2:] == own.shape[2:]:
            repeats = -(-wanted // channels)
            state[key] = weight.repeat(1, repeats, 1, 1)[:, :wanted] * (channels / wanted)
        return
