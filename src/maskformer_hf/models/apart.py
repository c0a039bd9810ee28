"""Extra queries computed apart from a decoder's own, which then predict bit for bit what they do without them.

In one product of matrices the rows would be the same numbers, but for their last bits: how a product is cut into blocks
depends on its size.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from .interfaces import Attended


def split_apart(states: torch.Tensor, num_apart: int) -> list[torch.Tensor]:
    """The first `num_apart` queries and the others, of (..., R, C); all at once if that is 0."""
    if not num_apart:
        return [states]
    return [states[..., :num_apart, :].contiguous(), states[..., num_apart:, :].contiguous()]


def apart(function: Callable[..., torch.Tensor], num_apart: int, *states: torch.Tensor) -> torch.Tensor:
    """`function(*states)`, (..., R, C), of the first `num_apart` queries and of the others."""
    parts = [function(*part) for part in zip(*(split_apart(own, num_apart) for own in states), strict=True)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-2)


def join_attention(
    parts: Sequence[tuple[torch.Tensor, torch.Tensor | None]],
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The update (B, R, C) and the weights (B, heads, R, S), if there are any, of parts of the queries."""
    if len(parts) == 1:
        return parts[0]
    updates, weights = zip(*parts, strict=True)
    return torch.cat(updates, dim=1), None if weights[0] is None else torch.cat(weights, dim=2)


def self_attention(
    attention: Any,
    positioned_BRC: torch.Tensor,
    values_BRC: torch.Tensor,
    need_weights: bool,
    attended: Attended | None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The update (B, R, C) of queries that attend to each other, and weights (B, heads, R, R) if asked for."""
    if attended is None or not attended.num_apart:
        mask = None if attended is None else attended.mask
        return attention(positioned_BRC, positioned_BRC, values_BRC, need_weights, mask)
    extra = attended.num_apart
    positioned, own_positioned = split_apart(positioned_BRC, extra)
    own_values = values_BRC[:, extra:].contiguous()
    seen = attended.mask[..., :extra, :]
    update, weights = attention(positioned, positioned_BRC, values_BRC, need_weights, seen)
    # They all see each other, but a bias may say how.
    bias = attended.mask[..., extra:, extra:].contiguous() if attended.mask.is_floating_point() else None
    own_update, own_weights = attention(own_positioned, own_positioned, own_values, need_weights, bias)
    if own_weights is not None:
        own_weights = F.pad(own_weights, (extra, 0))
    return join_attention([(update, weights), (own_update, own_weights)])
