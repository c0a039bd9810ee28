"""EoMT (https://arxiv.org/abs/2503.19108): queries join the last blocks of a plain vision transformer.

Its blocks do what a transformer decoder does elsewhere, and see queries, class and register tokens and patches at once.
In training queries attend within their masks at first; that is annealed away block by block, so that inference is a
vision transformer with some tokens more.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init

from .interfaces import Ask, ExtraQueries, Facts, PixelDecoderOutput, TransformerDecoderOutput
from .layers import ChannelNorm
from .masks_by_layer import MasksByLayer
from .vit_blocks import VitBlock, rotation_of


class UpscalingStep(nn.Module):
    """A map at twice the size: transposed convolution, GELU, depthwise convolution, LayerNorm."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.ConvTranspose2d(channels, channels, 2, stride=2)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.norm = ChannelNorm(channels)

    def init_weights(self):
        init.kaiming_uniform_(self.conv1.weight, a=5**0.5)
        bound = (self.conv1.weight.shape[1] * 4) ** -0.5
        bias: Any = self.conv1.bias
        init.uniform_(bias, -bound, bound)
        init.kaiming_uniform_(self.conv2.weight, a=5**0.5)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv2(F.gelu(self.conv1(maps))))


class JointTransformerDecoder(nn.Module):
    """The last blocks of the backbone, with the queries in front of its tokens.

    There are L + 1 predictions, one in front of each block and one at the end. At inference only the last is made.
    """

    has_mask_head = True

    def __init__(self, config: Any, memory: Facts, mask_head: nn.Module):
        super().__init__()
        self.backbone_config = config.backbone_config
        self.patch = memory.strides[-1]
        width = config.hidden_size
        self.queries = nn.Embedding(config.num_queries, width)
        self.layers = nn.ModuleList(VitBlock(self.backbone_config) for _ in range(config.decoder_layers))
        self.norm = nn.LayerNorm(width, eps=self.backbone_config.layer_norm_eps)
        self.upscale = nn.Sequential(*(UpscalingStep(width) for _ in range(num_upscaling_steps(self.patch))))
        self.mask_embedder: Any = mask_head

    @staticmethod
    def check(config: Any):
        needed = {"backbone_pyramid": "tokens", "pixel_decoder": "none"}
        for name, value in needed.items():
            if getattr(config, name) != value:
                raise ValueError(
                    f"`transformer_decoder='joint'` needs `{name}={value!r}`, got {getattr(config, name)!r}: "
                    "`presets.EOMT` has the fields of an EoMT."
                )
        width = config.backbone_config.hidden_size
        if not width == config.hidden_size == config.mask_feature_size:
            raise ValueError(
                f"With `transformer_decoder='joint'`, `hidden_size` and `mask_feature_size` must be the backbone's, "
                f"{width}; got {config.hidden_size} and {config.mask_feature_size}."
            )
        if config.kind == "clip" or config.is_per_pixel or config.query_source is not None:
            raise ValueError(
                "`transformer_decoder='joint'` is for images, has queries that are matched, and takes no extra ones: "
                "choose 'masked' for clips, 'detr' for per-pixel models, or None as `query_source`."
            )

    def forward(
        self, pixels: PixelDecoderOutput, ask: Ask, extra: ExtraQueries | None = None
    ) -> TransformerDecoderOutput:
        """Let the queries join the tokens in `pixels.memory`: those in front (B, C, 1, P), and patches (B, C, h, w)."""
        tokens = [maps.flatten(2).transpose(1, 2) for maps in pixels.memory]
        size = pixels.memory[-1].shape[-2:]
        queries_BQC = self.queries.weight.to(tokens[0].dtype).expand(tokens[0].shape[0], -1, -1)
        states = torch.cat((queries_BQC, *tokens), dim=1)
        rotation = rotation_of(self.backbone_config, size, states)
        results, masks, attentions = [], [], []
        for number, layer in enumerate(self.layers[: ask.num_decoder_layers]):
            attended = None
            share = masked_share(number, len(self.layers), ask.progress)
            if share > 0 or ask.queries_of_every_layer:
                normed, upscaled = self._predict(states, size)
                if share > 0:
                    attended = self._attended(normed, upscaled, size, states.shape[1], share)
                if ask.queries_of_every_layer:
                    results.append(normed)
                    masks.append(self._masks(normed, upscaled, ask))
            states, weights = layer(states, rotation, attended, ask.need_weights)
            attentions.append(weights)
        normed, upscaled = self._predict(states, size)
        results.append(normed)
        masks.append(self._masks(normed, upscaled, ask))
        num_queries = self.queries.num_embeddings
        return TransformerDecoderOutput(
            tuple(results),
            tuple(weights[:, :, :num_queries] for weights in attentions) if ask.need_weights else None,
            masks=masks[0] if len(masks) == 1 else MasksByLayer(masks),
        )

    def _predict(self, states_BSC: torch.Tensor, size: Sequence[int]) -> tuple[torch.Tensor, PixelDecoderOutput]:
        """Normalised queries, and the patches as pixel embeddings of a finer map."""
        states_BSC = self.norm(states_BSC)
        patches = states_BSC[:, -size[0] * size[1] :].transpose(1, 2).unflatten(2, tuple(size))
        return states_BSC[:, : self.queries.num_embeddings], PixelDecoderOutput(self.upscale(patches), ())

    def _masks(self, queries_BQC: torch.Tensor, upscaled: PixelDecoderOutput, ask: Ask) -> Any:
        embeddings = upscaled.embeddings
        if ask.image_size is not None:
            # Without the cells that are nothing but padding to whole patches.
            stride = self.patch // 2 ** len(self.upscale)
            height, width = (-(-side // stride) for side in ask.image_size)
            embeddings = embeddings[..., :height, :width]
        return self.mask_embedder.masks(
            self.mask_embedder(queries_BQC)[None], upscaled._replace(embeddings=embeddings), ask
        )

    @torch.no_grad()
    def _attended(
        self,
        queries_BQC: torch.Tensor,
        upscaled: PixelDecoderOutput,
        size: Sequence[int],
        num_tokens: int,
        share: float,
    ) -> torch.Tensor:
        """Which token attends to which, (B, 1, S, S): all to all, but a share of the queries not to patches outside of
        their masks."""
        pixels_BCS = self.mask_embedder.at_size(upscaled, size).flatten(2)
        inside_BQS = self.mask_embedder.inside(self.mask_embedder(queries_BQC), pixels_BCS)
        if share < 1:
            opened_BQ = torch.rand(inside_BQS.shape[:2], device=inside_BQS.device) > share
            inside_BQS = inside_BQS | opened_BQ[..., None]
        batch_size, num_queries, num_patches = inside_BQS.shape
        attended = inside_BQS.new_ones(batch_size, num_tokens, num_tokens)
        attended[:, :num_queries, num_tokens - num_patches :] = inside_BQS
        return attended[:, None]


def num_upscaling_steps(patch: int) -> int:
    """Doublings from patches to masks: to a quarter of the image from patches of 16 pixels."""
    return max(1, int(math.log2(patch)) - 2)


def masked_share(number: int, num_layers: int, progress: float) -> float:
    """The share of queries that attend within their masks in a block, at a time of training from 0 to 1.

    Block after block it falls from 1 to 0, each within a sixth of the training: the first from 1/6 on, the last from
    4/6 on.
    """
    start = (1 + 3 * number / max(1, num_layers - 1)) / 6
    if progress < start:
        return 1.0
    return max(0.0, 1 - (progress - start) * 6) ** 0.9
