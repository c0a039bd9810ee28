"""Queries that know their target (MP-Former, https://arxiv.org/abs/2303.07336): denoising training.

Each target of a step makes a query of its class, which looks at the target's mask in every layer and has to predict
class and mask again. So all layers learn what a query with a right mask has to do, whatever matching says.

Shapes: G groups, S slots of a group, E = G S extra queries, N targets, U targets of the batch in one row.
"""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init

from .assigners import FixedAssigner
from .interfaces import Ask, Encoded, ExtraQueries, QueryGroup
from .layers import keep_rows
from .query_source_one_to_many import check_decoder
from .targets import Targets
from .transformer_decoder_masked import touched_cells

logger = logging.getLogger(__name__)


class DenoisingQueries(nn.Module):
    """G groups of S slots, S being the largest number of targets of an image.

    Target t of an image is slot t of every group. A slot's query starts as the embedding of the class, which is another
    one with a probability of `label_noise`. Slots without a target are zeros that look everywhere and learn no-object,
    as in the original: an image with fewer targets than its neighbours has some. Groups do not see each other, they see
    the decoder's own queries, and nobody sees them.
    """

    def __init__(self, config: Any):
        super().__init__()
        self.label_embedding = nn.Embedding(config.num_labels, config.hidden_size)
        self.num_own = config.num_queries
        self.num_heads = config.num_attention_heads if config.denoising_noise_of_heads else None
        self.groups = config.denoising_groups
        self.limit = config.denoising_queries
        self.label_noise = config.denoising_label_noise
        self.mask_noise = config.denoising_mask_noise
        self.num_layers = config.denoising_layers
        self.has_class_loss = config.denoising_class_loss
        self.has_masks = config.transformer_decoder == "masked"
        self.has_warned = False

    @staticmethod
    def check(config: Any):
        check_decoder(config, "denoising")
        for name in ("denoising_groups", "denoising_queries", "denoising_layers"):
            value = getattr(config, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")
        for name in ("denoising_label_noise", "denoising_mask_noise"):
            if not 0 <= getattr(config, name) <= 1:
                raise ValueError(f"`{name}` must lie in [0, 1], got {getattr(config, name)}.")
        if config.denoising_noise_of_heads and config.cross_attention != "softmax":
            raise ValueError(
                "`denoising_noise_of_heads` needs `cross_attention='softmax'`, which has a mask for each head, got "
                f"{config.cross_attention!r}."
            )

    def init_weights(self):
        init.normal_(self.label_embedding.weight)

    def change_classes(self, rows: Sequence[int | None]):
        """Make class i the former class `rows[i]`, or a new one."""
        weight = self.label_embedding.weight
        new = nn.Embedding(len(rows), weight.shape[1], device=weight.device, dtype=weight.dtype)
        self.label_embedding = keep_rows(new, self.label_embedding, rows)

    def forward(self, targets: Targets, encoded: Encoded, ask: Ask) -> ExtraQueries:
        counts = targets.counts
        num_slots, num_groups = max(1, *counts), self._num_groups(max(counts))
        # Without any target there is one empty slot without a loss, so that every parameter has a gradient.
        has_targets = num_groups > 0 and max(counts) > 0
        if not has_targets:
            num_slots, num_groups, counts = 1, 1, [0] * len(counts)
        image_U, slot_U = (column.to(targets.labels[0].device) for column in _places(counts, num_slots, num_groups))
        own = [labels if count else labels[:0] for labels, count in zip(targets.labels, counts, strict=True)]
        embeddings_UC = self.label_embedding(self._noised(torch.cat(own).repeat(num_groups)))
        shape = len(counts), num_groups * num_slots, self.label_embedding.embedding_dim
        features_BEC = embeddings_UC.new_zeros(shape).index_put((image_U, slot_U), embeddings_UC)
        fixed = [[slot if slot < count else -1 for slot in range(num_slots)] * num_groups for count in counts]
        group = QueryGroup("dn_", shape[1], FixedAssigner(fixed), has_class_loss=self.has_class_loss and has_targets)
        masks = None
        if self.has_masks:
            kept = [masks if count else masks[:0] for masks, count in zip(targets.masks, counts, strict=True)]
            masks = TargetCells(self, kept, (image_U, slot_U), shape[:2])
        return ExtraQueries(
            features_BEC,
            torch.zeros_like(features_BEC),
            (group,),
            _attended(num_groups, num_slots, self.num_own).to(features_BEC.device),
            masks,
            is_apart=True,
        )

    def _num_groups(self, most_targets: int) -> int:
        if self.limit is None:
            return self.groups
        if most_targets > self.limit and not self.has_warned:
            self.has_warned = True
            logger.warning(
                "An image has %d targets, more than the %d `denoising_queries`: such steps have no denoising. Raise it "
                "if that is not meant (said once).",
                most_targets,
                self.limit,
            )
        return self.limit // max(1, most_targets)

    def _noised(self, labels_U: torch.Tensor) -> torch.Tensor:
        """Labels of which some are drawn anew, and may be drawn as they were."""
        if not self.label_noise:
            return labels_U
        chosen_U = draw(labels_U.shape, labels_U.device) < self.label_noise
        return torch.where(chosen_U, draw_labels(chosen_U, self.label_embedding.num_embeddings), labels_U)


class TargetCells:
    """Where denoising queries look: `masks` of `ExtraQueries`."""

    def __init__(
        self,
        source: DenoisingQueries,
        masks: Sequence[torch.Tensor],
        place: tuple[torch.Tensor, torch.Tensor],
        shape: Sequence[int],
    ):
        """
        Args:
            masks: Of each image, (N, H, W) or (N, T, H, W).
            place: Image and extra query of each target of each group, (U,).
            shape: (B, E).
        """
        self.source = source
        self.masks = masks
        self.place = place
        self.shape = tuple(shape)
        self.cells: dict[tuple[int, ...], torch.Tensor] = {}

    @torch.no_grad()
    def __call__(self, layer: int, size: Sequence[int]) -> torch.Tensor | None:
        """The cells of a map of this size that queries attend to in this layer, (B, E, S) or (B, heads, E, S) bool."""
        source = self.source
        if source.num_layers is not None and layer >= source.num_layers:
            return None
        free_US = self._cells_of_targets(tuple(size))
        if source.num_heads is not None:
            free_US = free_US[:, None].expand(-1, source.num_heads, -1)
        if source.mask_noise:
            # A cell turns into its opposite with a probability in proportion to the mask's share of the map.
            share = free_US.sum(-1, keepdim=True) * source.mask_noise / free_US.shape[-1]
            free_US = free_US ^ (draw(free_US.shape, free_US.device) < share)
        cells = free_US.new_zeros(*self.shape, *free_US.shape[1:])
        cells[self.place] = free_US
        return cells if source.num_heads is None else cells.transpose(1, 2)

    def _cells_of_targets(self, size: tuple[int, ...]) -> torch.Tensor:
        """(U, S) bool."""
        if size not in self.cells:
            frames = [masks if masks.dim() == 4 else masks[:, None] for masks in self.masks]
            cells_NS = torch.cat([_touched(masks, size) for masks in frames])
            self.cells[size] = cells_NS.repeat(len(self.place[0]) // max(1, len(cells_NS)), 1)
        return self.cells[size]


def _touched(masks_NTHW: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    """The cells of a map (h, w) or (T, h, w) that masks touch, (N, S); all frames in one row."""
    if not len(masks_NTHW):
        num_cells = size[-1] * size[-2] * masks_NTHW.shape[1]
        return masks_NTHW.new_zeros(0, num_cells)
    return touched_cells(masks_NTHW, size[-2:]).flatten(1)


def draw(shape: Sequence[int], device: torch.device) -> torch.Tensor:
    """Uniform random numbers, from 0 to 1."""
    return torch.rand(tuple(shape), device=device)


def draw_labels(chosen_U: torch.Tensor, num_labels: int) -> torch.Tensor:
    """A random class for each label that is drawn anew, (U,)."""
    return torch.randint(num_labels, chosen_U.shape, device=chosen_U.device)


def _places(counts: Sequence[int], num_slots: int, num_groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Image and extra query of each target: group by group, image by image."""
    places = [
        (image, group * num_slots + slot)
        for group in range(num_groups)
        for image, count in enumerate(counts)
        for slot in range(count)
    ]
    image, slot = torch.tensor(places, dtype=torch.int64).view(-1, 2).unbind(1)
    return image, slot


def _attended(num_groups: int, num_slots: int, num_own: int) -> torch.Tensor:
    """Who sees whom, (R, R) bool: a group itself and the decoder's own queries, these only each other."""
    group_R = torch.arange(num_groups).repeat_interleave(num_slots)
    group_R = F.pad(group_R, (0, num_own), value=-1)
    return (group_R[:, None] == group_R) | (group_R == -1)
