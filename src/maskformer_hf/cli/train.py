"""`maskformer train`."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from .errors import quiet_transformers

EXAMPLES = """Examples:

  maskformer train recipes/camvid/street.yaml --output runs/street

  maskformer train recipes/camvid/street.yaml --output runs/street --resume

  maskformer train recipe.yaml --set data.root=photos --set optimization.learning_rate=2e-4

  accelerate launch --num_processes 2 -m maskformer_hf train recipe.yaml"""


@dataclass(frozen=True)
class TrainOptions:
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML file, such as those in recipes/.")]
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the recipe; may be given several times."),
    ] = None
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the last checkpoint in the output folder.")
    ] = False
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The folder of the run, instead of the recipe's output_dir.")
    ] = None
    report_to: Annotated[
        list[str] | None,
        typer.Option(
            "--report-to", metavar="TRACKER", help="Also log to tensorboard, wandb, ...; may be given several times."
        ),
    ] = None
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Remove what an earlier run has left in the output folder.")
    ] = False


def train(options: TrainOptions) -> None:
    """Train a model by a recipe; the result is a folder that `--checkpoint` and `from_pretrained` take."""
    if options.resume and options.overwrite:
        raise ValueError("--resume goes on with a run and --overwrite removes it: pass one of them")
    if not options.recipe.is_file():
        raise ValueError(f"there is no recipe {str(options.recipe)!r}: give the path of a YAML file")
    quiet_transformers()
    from ..training import train as run_training

    folder = run_training(
        options.recipe,
        options.overrides,
        options.resume,
        options.output,
        options.report_to or (),
        overwrite=options.overwrite,
    )
    # Each process of a distributed run gets here; only the first reports.
    if os.environ.get("RANK", "0") == "0":
        typer.echo(f"Saved {folder}")
