"""Masks that are not linear in their pixels: a small convolution network for each query (CondInst,
https://arxiv.org/abs/2003.05664), added to MaskFormer's product."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import initialization as init

from .interfaces import Ask, Facts, PixelDecoderOutput
from .layers import MLP
from .masks import Masks, MaskValues, ProductMasks
from .point_sampling import sample_embeddings

# Width of the networks, and of what they read of the pixel embeddings, besides x and y.
WIDTH, COORDINATES = 8, 2
# First, second and third layer, weights and biases of each.
SHAPES = ((WIDTH, WIDTH + COORDINATES), (WIDTH,), (WIDTH, WIDTH), (WIDTH,), (1, WIDTH), (1,))
SIZES = [torch.Size(shape).numel() for shape in SHAPES]
NUM_PARAMETERS, NUM_LAST = sum(SIZES), sum(SIZES[-2:])
# The queries of a mask tensor are worked on in so many parts, of which one has its inner values at a time.
NUM_PARTS = 16
# Cells of the stride-4 map, along each side, that make one where the middle of a mask is looked for.
COARSE = 8


class DynamicMaskHead(MLP):
    """For each query, besides its mask embedding, the 169 weights of a network of three 1x1 convolutions.

    The networks read eight channels of the pixel embeddings and where a pixel lies from the middle of the query's
    product mask, through which no gradient passes. What they give is added to the product. Their last layer starts as
    zeros, so that masks start as the products.
    """

    def __init__(self, hidden_size: int, mask_feature_size: int):
        # Under the names that the weights of products have.
        super().__init__(hidden_size, hidden_size, mask_feature_size, num_layers=3)
        self.reduction = nn.Conv2d(mask_feature_size, WIDTH, 1)
        self.network = nn.Linear(hidden_size, NUM_PARAMETERS - NUM_LAST)
        self.last_layer = nn.Linear(hidden_size, NUM_LAST)
        self.num_channels = mask_feature_size

    @classmethod
    def from_config(cls, config: Any, facts: Facts) -> "DynamicMaskHead":
        return cls(config.hidden_size, config.mask_feature_size)

    @staticmethod
    def check(config: Any):
        if config.transformer_decoder in ("panoptic_segformer", "joint"):
            raise ValueError(
                f"`mask_head`='dynamic' adds to products, and `transformer_decoder`={config.transformer_decoder!r} has "
                "masks of its own: choose 'masked' or 'detr', or another `mask_head`."
            )

    def init_weights(self):
        init.zeros_(self.last_layer.weight)
        init.zeros_(self.last_layer.bias)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Queries (..., C) to what their masks are made of: mask embeddings and weights of networks, in one."""
        return torch.cat((super().forward(states), self.network(states), self.last_layer(states)), dim=-1)

    def masks(self, embeddings_LBQC: torch.Tensor, pixels: PixelDecoderOutput, ask: Ask) -> "DynamicMasks":
        embeddings_LBQC, weights = embeddings_LBQC.split((self.num_channels, NUM_PARAMETERS), dim=-1)
        maps_BChw, seen_BChw = pixels.embeddings, self._seen(pixels.embeddings)
        coarse = self._coarse(torch.cat((maps_BChw, seen_BChw[:, -COORDINATES:]), dim=1).detach())
        if ask.num_frames is not None:
            maps_BChw, seen_BChw, coarse = (
                x.unflatten(0, (-1, ask.num_frames)) for x in (maps_BChw, seen_BChw, coarse)
            )
        cells_BXC = coarse.movedim(-3, -1).flatten(1, -2)
        logits_LBQX = embeddings_LBQC.detach() @ cells_BXC[..., :-COORDINATES].mT.to(embeddings_LBQC.dtype)
        middle = middles(logits_LBQX, cells_BXC[..., -COORDINATES:])
        return DynamicMasks(ProductMasks(embeddings_LBQC, maps_BChw), Networks(weights, middle), seen_BChw)

    @torch.no_grad()
    def at_size(self, pixels: PixelDecoderOutput, size: Sequence[int]) -> torch.Tensor:
        """The maps that products and networks read at this size, (B, C + 8 + 2, h, w).

        Where networks are not zero, masks of resized maps are not quite the resized masks.
        """
        resized = F.interpolate(pixels.embeddings.detach(), size=tuple(size), mode="bilinear", align_corners=False)
        return torch.cat((resized, self._seen(resized)), dim=1)

    @torch.no_grad()
    def inside(self, embeddings_BQC: torch.Tensor, pixels_BCS: torch.Tensor) -> torch.Tensor:
        embeddings_BQC, weights = embeddings_BQC.detach().split((self.num_channels, NUM_PARAMETERS), dim=-1)
        seen_BCS = pixels_BCS[:, self.num_channels :]
        logits_BQS = embeddings_BQC @ pixels_BCS[:, : self.num_channels]
        networks = Networks(weights, middles(logits_BQS, seen_BCS[:, -COORDINATES:].mT))
        return logits_BQS + networks.in_parts(seen_BCS) >= 0

    def _seen(self, maps_BChw: torch.Tensor) -> torch.Tensor:
        """What networks read, (B, 8 + 2, h, w): the last are x and y of the cells, -1 and 1 at the outer edges."""
        batch_size, _, height, width = maps_BChw.shape
        x, y = ((2 * torch.arange(n, device=maps_BChw.device) + 1).to(maps_BChw.dtype) / n - 1 for n in (width, height))
        xy_2hw = torch.stack((x.expand(height, width), y[:, None].expand(height, width)))
        return torch.cat((self.reduction(maps_BChw), xy_2hw.expand(batch_size, -1, -1, -1)), dim=1)

    def _coarse(self, maps_BChw: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(maps_BChw, COARSE, ceil_mode=True, count_include_pad=False)


@torch.no_grad()
def middles(logits_BQS: torch.Tensor, xy_BS2: torch.Tensor) -> torch.Tensor:
    """The mean position of each mask, (..., Q, 2), its pixels weighed by their probability."""
    probability = logits_BQS.float().sigmoid()
    weighed = probability @ xy_BS2.float()
    return (weighed / probability.sum(-1, keepdim=True).clamp(min=1e-6)).to(xy_BS2.dtype)


class Networks(NamedTuple):
    """Networks of some queries.

    weights: (..., n, 169). middle: (..., n, 2), where each has its origin.
    """

    weights: torch.Tensor
    middle: torch.Tensor

    def at(self, index: Any) -> "Networks":
        """Those at this index of the leading dimensions."""
        return Networks(self.weights[index], self.middle[index])

    def __call__(self, seen_BCX: torch.Tensor) -> torch.Tensor:
        """What they give at the pixels, (B, n, X), of weights (B, n, 169) and what they read, (B, 8 + 2, X)."""
        weights = self.weights.to(seen_BCX.dtype)
        w1, b1, w2, b2, w3, b3 = (
            part.unflatten(-1, shape) for part, shape in zip(weights.split(SIZES, dim=-1), SHAPES, strict=True)
        )
        # The origin becomes a part of the bias: all networks then read the same pixels.
        b1 = b1 - (w1[..., -COORDINATES:] @ self.middle.to(w1.dtype)[..., None])[..., 0]
        first = F.relu((w1.flatten(1, 2) @ seen_BCX).unflatten(1, (-1, WIDTH)) + b1[..., None])
        second = F.relu(w2 @ first + b2[..., None])
        return (w3 @ second + b3[..., None])[..., 0, :]

    def in_parts(self, seen_BCX: torch.Tensor) -> torch.Tensor:
        """The same, with the inner values of some queries at a time, which are not kept for the gradient."""
        num_queries = self.weights.shape[1]
        at_once = max(1, -(-num_queries // NUM_PARTS))
        keep = torch.is_grad_enabled() and (self.weights.requires_grad or seen_BCX.requires_grad)
        results = []
        for start in range(0, num_queries, at_once):
            part = self.at((slice(None), slice(start, start + at_once)))
            results.append(checkpoint(_run, *part, seen_BCX, use_reentrant=False) if keep else part(seen_BCX))
        return torch.cat(results, dim=1) if results else seen_BCX.new_zeros(len(seen_BCX), 0, seen_BCX.shape[-1])


def _run(weights: torch.Tensor, middle: torch.Tensor, seen_BCX: torch.Tensor) -> torch.Tensor:
    return Networks(weights, middle)(seen_BCX)


class DynamicMasks(Masks):
    """Products, and what the networks (L, B, Q, ...) of the same queries add to them.

    Between the cells of the map, where matching reads at points, a network reads interpolated pixels.
    """

    def __init__(self, products: ProductMasks, networks: Networks, seen_BChw: torch.Tensor):
        """`seen_BChw`: what networks read, (B, 8 + 2, h, w); of clips (B, T, 8 + 2, h, w)."""
        self.products = products
        self.networks = networks
        self.seen_BChw = seen_BChw
        self.shape = products.shape
        self.device = products.device

    def layer(self, layer: int) -> torch.Tensor:
        added = self.networks.at(layer).in_parts(_pixels(self.seen_BChw))
        return self.products.layer(layer) + added.unflatten(-1, self.shape[3:])

    def image(self, layer: int, image: int, queries: Any) -> torch.Tensor:
        networks = Networks(*(x[queries][None] for x in self.networks.at((layer, image))))
        added = networks.in_parts(_pixels(self.seen_BChw[image, None]))[0]
        return self.products.image(layer, image, queries) + added.unflatten(-1, self.shape[3:])

    def matched(self, layers: slice, query_LM: torch.Tensor, num_matched: Sequence[int]) -> torch.Tensor:
        logits = self.products.matched(layers, query_LM, num_matched)
        networks, start, added = self.networks.at(layers), 0, []
        layer_L1 = torch.arange(len(networks.weights), device=self.device)[:, None]
        for image, count in enumerate(num_matched):
            chosen = networks.at((layer_L1, image, query_LM[:, start : start + count]))
            flat = Networks(*(x.flatten(0, 1)[None] for x in chosen))
            values = flat.in_parts(_pixels(self.seen_BChw[image, None]))
            added.append(values[0].unflatten(0, (len(networks.weights), count)))
            start += count
        return logits + torch.cat(added, dim=1).unflatten(-1, self.shape[3:])

    def values(self, image: int, points_LP2: torch.Tensor | None) -> Iterator[MaskValues]:
        seen = self.seen_BChw[image].reshape(-1, *self.seen_BChw.shape[-3:]).float()
        networks = Networks(*(x[:, image].float() for x in self.networks))
        for values in self.products.values(image, points_LP2):
            if points_LP2 is None:
                seen_CX = seen.transpose(0, 1).flatten(1)
            else:
                seen_CX = sample_embeddings(seen, points_LP2[values.layers][0]).T
            rows = Networks(*(x[values.layers].flatten(0, 1)[None] for x in networks))
            yield values._replace(read_negated=_Reader(values, rows, seen_CX))

    def part(self, layers: slice = slice(None), queries: slice = slice(None)) -> "DynamicMasks":
        return DynamicMasks(
            self.products.part(layers, queries), self.networks.at((layers, slice(None), queries)), self.seen_BChw
        )

    def float(self) -> "DynamicMasks":
        networks = Networks(*(x.float() for x in self.networks))
        return DynamicMasks(self.products.float(), networks, self.seen_BChw.float())


class _Reader:
    """Reads the values of products, and adds those of networks."""

    def __init__(self, products: MaskValues, networks: Networks, seen_CX: torch.Tensor):
        self.products = products
        self.networks = networks
        self.seen_CX = seen_CX

    def __call__(self, values: slice, out: torch.Tensor) -> torch.Tensor:
        self.products.read_negated(values, out)
        return out.sub_(self.networks.in_parts(self.seen_CX[None, :, values])[0])


def _pixels(seen_BChw: torch.Tensor) -> torch.Tensor:
    """What networks read, with all pixels, and frames, in one row: (B, 8 + 2, X)."""
    return seen_BChw.movedim(-3, 1).flatten(2)
