"""The check of the data before training: figures, problems, and a picture."""

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from ..data import FirstRows, SegmentationDataset, find_data, is_streamed, open_dataset
from ..data.inspection import TrainingView, inspect_dataset
from ..data.report import DataReport, format_report, shared_images
from ..inference.load import checkpoint_path
from ..models.configuration_per_pixel import MaskFormerHfPerPixelConfig
from ..output_files import save_picture
from ..presets import PRESETS
from ..visualize import contact_sheet
from .arguments import AugmentationArguments, ModelArguments, Recipe
from .json_files import write_json
from .recipe_data import open_data
from .recipe_model import config_class_of

# Images of each split that are inspected before training, which takes seconds; `maskformer check-data` takes all.
IMAGES_BEFORE_TRAINING = 500
PICTURES_BEFORE_TRAINING = 24


def open_splits(
    data: Path | None,
    splits: Sequence[str],
    recipe: Recipe | None,
    *,
    format: str = "auto",
    class_groups: Literal["supercategory"] | Mapping[str, Sequence[str]] | None = None,
) -> dict[str, SegmentationDataset]:
    """The data sets that `maskformer check-data` looks at, by name.

    Args:
        data: A folder, or a COCO json. With a recipe it takes the place of `data.root`, and may be None.
        splits: Names of splits. Empty: those of the recipe, or else the folder itself, or `train` and `val` in it.
        format, class_groups: Take the place of the recipe's, unless they are "auto" and None.

    Raises ValueError if the files have another format, or none that is known.
    """
    if recipe is not None:
        arguments = recipe.data
        if data is not None:
            arguments.root = str(data)
        if format != "auto":
            arguments.format = format
        if class_groups is not None:
            arguments.class_groups = class_groups  # pyrefly: ignore[bad-assignment]
        if splits:
            arguments.train, arguments.validation = splits[0], None
        training, validation = open_data(arguments)
        found = {"train": training} if not splits else {splits[0]: training}
        if validation is not None:
            found["validation"] = validation
        for name in splits[1:]:
            arguments.train = name
            found[name], _ = open_data(arguments)
        return found
    assert data is not None, "the command asks for one of the two"
    options: Any = {"format": format, "class_groups": class_groups}
    if not splits:
        root, only = find_data(data, None)
        try:
            return {data.name: open_dataset(root, only, **options)}
        except ValueError:
            splits = [name for name in ("train", "val") if (data / name).is_dir() or _opens(data, name, options)]
            if not splits:
                raise
    return {name: open_dataset(*find_data(data, name), **options) for name in splits}


def _opens(root: Path, split: str, options: dict[str, Any]) -> bool:
    try:
        open_dataset(root, split, **options)
    except ValueError:
        return False
    return True


def check_data(
    splits: Mapping[str, SegmentationDataset],
    *,
    augmentation: AugmentationArguments | None = None,
    num_queries: int | None = None,
    max_images: int | None = None,
    max_pictures: int = 48,
    sheet: Path | None = None,
    json: Path | None = None,
    progress: bool = True,
) -> list[DataReport]:
    """Inspects each split, and whether two of them share images.

    Args:
        splits: Name -> data set.
        augmentation: How training resizes, to find out what it loses.
        num_queries: Number of queries of the model.
        max_images: Number of images of each split that are inspected, evenly spaced; None: all.
        max_pictures: Number of pictures on each contact sheet.
        sheet: File of the first split's contact sheet. In the files of other splits their name follows the stem.
        json: File for the reports, as a list.
    """
    training = TrainingView(num_queries=num_queries)
    if augmentation is not None:
        crop_size = None if augmentation.crop_size is None else (augmentation.crop_size[0], augmentation.crop_size[1])
        training = TrainingView(smallest_training_size(augmentation), crop_size, num_queries)
    reports: list[DataReport] = []
    for name, dataset in splits.items():
        report = inspect_dataset(
            dataset,
            name=name,
            max_images=max_images,
            training=training,
            max_picks=max_pictures,
            progress=progress,
        )
        shared = [shared_images(other, report) for other in reports]
        report.warnings += [problem for problem in shared if problem is not None]
        reports.append(report)
        if sheet is not None and report.picks:
            save_picture(contact_sheet(dataset, report.picks), sheet_paths(sheet, splits)[name])
    if json is not None:
        write_json(json, {"splits": [report.to_json() for report in reports]})
    return reports


def sheet_paths(sheet: Path, splits: Iterable[str]) -> dict[str, Path]:
    """The file of each split's contact sheet."""
    return {name: sheet.with_stem(f"{sheet.stem}_{name}") if place else sheet for place, name in enumerate(splits)}


def check_before_training(
    recipe: Recipe, model: Any, training_data: SegmentationDataset, validation_data: SegmentationDataset | None
) -> None:
    """Prints the reports to stderr, and writes `data.json` and `data.png` into the output folder.

    With several processes the first one does it for all. Raises ValueError if there are errors in the data.
    """
    if os.environ.get("RANK", "0") != "0":
        return
    splits = {
        name: FirstRows(dataset, IMAGES_BEFORE_TRAINING) if is_streamed(dataset) else dataset
        for name, dataset in (("train", training_data), ("validation", validation_data))
        if dataset is not None
    }
    output_dir = Path(recipe.output_dir)
    reports = check_data(
        splits,
        augmentation=recipe.augmentation,
        num_queries=getattr(model.config, "num_queries", None),
        max_images=IMAGES_BEFORE_TRAINING,
        max_pictures=PICTURES_BEFORE_TRAINING,
        sheet=output_dir / "data.png",
        json=output_dir / "data.json",
    )
    for report in reports:
        tqdm.write(format_report(report) + "\n", file=sys.stderr)
    raise_errors(reports)


def raise_errors(reports: Sequence[DataReport]) -> None:
    """Raises ValueError, which names the first error, if the reports have any."""
    errors = [problem for report in reports for problem in report.errors]
    if errors:
        count = sum(problem.count for problem in errors)
        raise ValueError(
            f"the data has {count} error{'s' * (count > 1)}, the first: {errors[0].what}: {errors[0].examples[0]}; "
            "correct or leave out what is named, or train regardless with data.check=false"
        )


def smallest_training_size(augmentation: AugmentationArguments) -> Callable[[tuple[int, int]], tuple[int, int]]:
    """(height, width) of an image -> the smallest (height, width) to which training resizes it.

    For large-scale jitter it is the size at scale 1, as its smallest sizes lose much on purpose.
    """

    def size_of(size: tuple[int, int]) -> tuple[int, int]:
        if augmentation.kind == "magnification_jitter":
            scale = augmentation.scale[0]
        elif augmentation.kind == "large_scale_jitter":
            assert augmentation.crop_size is not None, "the augmentation needs it"
            scale = min(augmentation.crop_size[0] / size[0], augmentation.crop_size[1] / size[1])
        else:
            assert augmentation.short_edge is not None, "the augmentation needs it"
            scale = augmentation.short_edge[0] / min(size)
            if augmentation.long_edge is not None:
                scale = min(scale, augmentation.long_edge / max(size))
        return max(1, int(scale * size[0])), max(1, int(scale * size[1]))

    return size_of


def queries_of(arguments: ModelArguments) -> int | None:
    """The number of queries of the model of a recipe, without building it; None if it has none."""
    if "num_queries" in arguments.config:
        return arguments.config["num_queries"]
    config: Any = config_class_of(arguments)
    if arguments.preset is not None:
        config = PRESETS[arguments.preset]()
    elif arguments.checkpoint is not None:
        config = config.from_pretrained(checkpoint_path(arguments.checkpoint))
    return None if config.model_type == MaskFormerHfPerPixelConfig.model_type else config.num_queries
