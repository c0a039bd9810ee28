"""Lists of names in error messages."""

from collections.abc import Sequence


def shorten(names: Sequence[str], limit: int = 8) -> str:
    """The first names of a list, and how many more there are."""
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) or "none") + rest
