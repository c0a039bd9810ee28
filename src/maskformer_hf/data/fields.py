"""Fields of a json, checked where they are read.

A field has a declared type. Text that is unambiguously a number or a truth value is taken for it and noted once for
each field, as are numbers in place of text. Anything else is a ValueError that names file, object and field.
"""

import math
import re
from collections.abc import Iterator
from typing import Any

from .problems import ProblemCounter

MISSING: Any = object()
LARGEST = 2**31 - 1
TRUTHS = {"true": True, "yes": True, "false": False, "no": False}

Identifier = int | str


class Fields:
    """One object of a json.

    Args:
        value: what the json has; must be a dict.
        where: how messages call it, such as "annotation 7 of instances.json".
        notes: where values that were taken in another type are noted.
    """

    __slots__ = ("notes", "value", "where")

    def __init__(self, value: Any, where: str, notes: ProblemCounter) -> None:
        if not isinstance(value, dict):
            raise ValueError(f"{where} is {shown(value)}; expected an object, {{...}}")
        self.value: dict[str, Any] = value
        self.where = where
        self.notes = notes

    def raw(self, key: str, default: Any = MISSING) -> Any:
        """The value as it is. null is the default, if there is one; raises ValueError if there is none."""
        value = self.value.get(key, MISSING)
        if value is MISSING and default is MISSING:
            raise ValueError(f"{self.where} has no {key}; it has {sorted(map(str, self.value))}")
        return default if value is MISSING or (value is None and default is not MISSING) else value

    def integer(self, key: str, least: int = -LARGEST, most: int = LARGEST, default: Any = MISSING) -> Any:
        """A whole number from `least` to `most`."""
        value = self.raw(key, default)
        if value is default or (type(value) is int and least <= value <= most):
            return value
        number = as_number(value)
        if number is None or number != int(number) or not least <= number <= most:
            limits = f" from {least} to {most}" if most < LARGEST else f", at least {least}" if least > -LARGEST else ""
            raise self.wrong(key, value, f"a whole number{limits}")
        self._note_text(key, value)
        return int(number)

    def identifier(self, key: str, default: Any = MISSING) -> Any:
        """A whole number, or text that is none: what objects are told apart by."""
        value = self.raw(key, default)
        if type(value) is int or value is default:
            return value
        if isinstance(value, float) and value.is_integer():
            return int(value)
        if not isinstance(value, str) or not is_writable(value):
            raise self.wrong(key, value, "a number or text")
        if re.fullmatch(r"-?[0-9]{1,18}", value.strip()):
            self._note_text(key, value)
            return int(value)
        return value

    def truth(self, key: str, default: Any = MISSING) -> Any:
        """True or false."""
        value = self.raw(key, default)
        if isinstance(value, bool) or value is default:
            return value
        found = TRUTHS.get(value.strip().lower(), as_number(value)) if isinstance(value, str) else as_number(value)
        if found not in (0, 1):
            raise self.wrong(key, value, "true or false, or 1 or 0")
        self._note_text(key, value)
        return bool(found)

    def text(self, key: str, default: Any = MISSING) -> Any:
        """Text that is not empty."""
        value = self.raw(key, default)
        if value is default:
            return value
        if isinstance(value, int) and not isinstance(value, bool):
            self.notes.add(f"{key} that is a number and no text", f"{self.where}: {shown(value)}")
            return shown(value)
        if not isinstance(value, str) or not value.strip() or not is_writable(value):
            raise self.wrong(key, value, "text")
        return value

    def items(self, key: str, default: Any = MISSING) -> list[Any]:
        """A list."""
        value = self.raw(key, default)
        if not isinstance(value, list):
            raise self.wrong(key, value, "a list, [...]")
        return value

    def texts(self, key: str) -> list[str]:
        """A list of text that is not empty."""
        entries = Fields({f"{key}[{i}]": value for i, value in enumerate(self.items(key))}, self.where, self.notes)
        return [entries.text(name) for name in entries.value]

    def objects(self, key: str, name: str, id_key: str = "id") -> Iterator["Fields"]:
        """The objects of a list. Messages call them `name` and their id, or their place in the list."""
        for number, value in enumerate(self.items(key)):
            known = value.get(id_key) if isinstance(value, dict) else None
            is_name = isinstance(known, int) or (isinstance(known, str) and known.isprintable() and len(known) < 100)
            called = f"{name} {known if isinstance(known, str) else shown(known)}" if is_name else f"{key}[{number}]"
            yield Fields(value, f"{called} of {self.where}", self.notes)

    def wrong(self, key: str, value: Any, expected: str) -> ValueError:
        return ValueError(f"{self.where} has {key} {shown(value)}; expected {expected}")

    def _note_text(self, key: str, value: Any) -> None:
        if isinstance(value, str):
            self.notes.add(f"{key} that is text, and was taken for what it says", f"{self.where}: {shown(value)}")


def as_number(value: Any) -> float | int | None:
    """A finite number, also from text; None for anything else."""
    if isinstance(value, str) and re.fullmatch(r"\s*[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?\s*", value):
        value = float(value)
        value = int(value) if abs(value) < 2**53 and value.is_integer() else value
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and (isinstance(value, int) or math.isfinite(value)) else None


def is_writable(text: str) -> bool:
    """Whether a text can be written: json may hold halves of characters, and zeros, which end names of files."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def shown(value: Any) -> str:
    """A value as json has it, in a few characters."""
    if value is None or isinstance(value, bool):
        return str(value).lower() if value is not None else "null"
    if isinstance(value, dict | list) and not value:
        return "{}" if isinstance(value, dict) else "[]"
    if isinstance(value, dict | list):
        return f"an object with {sorted(map(str, value))[:5]}" if isinstance(value, dict) else f"a list of {len(value)}"
    if isinstance(value, int) and abs(value) > 10**18:
        return "a number of more than 18 digits"
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:56]}...{text[-1]}"
