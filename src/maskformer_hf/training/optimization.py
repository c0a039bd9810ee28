"""AdamW with the paper's parameter groups, its schedules, and an average of the weights."""

import difflib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from .arguments import OptimizationArguments
from .distributed import all_of, local_part
from .layer_decay import depths_of

BACKBONE = "backbone"
# What a plain vision transformer gets is new, and learns as the heads do.
PYRAMID = "backbone.pyramid"
NORM_LAYERS = (
    nn.LayerNorm,
    nn.RMSNorm,
    nn.GroupNorm,
    nn.LocalResponseNorm,
    nn.modules.batchnorm._NormBase,  # BatchNorm and InstanceNorm of any dimension
)
# Plain parameters that are embeddings: Swin's table, then positions as timm and transformers name them.
EMBEDDING_PARAMETERS = (
    "relative_position_bias_table",
    "absolute_pos_embed",
    "pos_embed",
    "position_embeddings",
    "cls_token",
)


def parameter_groups(
    model: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float,
    multipliers: Mapping[str, float],
    layer_decay: float = 1.0,
) -> list[dict[str, Any]]:
    """Groups of trainable parameters for an optimizer, as MaskFormer's `build_optimizer` makes them.

    Norm layers, embeddings (queries included) and position tables do not decay; biases and other plain parameters do. A
    parameter of two modules is listed once.

    Args:
        multipliers: pattern -> what the learning rate of the parameters that it matches is multiplied with. A pattern
            is one or several parts of a parameter's name, such as "backbone" or "backbone.body.encoder"; "*" stands for
            any characters. Where several patterns match, the longest one counts: with {"backbone": 0.1,
            "backbone.body.embeddings": 0.01} the embeddings of the backbone get 0.01.
        layer_decay: What the rate of a block of a plain vision transformer is multiplied with for each block above it,
            besides. Its embeddings count as its first block. 1: no decay.

    Returns at most two groups for each pattern and two for the rest, for each block where there is a layer decay, each
    with `params`, `lr`, `weight_decay`, `name` and `parameter_names`.

    Raises ValueError for a pattern that matches no parameter of the model, or only those of a frozen backbone, and for
    a layer decay of a model without a plain vision transformer that is trained.
    """
    _check_patterns(multipliers, dict(model.named_parameters()), _is_frozen(model))
    depths = depths_of(model) if layer_decay != 1.0 else {}
    groups: dict[tuple[str | None, bool, int], dict[str, Any]] = {}
    listed: set[int] = set()
    for module_name, module in model.named_modules():
        is_norm_or_embedding = isinstance(module, (*NORM_LAYERS, nn.Embedding)) or type(module).__name__.endswith(
            "Norm"
        )
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or id(parameter) in listed:
                continue
            listed.add(id(parameter))
            full_name = f"{module_name}.{name}" if module_name else name
            pattern = max((item for item in multipliers if matches(full_name, item)), key=len, default=None)
            decays = not (is_norm_or_embedding or any(part in name for part in EMBEDDING_PARAMETERS))
            above = depths.get(full_name, 0)
            multiplier = (1.0 if pattern is None else multipliers[pattern]) * layer_decay**above
            below = f", {above} blocks below the top" if above else ""
            group = groups.setdefault(
                (pattern, decays, above),
                {
                    "params": [],
                    "lr": learning_rate * multiplier,
                    "weight_decay": weight_decay if decays else 0.0,
                    "name": f"{pattern or 'heads'}, {'decay' if decays else 'no decay'}{below}",
                    "parameter_names": [],
                },
            )
            group["params"].append(parameter)
            group["parameter_names"].append(full_name)
    return list(groups.values())


def matches(parameter_name: str, pattern: str) -> bool:
    """Whether `pattern` is made of whole parts of a name: "layers.1" matches "layers.1.bias", not "layers.11.bias"."""
    return fnmatchcase(f".{parameter_name}.", f"*.{pattern}.*")


def _is_frozen(model: Any) -> bool:
    return getattr(getattr(model, "config", None), "freeze_backbone", False)


def _check_patterns(patterns: Iterable[str], parameters: Mapping[str, nn.Parameter], is_frozen: bool) -> None:
    names = list(parameters)
    for pattern in patterns:
        found = [parameter for name, parameter in parameters.items() if matches(name, pattern)]
        if is_frozen and pattern != BACKBONE and found and not any(parameter.requires_grad for parameter in found):
            raise ValueError(
                f"multipliers has {pattern!r}, but all that it matches is frozen: leave it out, or set "
                "model.config.freeze_backbone to false"
            )
        # A model may have no backbone to train, or call it otherwise: the recipe's default for it then does nothing.
        if pattern not in (BACKBONE, PYRAMID) and not found:
            parts = sorted({part for name in names for part in name.split(".")})
            close = difflib.get_close_matches(pattern, parts, n=1)
            remedy = (
                f"did you mean {close[0]!r}?" if close else f"their names are like {', '.join(map(repr, names[:3]))}"
            )
            raise ValueError(f"multipliers has {pattern!r}, which matches no parameter of the model; {remedy}")


def build_optimizer(model: nn.Module, arguments: OptimizationArguments) -> torch.optim.AdamW:
    groups = parameter_groups(
        model,
        learning_rate=arguments.learning_rate,
        weight_decay=arguments.weight_decay,
        multipliers={BACKBONE: arguments.backbone_multiplier, PYRAMID: 1.0, **arguments.multipliers},
        layer_decay=arguments.layer_decay,
    )
    for group in groups:
        del group["parameter_names"]
        group["initial_lr"] = group["lr"]
    # fused: one kernel for all parameters; on a CPU a fifth of the time of the default
    return torch.optim.AdamW(groups, lr=arguments.learning_rate, fused=True)


def schedule(arguments: OptimizationArguments, steps: int) -> Callable[[int], float]:
    """step (0 to `steps` - 1) -> the factor on every group's rate. Warm-up multiplies the decay, as in Detectron2."""

    def decay(step: int) -> float:
        progress = step / steps
        match arguments.schedule:
            case "poly":
                return (1.0 - progress) ** arguments.poly_power
            case "cosine":
                return 0.5 * (1.0 + math.cos(math.pi * progress))
            case "step":
                return 0.1 ** sum(progress >= milestone for milestone in arguments.milestones)

    def factor(step: int) -> float:
        if step >= arguments.warmup_steps:
            return decay(step)
        share = step / arguments.warmup_steps
        return decay(step) * (arguments.warmup_factor * (1.0 - share) + share)

    return factor


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


class WeightAverage:
    """An exponential moving average of the trainable weights.

    The decay grows as (1 + n) / (10 + n) over n updates until it reaches `decay`, so that the average forgets the
    random start within a short run. Buffers are not averaged. Sharded weights have sharded averages.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float) -> None:
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self.decay = decay
        self.updates = 0
        self.averages = [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        trained = [local_part(parameter.detach()) for parameter in self.parameters]
        torch._foreach_lerp_([local_part(average) for average in self.averages], trained, 1.0 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Puts the averages in the model, and the trained weights back afterwards."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for parameter, average in zip(self.parameters, self.averages, strict=True):
            trained = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(trained)

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "averages": [all_of(average) for average in self.averages]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates = state["updates"]
        for average, saved in zip(self.averages, state["averages"], strict=True):
            if isinstance(average, DTensor):
                saved = distribute_tensor(saved.to(average.device), average.device_mesh, average.placements)
            average.copy_(saved)
