"""Images that run through a model together.

Padding changes an answer, so only images that the processor pads to the same size share a batch. An image then gives
the same answer alone or in company.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch

from .load import Model

Item = TypeVar("Item")
Inputs = Mapping[str, torch.Tensor]


def same_size_batches(
    items: Iterable[Item], size_of: Callable[[Item], Hashable], batch_size: int | None = None
) -> Iterator[list[Item]]:
    """Lists of items of one size, in the order in which they are complete.

    Items are taken as they are needed, and at most `batch_size` of each size wait.

    Args:
        size_of: What items must have in common to share a batch, such as `padded_size` of their inputs.
        batch_size: Most items of a batch; None makes one batch of each size.
    """
    waiting: dict[Hashable, list[Item]] = {}
    for item in items:
        size = size_of(item)
        batch = waiting.setdefault(size, [])
        batch.append(item)
        if len(batch) == batch_size:
            yield waiting.pop(size)
    yield from waiting.values()


def padded_size(inputs: Inputs) -> torch.Size:
    """The size of `pixel_values`, padding included."""
    return inputs["pixel_values"].shape


def forward_batch(model: Model, inputs: Sequence[Inputs]) -> Any:
    """Outputs of B images of one padded size. The inputs of each are `pixel_values` (1, C, H, W) and `pixel_mask`
    (1, H, W). A model with queries makes no masks yet: results ask for those of the queries that matter."""
    pixel_values = torch.cat([item["pixel_values"] for item in inputs])
    lazy = {} if model.config.is_per_pixel else {"lazy_masks": True}
    return model(
        # Convolutions of the CPU and of tensor cores run fastest on channels-last memory.
        pixel_values=pixel_values.to(model.device, model.dtype, memory_format=torch.channels_last),
        pixel_mask=torch.cat([item["pixel_mask"] for item in inputs]).to(model.device),
        **lazy,
    )


def slice_outputs(outputs: Any, index: int) -> Any:
    """The outputs of one image of a batch, still with a batch dimension."""
    parts: dict[str, Any] = {
        name: value[index, None] for name, value in outputs.items() if isinstance(value, torch.Tensor)
    }
    if outputs.get("masks") is not None:
        parts["masks"] = [outputs["masks"][index]]
    return type(outputs)(**parts)
