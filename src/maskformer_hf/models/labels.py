"""Which class of one model is which of another."""

from typing import Any

# Three fields of a configuration that say the same.
LABEL_FIELDS = ("num_labels", "id2label", "label2id")


def matching_labels(old: Any, new: Any) -> list[int | None]:
    """For each new label the old one of the same name, or None.

    Where there are as many labels as before and none has moved, all are the old ones, some of them renamed. `LABEL_3`
    is no name: transformers makes it up for labels without one.
    """
    old_ids = {name: label for label, name in old.items() if name != f"LABEL_{label}"}
    rows = [old_ids.get(new.get(label)) for label in range(len(new))]
    if len(old) == len(new) and all(row in (None, label) for label, row in enumerate(rows)):
        return list(range(len(new)))
    return rows


def requested_labels(
    trained: Any,
    num_labels: int | None = None,
    id2label: dict[Any, str] | None = None,
    label2id: dict[str, Any] | None = None,
) -> dict[int, str]:
    """The labels asked for in one of three ways."""
    if id2label is None and label2id is not None:
        id2label = {label: name for name, label in label2id.items()}
    if id2label is None:
        if num_labels == len(trained):
            return trained
        return {label: f"LABEL_{label}" for label in range(num_labels or 0)}
    if num_labels is not None and num_labels != len(id2label):
        raise ValueError(f"`num_labels`={num_labels}, but there are names of {len(id2label)} labels: give one of them.")
    return {int(label): name for label, name in id2label.items()}
