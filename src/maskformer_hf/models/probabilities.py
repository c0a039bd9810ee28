"""From logits to probabilities and back, with refusals of what is none."""

import math

import torch
from torch import Tensor

# Logits of masks that are values, 0 or more, are so many times their distance from 1/2, above which a pixel is inside:
# 0 has a probability of 0.018, and 1 of 0.982.
LOGIT_SCALE = 8.0
# The logit of a class that a query cannot have. float16 holds it.
IMPOSSIBLE = -1e4


def class_probabilities(class_logits: Tensor, class_scores: str = "softmax") -> Tensor:
    """Probabilities of K classes and no-object, (Q, K + 1) float32: the softmax, or the "sigmoid" of each.

    Raises:
        ValueError: A logit is NaN or infinite.
    """
    class_logits = class_logits.float()
    if not bool(torch.isfinite(class_logits).all()):
        raise ValueError("class_queries_logits hold NaN or infinity; check the weights and the pixel values.")
    return class_logits.softmax(-1) if class_scores == "softmax" else class_logits.sigmoid()


def as_softmax(class_logits: Tensor, class_scores: str) -> Tensor:
    """Logits (Q, K + 1) whose softmax are the probabilities of the K classes.

    Where those of a query sum to more than 1, all are smaller by one factor.
    """
    if class_scores == "softmax":
        return class_logits
    probabilities_QK = class_probabilities(class_logits, class_scores)[:, :-1]
    probabilities_QK = probabilities_QK / probabilities_QK.sum(1).amax().clamp(min=1.0)
    rest_Q1 = 1 - probabilities_QK.sum(1, keepdim=True)
    return torch.cat((probabilities_QK, rest_Q1), dim=1).clamp(min=1e-30).log()


def mask_values_(logits: Tensor, mask_values: str) -> Tensor:
    """What counts of a mask, in place of its logits: probabilities, or "linear" values; 1/2 has a logit of 0."""
    return logits.sigmoid_() if mask_values == "sigmoid" else logits.div_(LOGIT_SCALE).add_(0.5)


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
