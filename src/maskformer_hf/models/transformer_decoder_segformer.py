"""Panoptic SegFormer's decoders (https://arxiv.org/abs/2109.03814, sections 3.2 to 3.4): a location decoder, which
finds the boxes of things, and mask decoders of things and of stuff.

Shapes: B images, L location layers, Q thing queries, J blocks of a mask decoder, Z stuff queries, S cells of all maps,
K classes, T of them things.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from .assigner_stuff import stuff_labels
from .attention import Attention
from .boxes import inverse_sigmoid
from .deformable_attention import DeformableAttention, SamplingPlan
from .interfaces import Ask, ExtraQueries, Facts, PixelDecoderOutput, TransformerDecoderOutput
from .layers import MLP, keep_rows
from .mask_decoder_attention import NUM_MASK_LEVELS, Cells, MaskDecoder, ThingAndStuffMasks
from .masks import DenseMasks, Masks
from .pixel_decoder_deformable import NUM_POINTS
from .pixel_decoder_encoder import NUM_LEVELS, padding_of_levels, plan_levels
from .prediction_head import PredictionSet
from .probabilities import IMPOSSIBLE
from .transformer_layers import FeedForward, LayerSizes, check_width

# Classes start at a probability of 0.01.
FIRST_CLASS_LOGIT = -4.595
# Boxes start at this logit of their width and height.
FIRST_SIZE_LOGIT = -2.0


class LocationLayer(GradientCheckpointingLayer):
    """Self-attention of the queries, deformable attention to the memory around their boxes, feed-forward network."""

    def __init__(self, sizes: LayerSizes):
        super().__init__()
        self.self_attn = Attention(sizes.hidden_size, sizes.num_heads, sizes.dropout)
        self.self_attn_norm = nn.LayerNorm(sizes.hidden_size)
        self.cross_attn = DeformableAttention(sizes.hidden_size, sizes.num_heads, NUM_LEVELS, NUM_POINTS)
        self.cross_attn_norm = nn.LayerNorm(sizes.hidden_size)
        self.ffn = FeedForward(sizes.hidden_size, sizes.ffn_dim, sizes.dropout)
        self.ffn_norm = nn.LayerNorm(sizes.hidden_size)
        self.dropout = nn.Dropout(sizes.dropout)

    def forward(
        self,
        queries_BQC: torch.Tensor,
        position_QC: torch.Tensor,
        memory_BSC: torch.Tensor,
        reference: torch.Tensor,
        plan: SamplingPlan,
        need_weights: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Queries, and the weights of self- and cross-attention. `reference`: points (B, Q, 2) or boxes (B, Q, 4)."""
        positioned = queries_BQC + position_QC
        update, self_weights = self.self_attn(positioned, positioned, queries_BQC, need_weights)
        queries_BQC = self.self_attn_norm(queries_BQC + self.dropout(update))
        centers, scales = places(reference, plan)
        update, cross_weights = self.cross_attn.look(
            queries_BQC + position_QC, memory_BSC, centers, plan, need_weights, scales
        )
        queries_BQC = self.cross_attn_norm(queries_BQC + self.dropout(update))
        queries_BQC = self.ffn_norm(queries_BQC + self.dropout(self.ffn(queries_BQC)))
        return queries_BQC, self_weights, cross_weights


def places(reference: torch.Tensor, plan: SamplingPlan) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Where points or boxes lie on each map, (2, B, Q, X) in its cells, and what a cell of offset is worth there.

    Around a point an offset of 1 is a cell. In a box P points away are half of its side.
    """
    reference = reference.float()
    lengths_NX = torch.stack((plan.widths, plan.heights))
    spans = lengths_NX[:, None, None] if plan.valid is None else lengths_NX[:, None, None] * plan.valid
    centers_NBQ1 = reference[..., :2].permute(2, 0, 1)[..., None]
    centers = centers_NBQ1 * spans - 0.5
    if reference.shape[-1] == 2:
        return centers, None
    sides_NBQ1 = reference[..., 2:].permute(2, 0, 1)[..., None]
    return centers, sides_NBQ1 * spans * (0.5 / NUM_POINTS)


class Located(NamedTuple):
    """What the location decoder found, layer by layer.

    queries: (B, Q, C) each. boxes: (B, Q, 4) each, centre and size as shares of the image. attentions,
    cross_attentions: Weights of each layer, if asked for.
    """

    queries: list[torch.Tensor]
    boxes: list[torch.Tensor]
    attentions: list[Any]
    cross_attentions: list[Any]


class ThingMasks(Masks):
    """Masks of those thing queries that are taught, of each block of their mask decoder."""

    def __init__(self, decoder: MaskDecoder, things_BQC: torch.Tensor, cells: Cells, every_layer: bool):
        self.decoder = decoder
        self.things_BQC = things_BQC
        self.cells = cells
        self.every_layer = every_layer

    def of(self, image: int, queries: torch.Tensor) -> torch.Tensor:
        """Values (J + 1, N, H, W), 0 or more, of N queries of an image; (1, N, H, W) if layers are not asked for."""
        things = self.things_BQC[image, queries][None]
        return torch.cat(self.decoder(things, self.cells.image(image), self.every_layer)[1])

    def part(self, layers: slice = slice(None), queries: slice = slice(None)) -> "ThingMasks":
        return self


class PanopticSegFormerDecoder(nn.Module):
    """Q queries find boxes and classes of things, and then their masks; stuff class j is found by stuff query j.

    It has heads of its own. Training gets two prediction sets besides the result: "location_" has classes and boxes of
    every location layer, and masks of things on demand; "stuff_" the logits (J, B, Z, 1) of each block and the masks, 0
    or more, of each block and the last attention. The result has the Q thing queries first.
    """

    has_mask_head = True
    has_class_head = True

    def __init__(self, config: Any, facts: Facts, memory: Facts, make_mask_head: Callable[[], nn.Module]):
        super().__init__()
        sizes, width = LayerSizes.of_decoder(config), config.hidden_size
        self.stuff = stuff_labels(config)
        self.things = [label for label in range(config.num_labels) if label not in self.stuff]
        self.num_labels = config.num_labels
        self.query_position = nn.Embedding(config.num_queries, width)
        self.query_features = nn.Embedding(config.num_queries, width)
        self.reference_points = nn.Linear(width, 2)
        self.layers = nn.ModuleList(LocationLayer(sizes) for _ in range(config.decoder_layers))
        self.class_predictors = nn.ModuleList(nn.Linear(width, len(self.things)) for _ in self.layers)
        self.box_predictors = nn.ModuleList(MLP(width, width, 4, num_layers=3) for _ in self.layers)
        self.stuff_features = nn.Embedding(len(self.stuff), width)
        self.stuff_position = nn.Embedding(len(self.stuff), width)
        self.num_heads = heads = config.num_attention_heads
        self.thing_masks = MaskDecoder(width, heads, config.thing_mask_layers, has_self_attention=False)
        self.stuff_masks = MaskDecoder(width, heads, config.stuff_mask_layers, has_self_attention=True)
        self.stuff_predictors = nn.ModuleList(nn.Linear(width, 1) for _ in self.stuff_masks.layers)
        # The original trains classes and boxes of the mask decoder's queries with weight 0: nothing reads these two.
        self.thing_class_predictors = nn.ModuleList(nn.Linear(width, len(self.things)) for _ in self.thing_masks.layers)
        self.thing_box_predictors = nn.ModuleList(MLP(width, width, 4, num_layers=3) for _ in self.thing_masks.layers)

    @staticmethod
    def check(config: Any):
        check_width(config, "hidden_size")
        if config.pixel_decoder != "encoder" or config.hidden_size != config.feature_size:
            raise ValueError(
                "`transformer_decoder='panoptic_segformer'` needs `pixel_decoder='encoder'` of its own width: got "
                f"{config.pixel_decoder!r}, `feature_size={config.feature_size}` and "
                f"`hidden_size={config.hidden_size}`."
            )
        if config.criterion != "panoptic_segformer":
            raise ValueError(
                "`transformer_decoder='panoptic_segformer'` needs `criterion='panoptic_segformer'`, which knows boxes, "
                f"got {config.criterion!r}."
            )
        stuff = stuff_labels(config)
        if not 0 < len(stuff) < config.num_labels:
            raise ValueError(
                "Panoptic SegFormer treats things and stuff apart and needs both: `label_ids_to_fuse` names "
                f"{len(stuff)} of {config.num_labels} classes as stuff."
            )
        for name in ("thing_mask_layers", "stuff_mask_layers"):
            if getattr(config, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(config, name)}.")
        if config.query_source is not None or config.pre_norm:
            raise ValueError("Panoptic SegFormer has neither a `query_source` nor `pre_norm`: leave both out.")

    def init_weights(self):
        for embedding in (self.query_position, self.query_features, self.stuff_features, self.stuff_position):
            init.normal_(embedding.weight)
        init.xavier_uniform_(self.reference_points.weight)
        init.zeros_(self.reference_points.bias)
        layers: Any = self.layers
        for layer in layers:
            for linear in (layer.ffn.fc1, layer.ffn.fc2):
                init.xavier_uniform_(linear.weight)
        class_predictors: Any = (*self.class_predictors, *self.thing_class_predictors, *self.stuff_predictors)
        for predictor in class_predictors:
            init.constant_(predictor.bias, FIRST_CLASS_LOGIT)
        box_predictors: Any = (*self.box_predictors, *self.thing_box_predictors)
        for number, predictor in enumerate(box_predictors):
            init.zeros_(predictor.layers[-1].weight)
            init.zeros_(predictor.layers[-1].bias)
            if number == 0:
                init.constant_(predictor.layers[-1].bias[2:], FIRST_SIZE_LOGIT)

    def forward(
        self, pixels: PixelDecoderOutput, ask: Ask, extra: ExtraQueries | None = None
    ) -> TransformerDecoderOutput:
        """Query the memory of `pixels`, maps (B, C, h, w)."""
        if extra is not None:
            raise ValueError("Panoptic SegFormer's decoder takes no extra queries.")
        maps = pixels.memory[::-1]
        sizes = [(level.shape[-2], level.shape[-1]) for level in maps]
        memory_BSC = torch.cat([level.flatten(2).transpose(1, 2) for level in maps], dim=1)
        plan = plan_levels(sizes, padding_of_levels(sizes, ask), self.num_heads, maps[0].device)
        located = self.locate(memory_BSC, plan, ask)
        num_cells = sum(height * width for height, width in sizes[:NUM_MASK_LEVELS])
        cells = Cells(memory_BSC[:, :num_cells], sizes[:NUM_MASK_LEVELS])
        stuff_queries, stuff_masks = self.stuff_masks(
            self.stuff_features.weight.expand(memory_BSC.shape[0], -1, -1),
            cells,
            ask.every_layer,
            self.stuff_position.weight,
        )
        stuff_logits = [predict(queries) for predict, queries in zip(self.stuff_predictors, stuff_queries, strict=True)]
        things = located.queries[-1]
        class_logits = [predict(q) for predict, q in zip(self.class_predictors, located.queries, strict=False)]
        result = PredictionSet(
            torch.cat((self._things(class_logits[-1]), self._stuff(stuff_logits[-1])), dim=1)[None],
            ThingAndStuffMasks(self.thing_masks, things, cells, stuff_masks[-1]),
        )
        sets: tuple[PredictionSet, ...] = (result,)
        if self.training or ask.every_layer:
            layers = slice(None) if ask.every_layer else slice(-1, None)
            location = PredictionSet(
                torch.stack([self._things(logits) for logits in class_logits[layers]]),
                ThingMasks(self.thing_masks, things, cells, ask.every_layer),
                "location_",
                boxes=torch.stack(located.boxes[layers]) + self._nothing(),
            )
            stuff = PredictionSet(torch.stack(stuff_logits[layers]), DenseMasks(torch.stack(stuff_masks)), "stuff_")
            sets = (location, stuff, result)
        return TransformerDecoderOutput(
            tuple(located.queries) if ask.queries_of_every_layer else (things,),
            tuple(located.attentions) if ask.need_weights else None,
            tuple(located.cross_attentions) if ask.need_weights else None,
            sets=sets,
        )

    def locate(self, memory_BSC: torch.Tensor, plan: SamplingPlan, ask: Ask) -> Located:
        """The location decoder: each layer corrects the box that the one before found."""
        position_QC = self.query_position.weight
        queries_BQC = self.query_features.weight.expand(memory_BSC.shape[0], -1, -1)
        reference = self.reference_points(position_QC).sigmoid().expand(memory_BSC.shape[0], -1, -1)
        found = Located([], [], [], [])
        for layer, predict in zip(self.layers[: ask.num_decoder_layers], self.box_predictors, strict=False):
            queries_BQC, *weights = layer(queries_BQC, position_QC, memory_BSC, reference, plan, ask.need_weights)
            correction = predict(queries_BQC).float()
            known = inverse_sigmoid(reference.float())
            corrected = correction[..., : known.shape[-1]] + known
            boxes = torch.cat((corrected, correction[..., known.shape[-1] :]), dim=-1).sigmoid()
            reference = boxes.detach()
            for values, value in zip(found, (queries_BQC, boxes, *weights), strict=True):
                values.append(value)
        return found

    def change_classes(self, rows: Sequence[int | None], config: Any):
        """Make class i the former class `rows[i]`, or a new one, where `config` says which classes are stuff."""
        stuff = stuff_labels(config)
        things = [label for label in range(len(rows)) if label not in stuff]
        thing_rows = [_place(self.things, rows[label]) for label in things]
        stuff_rows = [_place(self.stuff, rows[label]) for label in stuff]
        for predictors in (self.class_predictors, self.thing_class_predictors):
            former: Any = list(predictors)
            for number, old in enumerate(former):
                new = nn.Linear(old.in_features, len(things), device=old.weight.device, dtype=old.weight.dtype)
                nn.init.constant_(new.bias, FIRST_CLASS_LOGIT)
                predictors[number] = keep_rows(new, old, thing_rows)
        for name in ("stuff_features", "stuff_position"):
            old = getattr(self, name)
            new = nn.Embedding(len(stuff), old.embedding_dim, device=old.weight.device, dtype=old.weight.dtype)
            setattr(self, name, keep_rows(new, old, stuff_rows))
        self.things, self.stuff, self.num_labels = things, stuff, len(rows)

    def _things(self, logits_BQT: torch.Tensor) -> torch.Tensor:
        """(B, Q, K + 1): logits of thing classes among those of all, with no-object, which this model does not have."""
        return self._spread(logits_BQT, self.things)

    def _stuff(self, logits_BZ1: torch.Tensor) -> torch.Tensor:
        """(B, Z, K + 1), likewise: query j has the logit of stuff class j."""
        return self._spread(logits_BZ1[..., 0].diag_embed() + self._others(logits_BZ1), self.stuff)

    def _others(self, logits_BZ1: torch.Tensor) -> torch.Tensor:
        size = logits_BZ1.shape[1]
        return logits_BZ1.new_full((size, size), IMPOSSIBLE).fill_diagonal_(0.0)

    def _spread(self, logits: torch.Tensor, labels: list[int]) -> torch.Tensor:
        columns = torch.full((self.num_labels + 1,), len(labels), device=logits.device)
        columns[labels] = torch.arange(len(labels), device=logits.device)
        impossible = logits.new_full((*logits.shape[:-1], 1), IMPOSSIBLE)
        return torch.cat((logits, impossible), dim=-1).index_select(-1, columns)

    def _nothing(self) -> torch.Tensor | float:
        """0, of which the weights that nothing reads are a part: in every step every parameter has a gradient."""
        if not torch.is_grad_enabled():
            return 0.0
        unused = (*self.thing_class_predictors.parameters(), *self.thing_box_predictors.parameters())
        return sum((parameter.sum() for parameter in unused), torch.zeros((), device=unused[0].device)) * 0.0


def _place(labels: Sequence[int], label: int | None) -> int | None:
    """Where a class is among some; None if it is not."""
    return labels.index(label) if label in labels else None
