"""A second group of learned queries, of which several have the same target (H-DETR, https://arxiv.org/abs/2207.13080)."""

from typing import Any

import torch
from torch import nn
from transformers import initialization as init

from .interfaces import Ask, Encoded, ExtraQueries, QueryGroup
from .targets import Targets


class OneToManyQueries(nn.Module):
    """Queries that see only each other and are trained as the decoder's own are, but each target by k of them.

    A query source is called with the targets of a step, what is encoded, and what the forward is asked for, and returns
    the `ExtraQueries` of that step. There are none at inference.
    """

    def __init__(self, num_queries: int, num_own: int, hidden_size: int, weight: float):
        """`num_own`: The decoder's own queries. `weight`: What the loss of this group is multiplied by."""
        super().__init__()
        self.features = nn.Embedding(num_queries, hidden_size)
        self.position = nn.Embedding(num_queries, hidden_size)
        self.num_own = num_own
        self.weight = weight

    @classmethod
    def from_config(cls, config: Any) -> "OneToManyQueries":
        return cls(config.one_to_many_queries, config.num_queries, config.hidden_size, config.one_to_many_weight)

    @staticmethod
    def check(config: Any):
        for name in ("one_to_many_queries", "one_to_many_copies"):
            if getattr(config, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(config, name)}.")
        check_decoder(config, "one_to_many")

    def init_weights(self):
        for embedding in (self.features, self.position):
            init.normal_(embedding.weight)

    def forward(self, targets: Targets, encoded: Encoded, ask: Ask) -> ExtraQueries:
        batch_size, num_extra = len(targets.labels), self.features.num_embeddings
        in_group = torch.arange(num_extra + self.num_own, device=self.features.weight.device) < num_extra
        return ExtraQueries(
            self.features.weight.expand(batch_size, -1, -1),
            self.position.weight.expand(batch_size, -1, -1),
            (QueryGroup("many_", num_extra, "one_to_many", self.weight),),
            attended=in_group[:, None] == in_group,
            is_apart=True,
        )


def check_decoder(config: Any, source: str):
    """Refuse models without queries that are matched."""
    if config.is_per_pixel:
        raise ValueError(f"`query_source={source!r}` adds queries, and a per-pixel model matches none: choose None.")
