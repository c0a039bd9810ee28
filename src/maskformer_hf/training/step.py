"""One optimizer step."""

from collections.abc import Iterable
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from ..models.criterion import is_auxiliary
from .distributed import all_of


def training_step(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[dict[str, Any]],
    max_gradient_norm: float,
) -> dict[str, torch.Tensor]:
    """Forward and backward over the batches (as many as the accelerator accumulates), one clipped update.

    Returns this process's mean `loss`, the unweighted loss terms of the last decoder layer, and `gradient_norm` before
    clipping, as scalars on the device.

    Raises FloatingPointError, before the update, if the loss is not finite.
    """
    sums: dict[str, torch.Tensor] = {}
    for batch in batches:
        with accelerator.accumulate(model):
            with accelerator.autocast():
                outputs = model(**batch)
            loss, loss_dict = outputs["loss"], outputs["loss_dict"]
            if not bool(torch.isfinite(loss)):
                terms = ", ".join(f"{name} {float(value):.4g}" for name, value in loss_dict.items())
                raise FloatingPointError(f"the loss is {float(loss)} ({terms})")
            accelerator.backward(loss)
            if accelerator.sync_gradients and max_gradient_norm > 0:
                norm = accelerator.clip_grad_norm_(model.parameters(), max_gradient_norm)
                assert norm is not None, "it is None only under DeepSpeed's own optimizer"
                sums["gradient_norm"] = all_of(norm)
            optimizer.step()
            optimizer.zero_grad()
        final_layer = {name: value for name, value in loss_dict.items() if not is_auxiliary(name)}
        for name, value in {"loss": loss, **final_layer}.items():
            value = value.detach().float() / accelerator.gradient_accumulation_steps
            sums[name] = sums[name] + value if name in sums else value
    return sums
