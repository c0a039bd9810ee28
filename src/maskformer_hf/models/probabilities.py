"""From logits to probabilities and back, with refusals of what is none."""

import math

import torch
from torch import Tensor


def class_probabilities(class_logits: Tensor) -> Tensor:
    """Softmax over K classes and no-object, (Q, K + 1) float32.

    Raises:
        ValueError: A logit is NaN or infinite.
    """
    class_logits = class_logits.float()
    if not bool(torch.isfinite(class_logits).all()):
        raise ValueError("class_queries_logits hold NaN or infinity; check the weights and the pixel values.")
    return class_logits.softmax(-1)


def logit_of(probability: float) -> float:
    """The logit of a mask threshold, infinite at 0 and 1.

    Raises:
        ValueError: The threshold is no probability.
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"mask_threshold={probability} is no probability: choose one from 0 to 1.")
    if probability in (0, 1):
        return -math.inf if probability == 0 else math.inf
    return math.log(probability / (1 - probability))
