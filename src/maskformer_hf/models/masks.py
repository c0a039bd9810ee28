"""Masks that need not exist as a whole.

A model makes masks of L layers times B images times Q queries, and few of them are ever looked at: matching reads some
pixels at a time, losses the masks of matched queries, results those of queries that can win. `Masks` is what they ask.
`ProductMasks` are MaskFormer's, the products of mask embeddings and pixel embeddings. `DenseMasks` are logits that
exist already, such as attention maps.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

from .point_sampling import sample_embeddings, sample_points


def mask_logits(mask_embeddings_LBQC: torch.Tensor, pixel_embeddings_BChw: torch.Tensor) -> torch.Tensor:
    """(L, B, Q, h, w); with pixel embeddings of clips, (B, T, C, h, w), mask logits are (L, B, Q, T, h, w)."""
    # A forward under autocast may give the two in different types, if a part of the model keeps float32. Masks that are
    # made after it, of the queries that matter, are then made without autocast, which would bring the types together.
    mask_embeddings_LBQC = mask_embeddings_LBQC.to(pixel_embeddings_BChw.dtype)
    return torch.einsum("lbqc,b...chw->lbq...hw", mask_embeddings_LBQC, pixel_embeddings_BChw)


class MaskValues(NamedTuple):
    """Logits of the queries of some layers of one image, which are read a part at a time.

    layers: Which layers.
    num_rows: Their queries, one layer after the other.
    num_values: X, the cells or points of each query; for clips those of all frames.
    read_negated: `read_negated(values: slice, out)` writes the logits (rows, X) of these values with their signs turned
        into `out`, float32. Negated, because most pixels are background: the sigmoid is then what their probability
        lacks of 1, without cancellation.
    """

    layers: slice
    num_rows: int
    num_values: int
    read_negated: Callable[[slice, torch.Tensor], Any]


class Masks:
    """Mask logits of L layers, B images and Q queries.

    Attributes:
        shape: (L, B, Q, h, w); for clips (L, B, Q, T, h, w).
        device: Where they are made.
    """

    shape: torch.Size
    device: Any

    def layer(self, layer: int) -> torch.Tensor:
        """All logits of one layer, (B, Q, h, w)."""
        raise NotImplementedError

    def image(self, layer: int, image: int, queries: Any) -> torch.Tensor:
        """Logits (q, h, w) of some queries of one layer and image. `queries` is a tensor of indices, or a slice."""
        raise NotImplementedError

    def matched(self, layers: slice, query_LM: torch.Tensor, num_matched: Sequence[int]) -> torch.Tensor:
        """Logits (L, M, h, w) of the matched queries of some layers, with gradient.

        Args:
            query_LM: Indices; in each layer the first `num_matched[0]` are queries of the first image, and so on.
        """
        raise NotImplementedError

    def values(self, image: int, points_LP2: torch.Tensor | None) -> Iterator[MaskValues]:
        """What matching compares, for all layers at once or for some at a time.

        Args:
            points_LP2: x and y in [0, 1] of the points of each layer, which queries and frames share; without them all
                cells are compared.
        """
        raise NotImplementedError

    def part(self, layers: slice = slice(None), queries: slice = slice(None)) -> "Masks":
        """The same of some layers and queries."""
        raise NotImplementedError

    def float(self) -> "Masks":
        """The same, made in float32."""
        raise NotImplementedError

    def __getitem__(self, image: int) -> "ImageMasks":
        """The result of one image: the masks of the last layer."""
        return ImageMasks(self, image)


class ImageMasks:
    """The result of one image.

    It behaves as a tensor (Q, h, w) as far as its shape, its device, and indexing by a tensor of queries or by a slice
    go. Indexing makes the masks that it names.
    """

    def __init__(self, masks: Masks, image: int):
        self.masks = masks
        self.index = image

    @property
    def shape(self) -> torch.Size:
        return self.masks.shape[2:]

    @property
    def device(self) -> torch.device:
        return self.masks.device

    def __getitem__(self, queries: Any) -> torch.Tensor:
        return self.masks.image(-1, self.index, queries)


class ProductMasks(Masks):
    """Products of mask embeddings (L, B, Q, C) and pixel embeddings (B, C, h, w), for clips (B, T, C, h, w)."""

    def __init__(self, mask_embeddings_LBQC: torch.Tensor, pixel_embeddings_BChw: torch.Tensor):
        self.mask_embeddings_LBQC = mask_embeddings_LBQC
        self.pixel_embeddings_BChw = pixel_embeddings_BChw
        frames, size = pixel_embeddings_BChw.shape[1:-3], pixel_embeddings_BChw.shape[-2:]
        self.shape = torch.Size((*mask_embeddings_LBQC.shape[:3], *frames, *size))
        self.device = pixel_embeddings_BChw.device

    def layer(self, layer: int) -> torch.Tensor:
        return mask_logits(self.mask_embeddings_LBQC[layer][None], self.pixel_embeddings_BChw)[0]

    def image(self, layer: int, image: int, queries: Any) -> torch.Tensor:
        embeddings_qC = self.mask_embeddings_LBQC[layer, image][queries]
        return mask_logits(embeddings_qC[None, None], self.pixel_embeddings_BChw[image, None])[0, 0]

    def matched(self, layers: slice, query_LM: torch.Tensor, num_matched: Sequence[int]) -> torch.Tensor:
        embeddings_LBQC = self.mask_embeddings_LBQC[layers]
        layer_L1 = torch.arange(len(embeddings_LBQC), device=self.device)[:, None]
        embeddings_LMC = embeddings_LBQC[layer_L1, _images(num_matched, self.device), query_LM]
        images = zip(embeddings_LMC.split(list(num_matched), dim=1), self.pixel_embeddings_BChw.unbind(), strict=True)
        return torch.cat([torch.einsum("lmc,...chw->lm...hw", *embeddings) for embeddings in images], dim=1)

    def values(self, image: int, points_LP2: torch.Tensor | None) -> Iterator[MaskValues]:
        embeddings_LQC = self.mask_embeddings_LBQC[:, image].float()
        pixels_TChw = self.pixel_embeddings_BChw[image].reshape(-1, *self.pixel_embeddings_BChw.shape[-3:])
        if points_LP2 is None:
            # All layers look at the same pixels: at once, as if their queries were those of one layer.
            yield _products(slice(None), embeddings_LQC.flatten(0, 1), pixels_TChw.transpose(0, 1).flatten(1))
            return
        pixels_TChw = pixels_TChw.float().contiguous(memory_format=torch.channels_last)
        for layer, (embeddings_QC, points_P2) in enumerate(zip(embeddings_LQC, points_LP2, strict=True)):
            # Sampling and products are both linear: which comes first is the same.
            pixels_CX = sample_embeddings(pixels_TChw, points_P2).T
            yield _products(slice(layer, layer + 1), embeddings_QC, pixels_CX)

    def part(self, layers: slice = slice(None), queries: slice = slice(None)) -> "ProductMasks":
        return ProductMasks(self.mask_embeddings_LBQC[layers, :, queries], self.pixel_embeddings_BChw)

    def float(self) -> "ProductMasks":
        return ProductMasks(self.mask_embeddings_LBQC.float(), self.pixel_embeddings_BChw.float())


class DenseMasks(Masks):
    """Mask logits (L, B, Q, h, w) that exist as a whole; for clips (L, B, Q, T, h, w)."""

    def __init__(self, logits_LBQhw: torch.Tensor):
        self.logits_LBQhw = logits_LBQhw
        self.shape = logits_LBQhw.shape
        self.device = logits_LBQhw.device

    def layer(self, layer: int) -> torch.Tensor:
        return self.logits_LBQhw[layer]

    def image(self, layer: int, image: int, queries: Any) -> torch.Tensor:
        return self.logits_LBQhw[layer, image][queries]

    def matched(self, layers: slice, query_LM: torch.Tensor, num_matched: Sequence[int]) -> torch.Tensor:
        logits_LBQhw = self.logits_LBQhw[layers]
        layer_L1 = torch.arange(len(logits_LBQhw), device=self.device)[:, None]
        return logits_LBQhw[layer_L1, _images(num_matched, self.device), query_LM]

    def values(self, image: int, points_LP2: torch.Tensor | None) -> Iterator[MaskValues]:
        logits_LQhw = self.logits_LBQhw[:, image].float()
        if points_LP2 is None:
            yield _copies(slice(None), logits_LQhw.flatten(2).flatten(0, 1))
            return
        for layer, (logits_Qhw, points_P2) in enumerate(zip(logits_LQhw, points_LP2, strict=True)):
            yield _copies(slice(layer, layer + 1), sample_points(logits_Qhw[None], points_P2[None])[0].flatten(1))

    def part(self, layers: slice = slice(None), queries: slice = slice(None)) -> "DenseMasks":
        return DenseMasks(self.logits_LBQhw[layers, :, queries])

    def float(self) -> "DenseMasks":
        return DenseMasks(self.logits_LBQhw.float())


def _images(num_matched: Sequence[int], device: torch.device) -> torch.Tensor:
    """The image of each matched query, (M,)."""
    return torch.cat([torch.full((count,), image, device=device) for image, count in enumerate(num_matched)])


def _products(layers: slice, embeddings_RC: torch.Tensor, pixels_CX: torch.Tensor) -> MaskValues:
    negated_RC = -embeddings_RC

    def read_negated(values: slice, out: torch.Tensor) -> torch.Tensor:
        return torch.mm(negated_RC, pixels_CX[:, values].float(), out=out)

    return MaskValues(layers, len(embeddings_RC), pixels_CX.shape[1], read_negated)


def _copies(layers: slice, logits_RX: torch.Tensor) -> MaskValues:
    def read_negated(values: slice, out: torch.Tensor) -> torch.Tensor:
        return torch.neg(logits_RX[:, values], out=out)

    return MaskValues(layers, logits_RX.shape[0], logits_RX.shape[1], read_negated)
