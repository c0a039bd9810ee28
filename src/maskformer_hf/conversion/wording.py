"""Lists of names, and what is said where they do not match."""

from collections.abc import Iterable, Sequence


def shorten(names: Sequence[str], limit: int = 8) -> str:
    """The first names of a list, and how many more there are."""
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) or "none") + rest


def check_names(found: Iterable[str], wanted: Iterable[str]):
    """Tensors of an original checkpoint are those of a model.

    Raises:
        ValueError: There are others, or some are missing.
    """
    unknown, missing = sorted({*found} - {*wanted}), sorted({*wanted} - {*found})
    if unknown or missing:
        raise ValueError(
            "The checkpoint does not belong to this configuration. "
            f"Tensors of the checkpoint without a place in the model: {shorten(unknown)}. "
            f"Tensors the model needs and the checkpoint lacks: {shorten(missing)}."
        )
