"""Whether a model and data, or two data sets, have the same classes."""

from typing import Any

from ..data import SegmentationDataset

NO_CLASS = -1
"""The id, in the data, of a class of the model that the data do not have."""


def match_classes(config: Any, dataset: SegmentationDataset, model_name: str, data_name: str) -> list[int]:
    """For each class of a model its id in the data; `NO_CLASS` for stuff where the data have objects only.

    Raises ValueError unless the other classes have the same names on both sides.
    """
    model_labels = [name for _, name in sorted((int(index), name) for index, name in config.id2label.items())]
    data_ids = {name: index for index, name in dataset.id2label.items()}
    expected = set(model_labels)
    if dataset.task == "instance" and not expected <= data_ids.keys():
        expected -= {model_labels[index] for index in config.label_ids_to_fuse or ()}
    lacking, unknown = sorted(expected - data_ids.keys()), sorted(data_ids.keys() - expected)
    if lacking or unknown:
        differences = [
            f"only in {whose}: {', '.join(map(repr, names[:5]))}" + (f" and {len(names) - 5} more" * (len(names) > 5))
            for whose, names in ((model_name, lacking), (data_name, unknown))
            if names
        ]
        raise ValueError(
            f"{model_name} and {data_name} have different classes ({'; '.join(differences)}): evaluate a checkpoint "
            "that was trained on these classes, or group the data's as it was trained (class_groups)"
        )
    return [data_ids.get(name, NO_CLASS) for name in model_labels]


def check_classes(model_labels: dict[int, str], data_labels: dict[int, str], model_name: str, data_name: str) -> None:
    """Raises ValueError unless both name the same classes by the same ids."""
    for index in range(max(len(model_labels), len(data_labels))):
        ours, theirs = model_labels.get(index), data_labels.get(index)
        if ours != theirs:
            raise ValueError(
                f"class {index} is {ours!r} in {model_name} and {theirs!r} in {data_name}; "
                "ids and names must agree: correct classes.txt, or evaluate a checkpoint trained on these classes"
            )
