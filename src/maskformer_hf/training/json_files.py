"""Writing figures as JSON, which has no NaN."""

import json
from pathlib import Path
from typing import Any

from ..output_files import write_text


def to_json(value: Any) -> str:
    """The text of a JSON file. NaN, an undefined figure, becomes null."""
    return json.dumps(_nan_to_none(value), indent=2)


def write_json(path: Path, value: Any) -> None:
    write_text(path, to_json(value) + "\n")


def _nan_to_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _nan_to_none(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_nan_to_none(item) for item in value]
    return None if isinstance(value, float) and value != value else value
