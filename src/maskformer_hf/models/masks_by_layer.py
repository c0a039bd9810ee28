"""Masks of layers that each have pixels of their own."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from .masks import Masks, MaskValues


class MasksByLayer(Masks):
    """`Masks` of one layer each, one after the other."""

    def __init__(self, layers: Sequence[Masks]):
        self.layers = list(layers)
        self.shape = torch.Size((len(self.layers), *self.layers[0].shape[1:]))
        self.device = self.layers[0].device

    def layer(self, layer: int) -> torch.Tensor:
        return self.layers[layer].layer(0)

    def image(self, layer: int, image: int, queries: Any) -> torch.Tensor:
        return self.layers[layer].image(0, image, queries)

    def matched(self, layers: slice, query_LM: torch.Tensor, num_matched: Sequence[int]) -> torch.Tensor:
        chosen = zip(self.layers[layers], query_LM.split(1), strict=True)
        return torch.cat([masks.matched(slice(None), query, num_matched) for masks, query in chosen])

    def values(self, image: int, points_LP2: torch.Tensor | None) -> Iterator[MaskValues]:
        for number, masks in enumerate(self.layers):
            points = None if points_LP2 is None else points_LP2[number : number + 1]
            for values in masks.values(image, points):
                yield values._replace(layers=slice(number, number + 1))

    def part(self, layers: slice = slice(None), queries: slice = slice(None)) -> "MasksByLayer":
        return MasksByLayer([masks.part(queries=queries) for masks in self.layers[layers]])

    def float(self) -> "MasksByLayer":
        return MasksByLayer([masks.float() for masks in self.layers])
