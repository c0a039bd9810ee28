"""`maskformer check-data`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from ..output_files import refuse_existing
from .errors import quiet_transformers
from .options import DataFormatOption, OverwriteOption
from .output_paths import check_picture

EXAMPLES = """Examples:

  maskformer check-data photos

  maskformer check-data coco --split train2017 --split val2017 --sheet coco.png

  maskformer check-data --recipe recipe.yaml --json data.json"""


@dataclass(frozen=True)
class CheckDataOptions:
    data: Annotated[
        Path | None,
        typer.Argument(
            help="A data set: a folder of any format that train reads, or a COCO json. The recipe's if not given."
        ),
    ] = None
    splits: Annotated[
        list[str] | None,
        typer.Option(
            "--split", help="The split of the folder to check; may be given several times (train and val if not given)."
        ),
    ] = None
    format: DataFormatOption = "auto"
    class_groups: Annotated[
        str | None,
        typer.Option(
            "--class-groups",
            metavar="supercategory",
            help="Merge the classes of a COCO json into its super-categories.",
        ),
    ] = None
    recipe: Annotated[
        Path | None,
        typer.Option(
            "--recipe",
            help="Read the data as this recipe does, and check them against the sizes and queries it trains with.",
        ),
    ] = None
    sheet: Annotated[
        Path | None, typer.Option("--sheet", help="Write a picture of photos with their labels drawn.")
    ] = None
    json_path: Annotated[Path | None, typer.Option("--json", help="Also write everything found as JSON.")] = None
    max_images: Annotated[
        int | None,
        typer.Option("--max-images", min=1, help="Look at this many photos of each split (all if not given)."),
    ] = None
    overwrite: OverwriteOption = False


def check_data(options: CheckDataOptions) -> None:
    """Say what a data set holds, what gets lost in training, and what is wrong with it, with file and id.

    The exit status is 1 if there is anything that training would stumble over.
    """
    if options.data is None and options.recipe is None:
        raise ValueError("give a folder, or a recipe with --recipe")
    if options.data is not None and not options.data.exists():
        raise ValueError(f"there is no folder or file {str(options.data)!r}")
    if options.sheet is not None:
        check_picture(options.sheet, "--sheet")
    if options.json_path is not None:
        refuse_existing([options.json_path], options.overwrite, "--json")
    quiet_transformers()
    from ..data.report import format_report
    from ..training.arguments import read_recipe
    from ..training.data_check import check_data as check_splits
    from ..training.data_check import open_splits, queries_of, sheet_paths

    recipe = None if options.recipe is None else read_recipe(options.recipe)
    splits = open_splits(
        options.data,
        options.splits or (),
        recipe,
        format=options.format,
        class_groups=options.class_groups,  # pyrefly: ignore  # `open_dataset` checks the value
    )
    if options.sheet is not None:
        refuse_existing(sheet_paths(options.sheet, splits).values(), options.overwrite, "--sheet")
    reports = check_splits(
        splits,
        augmentation=None if recipe is None else recipe.augmentation,
        num_queries=None if recipe is None else queries_of(recipe.model),
        max_images=options.max_images,
        sheet=options.sheet,
        json=options.json_path,
    )
    typer.echo("\n\n".join(format_report(report) for report in reports))
    if any(report.errors for report in reports):
        raise typer.Exit(1)
