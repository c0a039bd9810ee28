"""`maskformer push`."""

from dataclasses import dataclass
from typing import Annotated

import typer

from .errors import quiet_transformers
from .options import CheckpointArgument

EXAMPLES = """Examples:

  maskformer push runs/mine/model me/my-maskformer

  maskformer push street me/street --private --message 'Street scenes'"""


@dataclass(frozen=True)
class PushOptions:
    checkpoint: CheckpointArgument
    repo_id: Annotated[
        str, typer.Argument(metavar="REPO_ID", help="USER/NAME on the Hub; created if it does not exist.")
    ]
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False
    message: Annotated[str | None, typer.Option("--message", "-m", help="The message of the commit.")] = None


def push(options: PushOptions) -> None:
    """Upload a checkpoint to the Hub: weights, model card, sample picture, and the code to use it without this package.

    The token is that of `hf auth login`, or HF_TOKEN.
    """
    quiet_transformers()
    from huggingface_hub.utils import enable_progress_bars

    from ..hub import push as push_checkpoint

    # `quiet_transformers` has turned them off, and an upload may take minutes.
    enable_progress_bars()
    address = push_checkpoint(
        options.checkpoint, options.repo_id, private=options.private or None, message=options.message
    )
    typer.echo(f"Pushed to {address}")
