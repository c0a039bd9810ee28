"""What training.json says, in sentences."""

import re
from typing import Any

import yaml


def base_model(training: dict[str, Any]) -> str | None:
    """The Hub name that a model was fine-tuned from; a folder has none."""
    checkpoint = ((training.get("recipe") or {}).get("model") or {}).get("checkpoint")
    return checkpoint if checkpoint and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", checkpoint) else None


def describe_data(data: dict[str, Any]) -> str | None:
    if not data:
        return None
    validation = f", and {data['validation_images']} for validation" if data.get("validation_images") else ""
    images = f"{data['training_images'] or 'streamed'} images"
    if data.get("training_videos"):
        images = f"{data['training_images']} frames of {data['training_videos']} videos"
    return f"`{data['name']}`: {images} for training{validation}."


def describe_training(training: dict[str, Any], kind: str) -> str:
    """Steps, batch, seed, time, machine and versions, as far as they are known."""
    recipe = training.get("recipe") or {}
    parts = []
    if training.get("step") is not None:
        parts.append(f"These are the weights after step {training['step']} of {recipe.get('steps')}")
    if recipe.get("batch_size"):
        number = recipe["batch_size"] * recipe.get("accumulation", 1) * training.get("processes", 1)
        unit = f"clips of {recipe['data']['frames']} frames" if kind == "clip" else "images"
        parts.append(f"{number} {unit} a step")
    if recipe.get("seed") is not None:
        parts.append(f"seed {recipe['seed']}")
    if training.get("seconds"):
        hours, minutes = divmod(round(training["seconds"] / 60), 60)
        parts.append(f"{hours} h {minutes:02} min" + (f" on {training['machine']}" if training.get("machine") else ""))
    elif training.get("machine"):
        parts.append(f"on {training['machine']}")
    versions = ", ".join(f"{name} {version}" for name, version in (training.get("versions") or {}).items())
    return "; ".join(parts) + "." + (f" With {versions}." if versions else "")


def recipe_as_yaml(recipe: dict[str, Any] | None) -> str | None:
    return yaml.safe_dump(recipe, sort_keys=False, default_flow_style=None, width=120).strip() if recipe else None
