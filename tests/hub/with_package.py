"""Push in every way, by the command and from Python, and load again with the package imported.

with_package.py RESULT CHECKPOINT PHOTO
"""

import json
import os
import sys
import time
from pathlib import Path

from huggingface_hub import create_repo, upload_folder
from loopback import TOKEN
from results import summarize
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForUniversalSegmentation,
    Trainer,
    TrainingArguments,
    pipeline,
)
from typer.testing import CliRunner

from maskformer_hf import MaskFormerForUniversalSegmentation, MaskFormerImageProcessor
from maskformer_hf.cli import app

result_file, checkpoint, photo = sys.argv[1:]
results = {}

# Retries of a broken connection would wait 23 seconds.
time.sleep = lambda seconds: None


def command(*arguments: str, token: str | None = TOKEN) -> dict:
    os.environ.pop("HF_TOKEN", None)
    if token:
        os.environ["HF_TOKEN"] = token
    result = CliRunner().invoke(app, ["push", *arguments])
    os.environ["HF_TOKEN"] = TOKEN
    stray = result.exception is not None and not isinstance(result.exception, SystemExit)
    return {
        "status": result.exit_code,
        "output": result.stdout,
        "errors": result.stderr,
        "exception": repr(result.exception) if stray else None,
    }


results["push"] = command(checkpoint, "me/tiny", "--message", "A first model")
results["private"] = command(checkpoint, "mine", "--private")
results["of a Hub name"] = command("me/tiny", "me/copy")

results["refused token"] = command(checkpoint, "me/refused", token="hf_wrong")
results["no token"] = command(checkpoint, "me/refused", token=None)
results["someone else's"] = command(checkpoint, "someone/else")
results["interrupted upload"] = command(checkpoint, "me/broken-upload")
results["interrupted commit"] = command(checkpoint, "me/broken-commit")
results["impossible name"] = command(checkpoint, "me/a/b")
results["no such checkpoint"] = command("nonsense", "me/tiny")
results["no such Hub name"] = command("me/nothing", "me/tiny")

model = MaskFormerForUniversalSegmentation.from_pretrained(checkpoint)
processor = MaskFormerImageProcessor.from_pretrained(checkpoint)
model.push_to_hub("me/parts")
processor.push_to_hub("me/parts")
model.save_pretrained("pushed_while_saving", push_to_hub=True, repo_id="me/parts-of-save")
# The code is there already, and is not among what this save changes.
model.save_pretrained("pushed_while_saving", push_to_hub=True, repo_id="me/parts-of-second-save")

# Ways that know nothing of the code.
processor.label_ids_to_fuse = model.config.label_ids_to_fuse
model.save_pretrained("folder")
processor.save_pretrained("folder")
create_repo("me/folder")
upload_folder(repo_id="me/folder", folder_path="folder")
arguments = TrainingArguments("trained", hub_model_id="me/trained", report_to="none", use_cpu=True)
Trainer(model, arguments, processing_class=processor).push_to_hub()
os.environ["MASKFORMER_HF_SAVE_CODE"] = "0"
model.push_to_hub("me/without-code")
del os.environ["MASKFORMER_HF_SAVE_CODE"]

# No flag, and nobody to answer a question: the process has no input.
model = AutoModelForUniversalSegmentation.from_pretrained("me/tiny")
processor = AutoImageProcessor.from_pretrained("me/tiny")
segmenter = pipeline("image-segmentation", model="me/tiny")
results["classes"] = [
    f"{type(item).__module__}.{type(item).__name__}"
    for item in (
        model,
        model.config,
        processor,
        AutoModel.from_pretrained("me/tiny"),
        segmenter,
        segmenter.model,
        segmenter.image_processor,
    )
]
model.save_pretrained("saved")
processor.save_pretrained("saved")
results["saved"] = sorted(path.name for path in Path("saved").iterdir())
results["segments"] = summarize(segmenter, photo)
Path(result_file).write_text(json.dumps(results))
