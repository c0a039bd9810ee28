"""Push a model of videos, or load it where this package is not installed, as its card on the Hub says.

video.py RESULT push CHECKPOINT
video.py RESULT card CARD FRAMES
"""

import contextlib
import io
import json
import re
import sys
from pathlib import Path

result_file, mode, *arguments = sys.argv[1:]
result = {}


class NotInstalled:
    """A finder that knows one package is not there."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] == "maskformer_hf":
            raise ModuleNotFoundError(name)


if mode == "push":
    from typer.testing import CliRunner

    from maskformer_hf.cli import app

    pushed = CliRunner().invoke(app, ["push", arguments[0], "me/video"])
    result = {"status": pushed.exit_code, "output": pushed.output}
else:
    sys.meta_path.insert(0, NotInstalled())
    card, frames = arguments
    code = re.search(r"```python\n(from transformers|import torch)(.*?)```", Path(card).read_text(), flags=re.DOTALL)
    names = {}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code[1] + code[2].replace('"frames/"', repr(frames)).replace("threshold=0.5", "threshold=0"), names)
    result = {
        "printed": printed.getvalue().splitlines(),
        "classes": [type(names[name]).__name__ for name in ("model", "processor")],
        "modules": [type(names[name]).__module__.split(".")[0] for name in ("model", "processor")],
        "logits": names["outputs"].class_queries_logits[0].tolist(),
    }
Path(result_file).write_text(json.dumps(result))
