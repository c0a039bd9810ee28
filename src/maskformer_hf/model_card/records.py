"""Reads the records in a checkpoint's folder."""

import json
import struct
from dataclasses import dataclass
from importlib import import_module
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ..models.auto_classes import MODELS

WORDS_FILE = "model_card.yaml"
RECORDS = ("training.json", "evaluation.json", "speed.json", WORDS_FILE)
# What model_card.yaml and the keyword arguments may say; all of it may be left out.
WORDS = {
    "title": "the first line",
    "description": "what the model is, a few sentences",
    "data": "what it was trained on: source, size, terms",
    "dataset_name": "the name of the data, such as CamVid",
    "dataset_id": "its name on the Hub, or a short one without spaces",
    "limits": "what it is not for",
    "licence": "of the weights, by the Hub's short name, such as apache-2.0",
    "licence_note": "what else to say of it",
    "base_model": "the model on the Hub it was made from",
    "tags": "a list, for the Hub's search",
}
# Statistics of BatchNorm, which no training step learns.
_STATISTICS = (".running_mean", ".running_var", ".num_batches_tracked")


class Weights(NamedTuple):
    """How many numbers there are, the bytes of their files, and their types, the most frequent first."""

    count: int
    num_bytes: int
    types: list[str]


@dataclass
class Records:
    """What lies in a folder. Records that are not there are empty."""

    config: Any
    processor: dict[str, Any]
    training: dict[str, Any]
    evaluation: dict[str, Any]
    speed: dict[str, Any]
    words: dict[str, Any]
    weights: Weights

    @property
    def data(self) -> dict[str, Any]:
        """What training says of its data."""
        return self.training.get("data") or {}

    @property
    def dataset_name(self) -> str | None:
        return self.words.get("dataset_name") or self.data.get("name")


def read_records(folder: Path, words: dict[str, Any]) -> Records:
    """All records of a folder.

    Args:
        words: Take the place of those in model_card.yaml.

    Raises:
        ValueError: The folder holds no checkpoint of ours, a record is damaged, or there is no place for some words.
    """
    config = _read_config(folder)
    words = {**_read_words(folder), **words}
    unknown = sorted(words.keys() - WORDS.keys())
    if unknown:
        raise ValueError(f"A model card has no place for {', '.join(unknown)}; it has one for {', '.join(WORDS)}.")
    training = _read_json(folder / "training.json")
    return Records(
        config=config,
        processor=_read_json(folder / "preprocessor_config.json"),
        training=training,
        evaluation=_read_json(folder / "evaluation.json") or training.get("evaluation") or {},
        speed=_read_json(folder / "speed.json"),
        words=words,
        weights=_read_weights(folder),
    )


def _read_config(folder: Path) -> Any:
    model_type = _read_json(folder / "config.json").get("model_type")
    if model_type not in MODELS:
        raise ValueError(
            f"The folder {str(folder)!r} holds no config.json of a model of ours: its `model_type` must be one of "
            f"{list(MODELS)}, found {model_type!r}."
        )
    module, _, name = MODELS[model_type]["AutoConfig"].partition(".")
    return getattr(import_module(f"..models.{module}", __package__), name).from_pretrained(folder)


def _read_json(path: Path) -> dict[str, Any]:
    """The dictionary in a JSON file; empty if there is no such file."""
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{str(path)!r} is no valid JSON: {error}") from error
    return _check_names_and_values(record, path)


def _read_words(folder: Path) -> dict[str, Any]:
    path = folder / WORDS_FILE
    if not path.is_file():
        return {}
    try:
        words = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{str(path)!r} is no valid YAML: {' '.join(str(error).split())}") from error
    return _check_names_and_values(words, path)


def _check_names_and_values(content: Any, path: Path) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise ValueError(f"{str(path)!r} holds a {type(content).__name__}; expected names and values.")
    return content


def _read_weights(folder: Path) -> Weights:
    """What the headers of the *.safetensors files say."""
    count, num_bytes, types = 0, 0, {}
    for path in sorted(folder.glob("*.safetensors")):
        num_bytes += path.stat().st_size
        with path.open("rb") as file:
            # A safetensors file begins with eight bytes that hold the length of its header, which is JSON.
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        for name, tensor in header.items():
            if name == "__metadata__" or name.endswith(_STATISTICS):
                continue
            elements = prod(tensor["shape"])
            count += elements
            types[tensor["dtype"]] = types.get(tensor["dtype"], 0) + elements
    if not count:
        raise ValueError(f"The folder {str(folder)!r} holds no weights (*.safetensors).")
    names = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    return Weights(count, num_bytes, [names.get(kind, kind) for kind in sorted(types, key=lambda kind: -types[kind])])
