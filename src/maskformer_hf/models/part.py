"""What an entry of the table of parts is; the table is in `parts.py`."""

from collections.abc import Callable
from typing import Any, NamedTuple


def _accept(config: Any) -> None:
    """Any configuration will do."""


class Part(NamedTuple):
    """
    build: Makes the part; the table of `parts.py` says what it is called with.
    check: Raises a ValueError for a configuration that the part does not fit.
    layers: Class names of the layers that it repeats, which FSDP wraps one by one.
    """

    build: Callable[..., Any]
    check: Callable[[Any], None] = _accept
    layers: tuple[str, ...] = ()
