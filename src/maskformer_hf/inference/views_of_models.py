"""A model of somebody else in evaluation mode, without a change to it: a second tree of modules with the same weights.

Threads may share a model, and one of them may train it, so its mode is never switched here.
"""

import copy
from functools import partial
from types import MethodType
from typing import Any, TypeVar

from torch import nn

Model = TypeVar("Model", bound=nn.Module)


def in_evaluation_mode(model: Model, **fields: Any) -> Model:
    """The model in evaluation mode, and with these fields of its configuration, those that are not None.

    It is the model itself if it is so already, or else a view of it (`private_view`).

    Raises:
        ValueError: A value that the configuration refuses.
    """
    given = {name: value for name, value in fields.items() if value is not None}
    if not given and not any(module.training for module in model.modules()):
        return model
    return private_view(model, **given).eval()


def private_view(model: Model, **fields: Any) -> Model:
    """The same model with modules of its own: mode, hooks, dtype, device and attributes can be changed apart.

    Weights and buffers are the same memory until the view is moved or converted. A view of a compiled model is not
    compiled. `fields` are those of a configuration of its own.
    """
    # `torch.compile` wraps a function that runs the original's modules.
    model = getattr(model, "_orig_mod", model)
    view = _View()
    if fields:
        config: Any = model.config
        view.twins[id(config)] = own = copy.deepcopy(config)
        for name, value in fields.items():
            setattr(own, name, value)
        own.validate_parts()
    return view.of(model)


class _View:
    def __init__(self) -> None:
        # By the identity of what they stand for, which keeps tied weights and shared modules what they are.
        self.twins: dict[int, Any] = {}

    def of(self, model: Any) -> Any:
        modules = list(model.modules())
        for module in modules:
            twin = copy.copy(module)
            twin.__dict__.pop("_compiled_call_impl", None)
            self.twins[id(module)] = twin
        for module in modules:
            fields = self.twins[id(module)].__dict__
            for name, value in list(fields.items()):
                twin = self._twin(value)
                # torch's own tables: of children, weights, buffers and hooks.
                is_table = twin is value and isinstance(value, dict) and name.startswith("_")
                fields[name] = value.copy() if is_table else twin
        return self.twins[id(model)]

    def _twin(self, value: Any) -> Any:
        """What an attribute becomes: its modules, weights and bound methods are those of the view."""
        if id(value) in self.twins:
            return self.twins[id(value)]
        if type(value) is nn.Parameter:
            # Another object on the same memory, since `.to` changes the object.
            self.twins[id(value)] = nn.Parameter(value.data, value.requires_grad)
            return self.twins[id(value)]
        if isinstance(value, MethodType) and id(value.__self__) in self.twins:
            return MethodType(value.__func__, self.twins[id(value.__self__)])
        if isinstance(value, partial):
            args = [self._twin(item) for item in value.args]
            return value if args == list(value.args) else partial(value.func, *args, **value.keywords)
        if isinstance(value, dict):
            changed = {key: twin for key, item in value.items() if (twin := self._twin(item)) is not item}
            if changed:
                # The class of a dictionary, and its order, may matter.
                value = value.copy()
                value.update(changed)
        elif type(value) in (list, tuple):
            twins = [self._twin(item) for item in value]
            if any(twin is not item for twin, item in zip(twins, value, strict=True)):
                return type(value)(twins)
        return value
