"""Sharing a checkpoint on the Hugging Face Hub: a complete repository, uploaded in one commit.

`model.push_to_hub` and `processor.push_to_hub` upload what `save_pretrained` writes: their own files and the code that
runs them without this package (models/remote_code.py). `push` uploads everything: weights, configuration, processor,
model card, code, records and a sample picture.
"""

import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, get_token, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HTTPError
from huggingface_hub.utils import validate_repo_id

from .inference.images import image_size, read_image, reading_of
from .inference.load import checkpoint_path, load
from .inference.predict import predict
from .inference.prediction import Prediction
from .inference.video import predict_video
from .machine import machine_name
from .model_card import RECORDS, SAMPLE, SAMPLE_LICENCE, is_written_by_hand, write_model_card
from .models.remote_code import add_code
from .visualize import draw_segmentation

PHOTO = Path(__file__).parent / "sample" / "street.jpg"
PHOTO_LICENCE = PHOTO.parent / "LICENSE.davis.txt"
COMMIT_MESSAGE = "Upload MaskFormer"
CARD = "README.md"
# Frames of the clip that a model of videos is timed on.
CLIP_FRAMES = 16
RUNS = 7


def push(checkpoint: str | Path, repo_id: str, *, private: bool | None = None, message: str | None = None) -> str:
    """Upload a checkpoint in one commit, and create the repository if it does not exist. Returns its address.

    Args:
        checkpoint: A bundled name, a folder or a Hub name.
        repo_id: `USER/NAME`, or `NAME` for a repository of your own.
        private: Whether a new repository is private. If None, the settings of its owner decide.
        message: The commit message.

    Raises:
        ValueError: There is no such checkpoint, or `repo_id` is not a valid name.
        PermissionError: There is no token, or it may not write to the repository.
        ConnectionError: The Hub cannot be reached, refuses the request, or the upload broke off.
    """
    validate_repo_id(repo_id)
    if get_token() is None:
        raise PermissionError("There is no token for the Hub: log in with `hf auth login`, or set HF_TOKEN.")
    with tempfile.TemporaryDirectory() as folder:
        prepare_repository(checkpoint, folder, repo_id)
        with _plain_errors(repo_id):
            repository = HfApi().create_repo(repo_id, private=private, exist_ok=True)
            HfApi().upload_folder(
                repo_id=repository.repo_id, folder_path=folder, commit_message=message or COMMIT_MESSAGE
            )
    return str(repository)


def prepare_repository(checkpoint: str | Path, folder: str | Path, repo_id: str) -> None:
    """Write everything that `push` uploads into `folder`.

    Weights keep the type they are stored in, unless they have to be translated from transformers' layout. A model card
    that was written by hand and a sample.png in the folder of the checkpoint are copied unchanged.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    source = Path(checkpoint_path(checkpoint))
    if not source.is_dir():
        with _plain_errors(str(checkpoint)):
            source = Path(snapshot_download(str(checkpoint)))
    model, processor = load(source)
    if json.loads((source / "config.json").read_text(encoding="utf-8"))["model_type"] == model.config.model_type:
        for file in (source / "config.json", *source.glob("*.safetensors"), *source.glob("*.safetensors.index.json")):
            shutil.copyfile(file, folder / file.name)
    else:
        model.save_pretrained(folder)
    # transformers' pipeline asks only the processor, ours the configuration.
    if processor.label_ids_to_fuse is None:
        processor.label_ids_to_fuse = model.config.label_ids_to_fuse
    processor.save_pretrained(folder)
    for name in (*RECORDS, SAMPLE, SAMPLE_LICENCE):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    if not (folder / SAMPLE).is_file():
        prediction = _segment(model, processor, [PHOTO])
        draw_segmentation(PHOTO, prediction).save(folder / SAMPLE)
        shutil.copyfile(PHOTO_LICENCE, folder / SAMPLE_LICENCE)
    if is_written_by_hand(source / CARD):
        shutil.copyfile(source / CARD, folder / CARD)
    else:
        write_model_card(folder, repo_id=repo_id)
    add_code(folder)


def measure_speed(folder: str | Path, photo: str | Path = PHOTO, device: str | None = None) -> dict[str, Any]:
    """Time the checkpoint in a folder on a photo, and write speed.json into the folder.

    The time is the median of 7 runs. For a model of videos, it is that of a clip of 16 frames divided by 16.
    """
    model, processor = load(folder, device)
    image = read_image(photo, str(photo), reading_of(processor))
    images = [image] * (CLIP_FRAMES if model.config.kind == "clip" else 1)
    _segment(model, processor, images)
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        # The results are on the CPU, so this waits for the device.
        _segment(model, processor, images)
        times.append((time.perf_counter() - start) / len(images))
    height, width = image_size(image)
    speed = {
        "milliseconds": round(1000 * statistics.median(times), 1),
        "width": width,
        "height": height,
        "task": model.config.task,
        "dtype": str(model.dtype).removeprefix("torch."),
        "machine": machine_name(model.device),
    }
    (Path(folder) / "speed.json").write_text(json.dumps(speed, indent=2) + "\n", encoding="utf-8")
    return speed


def _segment(model: Any, processor: Any, images: list[Any]) -> Prediction:
    """The segments of a photo, or of the first frame of a clip."""
    if model.config.kind == "clip":
        return predict_video(model, processor, images).frame(0)
    [prediction] = predict(model, processor, images)
    return prediction


@contextmanager
def _plain_errors(repo_id: str) -> Iterator[None]:
    """Turn what `huggingface_hub` and the network raise into one sentence that says what to do."""
    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise PermissionError(
                f"The Hub refused the token for {repo_id!r} ({status}): log in with `hf auth login`, or set HF_TOKEN, "
                "to one that may write there."
            ) from error
        if status == 404:
            raise ConnectionError(
                f"The Hub has no {repo_id!r}, or not for this token (404): is the name spelled correctly?"
            ) from error
        said = error.server_message or str(error).strip().splitlines()[0]
        raise ConnectionError(f"The Hub could not take {repo_id!r} ({status}): {' '.join(said.split())}") from error
    except (HTTPError, RuntimeError, OSError) as error:
        # A worker thread that loses its connection raises a RuntimeError around the cause.
        cause = error.__cause__ or error
        raise ConnectionError(
            f"The connection to the Hub broke off at {repo_id!r} ({str(cause) or type(cause).__name__}): run it again; "
            "files that have arrived are not sent twice."
        ) from error
