"""The logarithm of a sigmoid that is known already: what matching and dense losses spend most of their time on."""

import torch
from torch.nn import functional as F


def log_sigmoid(
    x: torch.Tensor, probability: torch.Tensor, bounded: bool, out: torch.Tensor | None = None
) -> torch.Tensor:
    """log(p) where p, the sigmoid of x, is known: exact to 6e-8 absolute or relative, whichever is more.

    Without bounds as PyTorch has it, which takes a CPU many times as long. Not for gradients; `out` may be x.
    """
    if bounded:
        return torch.log(probability, out=out)
    result = F.logsigmoid(x)
    return result if out is None else out.copy_(result)


def is_bounded(x: torch.Tensor) -> bool:
    """Whether no sigmoid of x is too small for its logarithm. False where the answer would have to be waited for."""
    return x.device.type == "cpu" and bool(x.amin() > -80)
