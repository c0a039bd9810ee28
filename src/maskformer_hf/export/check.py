"""Whether an exported program gives what the model gives."""

from typing import Any

import torch

from .graph import LOGITS, Graph

# (batch, height, width)
CHECKED_SIZES = ((1, 160, 224), (3, 203, 138))
# In shares of the largest logit.
TOLERANCE = 1e-3


@torch.no_grad()
def largest_difference(graph: Graph, exported: Any, static_size: tuple[int, int] | None) -> float:
    """The largest difference between the exported program and the model, at batches and sizes the export has not seen.

    Raises:
        ValueError: The difference is more than rounding.
    """
    model: Any = graph.model
    largest = 0.0
    for batch_size, height, width in [(size[0], *(static_size or size[1:])) for size in CHECKED_SIZES]:
        generator = torch.manual_seed(batch_size)
        pixel_values = torch.randn(batch_size, model.config.num_channels, height, width, generator=generator)
        outputs = model(pixel_values)
        got = exported(pixel_values)
        if graph.post_process:
            scores = graph.class_scores(pixel_values, outputs)
            found = scores.gather(1, got[0][:, None])
            difference = float((scores.amax(1, keepdim=True) - found).max())
        else:
            difference = max(
                float((logits - outputs[name]).abs().max() / outputs[name].abs().max().clamp(min=1))
                for name, logits in zip(LOGITS, got, strict=True)
            )
        if not difference <= TOLERANCE:
            raise ValueError(
                f"At batch {batch_size} of {height}x{width} pixels the exported file gives other results than the "
                f"model (by {difference:.2g}), so nothing was written. Try --static HEIGHTxWIDTH, and please report it."
            )
        largest = max(largest, difference)
    return largest
