"""The `maskformer` command: one file for each of its commands.

Importing this package imports nothing heavy, so that `--help` and usage errors answer at once. A command imports torch
in its body, after it has checked its arguments.
"""

from typing import Annotated

import typer

from . import check_data, convert, evaluate, export, push, segment, train
from .options import takes_options

app = typer.Typer(
    name="maskformer",
    help="Semantic, instance and panoptic segmentation with the MaskFormer family.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """The entry point of the `maskformer` script and of `python -m maskformer_hf`."""
    app()


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"maskformer-hf {version('maskformer-hf')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


# In the order in which `maskformer --help` lists them.
app.command("segment", epilog=segment.EXAMPLES)(takes_options(segment.segment))
app.command("train", epilog=train.EXAMPLES)(takes_options(train.train))
app.command("check-data", epilog=check_data.EXAMPLES)(takes_options(check_data.check_data))
app.command("evaluate", epilog=evaluate.EXAMPLES)(takes_options(evaluate.evaluate))
app.command("export", epilog=export.EXAMPLES)(takes_options(export.export))
app.command("push", epilog=push.EXAMPLES)(takes_options(push.push))
app.command("convert", epilog=convert.EXAMPLES)(takes_options(convert.convert))
