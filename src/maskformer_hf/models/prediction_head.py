"""From query embeddings to classes and masks: the heads, and the sets of predictions that they make."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from .interfaces import Ask, Decoded, Encoded, ExtraQueries, PixelDecoderOutput, TransformerDecoderOutput
from .layers import keep_rows
from .masks import Masks


class PredictionSet(NamedTuple):
    """What one group of queries predicts, layer by layer. The last layer of the set without a name is the result.

    class_logits: (L, B, Q, K+1); the last class is no-object.
    masks: Of the same layers, images and queries.
    name: Put before the names of its loss terms.
    assigner: Who is taught by which target: a name of the table of parts, or an assigner. See `assigners.py`.
    weight: What its loss is multiplied by.
    has_class_loss: Whether it is taught classes, besides masks.
    boxes: (L, B, Q, 4), if its queries predict any.
    """

    class_logits: torch.Tensor
    masks: Masks
    name: str = ""
    assigner: Any = None
    weight: float = 1.0
    has_class_loss: bool = True
    boxes: torch.Tensor | None = None

    def layers(self, layers: slice) -> "PredictionSet":
        """The same of some layers."""
        boxes = None if self.boxes is None else self.boxes[layers]
        return self._replace(class_logits=self.class_logits[layers], masks=self.masks.part(layers), boxes=boxes)


class HeadContext(NamedTuple):
    """What a class head may look at besides the queries: maps of the backbone, pixel embeddings, and masks, from which
    no gradient may come back."""

    features: tuple[torch.Tensor, ...]
    pixels: PixelDecoderOutput
    masks: Masks


class LinearClassHead(nn.Linear):
    """A linear classifier of queries with a no-object class.

    A class head turns queries (L, B, Q, C) into class logits (L, B, Q, K+1), the last of them for no-object, and can be
    made anew for other classes.
    """

    def __init__(self, hidden_size: int, num_labels: int):
        super().__init__(hidden_size, num_labels + 1)

    @classmethod
    def from_config(cls, config: Any) -> "LinearClassHead":
        return cls(config.hidden_size, config.num_labels)

    def forward(self, input: torch.Tensor, context: HeadContext | None = None) -> torch.Tensor:
        return super().forward(input)

    def with_classes(self, rows: Sequence[int | None]) -> "LinearClassHead":
        """A head of which class i is the former class `rows[i]`, or a new one. No-object stays no-object."""
        new = type(self)(self.in_features, len(rows)).to(self.weight.device, self.weight.dtype)
        return keep_rows(new, self, [*rows, self.out_features - 1])


class PredictionHead(nn.Module):
    """Class head and mask head of all sets of queries.

    The mask head is absent where the transformer decoder has it, because its layers need masks themselves, and so is
    the class head where the decoder makes the sets.
    """

    def __init__(self, class_head: nn.Module | None, mask_head: nn.Module | None, assigner: str):
        super().__init__()
        # Names that weights have in every checkpoint.
        self.class_predictor: Any = class_head
        self.mask_embedder: Any = mask_head
        self.assigner = assigner

    def forward(self, decoded: Decoded, encoded: Encoded, ask: Ask) -> list[PredictionSet]:
        """The sets of all encoder exits and groups of queries; the result is the last one."""
        exits = list(zip(decoded.outputs, encoded.outputs(), strict=True))
        sets: list[PredictionSet] = []
        for number, (output, pixels) in enumerate(exits[:-1], start=1):
            own = output.sets or self._sets(output, pixels, encoded.features, None, ask)
            sets += [
                predictions._replace(name=f"exit{number}_{predictions.name}", weight=predictions.weight * pixels.weight)
                for predictions in own
            ]
        output, pixels = exits[-1]
        sets += output.sets or self._sets(output, pixels, encoded.features, decoded.extra, ask)
        return sets

    def _sets(
        self,
        output: TransformerDecoderOutput,
        pixels: PixelDecoderOutput,
        features: tuple[torch.Tensor, ...],
        extra: ExtraQueries | None,
        ask: Ask,
    ) -> list[PredictionSet]:
        layers = slice(None) if ask.every_layer else slice(-1, None)
        queries_LBRC = torch.stack(output.queries[layers])
        if output.masks is not None:
            masks = output.masks.part(layers)
        else:
            masks = self.mask_embedder.masks(self.mask_embedder(queries_LBRC), pixels, ask)
        class_logits = self._class_logits(queries_LBRC, HeadContext(features, pixels, masks), extra)
        sets, start = [], 0
        for group in () if extra is None else extra.groups:
            queries = slice(start, start + group.num_queries)
            predicted = class_logits[:, :, queries], masks.part(queries=queries)
            sets.append(PredictionSet(*predicted, group.name, group.assigner, group.weight, group.has_class_loss))
            start += group.num_queries
        if start:
            class_logits, masks = class_logits[:, :, start:], masks.part(queries=slice(start, None))
        return [*sets, PredictionSet(class_logits, masks, assigner=self.assigner)]

    def _class_logits(
        self, queries_LBRC: torch.Tensor, context: HeadContext, extra: ExtraQueries | None
    ) -> torch.Tensor:
        if extra is None or not extra.is_apart:
            return self.class_predictor(queries_LBRC, context)
        num_extra = extra.features.shape[1]
        slices = slice(None, num_extra), slice(num_extra, None)
        return torch.cat(
            [
                self.class_predictor(
                    queries_LBRC[:, :, part].contiguous(), context._replace(masks=context.masks.part(queries=part))
                )
                for part in slices
            ],
            dim=2,
        )

    def change_classes(self, rows: Sequence[int | None]):
        """Make class i the former class `rows[i]`, or a new one."""
        self.class_predictor = self.class_predictor.with_classes(rows)
