"""The facts of results in a saved folder: config.json and preprocessor_config.json say the same.

The image processor reads results without the model, so it carries what a checkpoint says about them. The model's
configuration is the one that counts: whichever of the two is saved last, the processor's file follows config.json. A
processor's file without facts, from transformers or from before there were any, is read as if it had those of
config.json.
"""

import json
import os
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from .result_options import FACTS, facts_of
from .transformers_layout import MODEL_TYPES, translate_config

CONFIG_FILE = "config.json"
PROCESSOR_FILE = "preprocessor_config.json"


def copy_facts(config: Any, processor: Any) -> None:
    """Makes the facts of a processor those of a model's configuration."""
    _set(processor, facts_of(config))


def take_saved_facts(processor: Any, folder: str | os.PathLike[str]) -> None:
    """Makes the facts of a processor those of the config.json of ours in `folder`, if there is one."""
    content = _read(Path(folder) / CONFIG_FILE)
    if content is not None and _is_ours(content):
        _set(processor, _facts_in(content))


def facts_beside(processor_fields: dict[str, Any], source: str | os.PathLike[str], **hub: Any) -> dict[str, Any]:
    """The facts of the config.json beside a processor's file that has none; empty where it has some.

    Args:
        source: A folder, or the name of a repository on the Hub.
        hub: Options of `transformers.utils.cached_file`, such as `revision`.
    """
    if "object_mask_threshold" in processor_fields:
        return {}
    path = cached_file(source, CONFIG_FILE, _raise_exceptions_for_missing_entries=False, **hub)
    content = None if path is None else _read(Path(path))
    if content is None:
        return {}
    if content.get("model_type") in MODEL_TYPES:
        try:
            content = translate_config(content, "maskformer_hf")
        except ValueError:
            return {}  # a model that cannot be read here, which loading it explains
    return _as_saved(_facts_in(content)) if _is_ours(content) else {}


def update_saved_processor(folder: str | os.PathLike[str], config: Any) -> None:
    """Writes the facts of a model's configuration into the preprocessor_config.json of ours in `folder`, if any."""
    path = Path(folder) / PROCESSOR_FILE
    content = _read(path)
    if content is None or not str(content.get("image_processor_type")).startswith("MaskFormerHf"):
        return
    facts = _as_saved(facts_of(config))
    # Processors save no fields that are None.
    updated = {name: value for name, value in {**content, **facts}.items() if name not in facts or value is not None}
    if updated != content:
        unfinished = path.with_name(f"{path.name}.unfinished")
        unfinished.write_text(json.dumps(updated, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        unfinished.replace(path)


def _is_ours(content: dict[str, Any]) -> bool:
    return str(content.get("model_type")).startswith("maskformer_hf")


def _facts_in(content: dict[str, Any]) -> dict[str, Any]:
    return {name: content.get(name, default) for name, default in FACTS.items()}


def _set(processor: Any, facts: dict[str, Any]) -> None:
    for name, value in _as_saved(facts).items():
        setattr(processor, name, value)


def _as_saved(facts: dict[str, Any]) -> dict[str, Any]:
    labels = facts["label_ids_to_fuse"]
    return {**facts, "label_ids_to_fuse": None if labels is None else sorted(int(label) for label in labels)}


def _read(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}): repair or delete it, then save again.") from error
    return content if isinstance(content, dict) else None
