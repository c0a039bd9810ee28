"""Fills the template of the model card."""

import re
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from .description import (
    backbone_name,
    default_limits,
    describe,
    describe_licence,
    describe_speed,
    paper_of,
    parts_table,
)
from .evaluation import Evaluated
from .records import Records, read_records
from .training import base_model, describe_data, describe_training, recipe_as_yaml

TEMPLATE = Path(__file__).parents[1] / "model_card.md"
# Whoever edits a card by hand takes this line out, and the card is left alone from then on.
MARK = "<!-- Written by maskformer_hf from the records in this folder; remove this line to edit it by hand. -->"
SAMPLE, SAMPLE_LICENCE = "sample.png", "sample.LICENSE.txt"


def write_model_card(folder: str | Path, *, repo_id: str | None = None, name: str | None = None, **words: Any) -> Path:
    """Writes `folder`/README.md and returns its path.

    Args:
        repo_id: Where the folder goes on the Hub; the card then says how to use it from there.
        name: What `load` takes in the card's example if there is no `repo_id`; the folder's own name if not given.
        words: Take the place of those in model_card.yaml: see `WORDS`.

    Raises:
        ValueError: The folder holds no checkpoint of ours, or model_card.yaml or `words` say something that the card
            has no place for.
    """
    folder = Path(folder)
    records = read_records(folder, words)
    config, training, said = records.config, records.training, records.words
    evaluated = Evaluated(records)
    title = said.get("title") or (repo_id or "").split("/")[-1] or f"{paper_of(config)[0]} on {backbone_name(config)}"
    content = ModelCard.from_template(
        _card_data(records, evaluated, title),
        template_path=str(TEMPLATE),
        title=title,
        description=said.get("description", "").strip() or describe(config, records.dataset_name),
        sample=(folder / SAMPLE).is_file(),
        sample_licence=SAMPLE_LICENCE if (folder / SAMPLE_LICENCE).is_file() else None,
        repo_id=repo_id,
        load_name=repo_id or name or folder.name,
        task=config.task,
        is_video=config.kind == "clip",
        uses_timm=config.backbone_config.model_type == "timm_backbone",
        parts=parts_table(records),
        data=said.get("data", "").strip() or describe_data(records.data),
        command=training.get("command"),
        recipe=recipe_as_yaml(training.get("recipe")),
        steps=describe_training(training, config.kind),
        measured_on=evaluated.describe(),
        figures=evaluated.figures(),
        classes=evaluated.class_table(),
        speed=describe_speed(records.speed, config.kind),
        limits=said.get("limits", "").strip() or default_limits(config),
        licence=describe_licence(said),
        mark=MARK,
    ).content
    path = folder / "README.md"
    # The template's conditions leave empty lines behind.
    path.write_text(re.sub(r"\n{3,}", "\n\n", content).strip() + "\n", encoding="utf-8")
    return path


def is_written_by_hand(card: Path) -> bool:
    return card.is_file() and MARK not in card.read_text(encoding="utf-8")


def _card_data(records: Records, evaluated: Evaluated, title: str) -> ModelCardData:
    """What the Hub's index reads, at the top of the card."""
    config, words = records.config, records.words
    is_video = config.kind == "clip"
    results = evaluated.results(words)
    return ModelCardData(
        library_name="transformers",
        # The Hub has no word for the segmentation of videos.
        pipeline_tag=None if is_video else "image-segmentation",
        license=words.get("licence"),
        base_model=words.get("base_model") or base_model(records.training),
        tags=[
            "maskformer",
            "maskformer_hf",
            f"{'video-' if is_video else ''}{config.task}-segmentation",
            *words.get("tags", []),
        ],
        # `datasets:` only lists names on the Hub.
        datasets=[words["dataset_id"]] if "/" in words.get("dataset_id", "") else None,
        model_name=title if results else None,
        eval_results=results or None,
    )
