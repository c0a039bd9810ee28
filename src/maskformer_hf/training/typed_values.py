"""From the plain values of YAML to dataclasses, with every key and value checked by name."""

import dataclasses
import difflib
import types
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


def build(kind: Any, values: Any, where: str = "") -> Any:
    """An object of the dataclass `kind`, whose fields may be dataclasses too.

    Args:
        where: the keys that lead to `values`, for messages.

    Raises ValueError for an unknown key (naming the closest one), a missing one, or a value of the wrong type.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{where or 'the recipe'} is {values!r}; expected keys and values")
    hints = get_type_hints(kind)
    for key in values:
        if key not in hints:
            close = difflib.get_close_matches(str(key), hints, n=1)
            remedy = f"did you mean {_join(where, close[0])}?" if close else f"the keys there are {sorted(hints)}"
            raise ValueError(f"the recipe has no key {_join(where, key)}; {remedy}")
    arguments = {}
    for item in dataclasses.fields(kind):
        name = _join(where, item.name)
        if item.name in values:
            arguments[item.name] = _convert(hints[item.name], values[item.name], name)
        elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            if not dataclasses.is_dataclass(hints[item.name]):
                raise ValueError(f"the recipe lacks {name}; add it to the file or pass --set {name}=...")
            arguments[item.name] = build(hints[item.name], {}, name)
    return kind(**arguments)


def _convert(kind: Any, value: Any, name: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return build(kind, {} if value is None else value, name)
    origin, choices = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in choices:
            return None
        choices = [choice for choice in choices if choice is not type(None)]
        for choice in choices[:-1]:
            try:
                return _convert(choice, value, name)
            except ValueError:
                pass
        if len(choices) > 1 and not isinstance(value, get_origin(choices[-1]) or choices[-1]):
            raise ValueError(f"{name} is {value!r}; expected one of {', '.join(map(_type_name, choices))}")
        return _convert(choices[-1], value, name)
    if origin is Literal:
        # YAML reads an unquoted no as False.
        value = "no" if value is False and "no" in choices else value
        if value not in choices:
            raise ValueError(f"{name} is {value!r}; choose one of {list(choices)}")
        return value
    if origin is list and isinstance(value, list):
        return [_convert(choices[0], item, f"{name}[{index}]") for index, item in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {key: _convert(choices[1], item, f"{name}.{key}") for key, item in value.items()}
    if kind is Any:
        return value
    if kind is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            return float(value)  # YAML 1.1 reads 1e-4, without a point, as text
        except ValueError:
            pass
    if kind is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if kind in (bool, str) and isinstance(value, kind):
        return value
    raise ValueError(f"{name} is {value!r}; expected {_type_name(kind)}")


def _type_name(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    return kind.__name__ if get_origin(kind) is None else str(kind)


def _join(where: str, key: object) -> str:
    return f"{where}.{key}" if where else str(key)
