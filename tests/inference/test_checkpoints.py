"""The bundled checkpoints do what their cards say, on photos and a video that they have not been trained on."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from maskformer_hf import bundled_checkpoints, load, predict, predict_video
from maskformer_hf.metrics import MaskAP, RegionSimilarity

ROOT = Path(__file__).parents[2]
LARGEST = 12 * 2**20  # bytes: what the repository takes of a file


@pytest.mark.parametrize("name", bundled_checkpoints())
def test_every_checkpoint_is_whole_and_small(name):
    folder = bundled_checkpoints()[name]
    assert (folder / "model.safetensors").stat().st_size <= LARGEST
    card = (folder / "README.md").read_text(encoding="utf-8")
    for section in ("## How good it is", "## What it is not for", "## Licence"):
        assert section in card
    model, processor = load(name)
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8))
    if model.config.kind == "clip":
        assert predict_video(model, processor, [photo, photo]).num_frames == 2
        return
    [prediction] = predict(model, processor, photo)
    assert prediction.task == model.config.task


@pytest.mark.slow
def test_nuclei_finds_nuclei():
    """AP50 of this photo alone; 66.9 is that of all of the validation split."""
    model, processor = load("nuclei")
    photo = ROOT / "examples" / "nuclei.webp"
    [prediction] = predict(model, processor, photo, threshold=0.0)
    with Image.open(ROOT / "tests" / "fixtures" / "nuclei_instances.png") as png:
        ids = torch.from_numpy(np.array(png).astype(np.int64))
    masks = ids == torch.arange(1, int(ids.max()) + 1)[:, None, None]
    metric = MaskAP(1, max_detections=400)
    metric.update(
        {
            "masks": torch.stack([prediction.mask(segment) for segment in prediction.segments]),
            "scores": torch.tensor([segment["score"] for segment in prediction.segments]),
            "labels": torch.zeros(len(prediction.segments), dtype=torch.int64),
        },
        {"masks": masks, "labels": torch.zeros(len(masks), dtype=torch.int64)},
    )
    assert metric.compute({0: "nucleus"})["ap50"] > 0.5
    [likely] = predict(model, processor, photo)
    assert 0.6 * len(masks) < len(likely.segments) < 1.6 * len(masks)


@pytest.mark.slow
def test_moving_follows_a_goat():
    """As one track in all frames; J of the whole clip, of which these are the first half, is 68.5."""
    pytest.importorskip("av")
    model, processor = load("moving")
    prediction = predict_video(model, processor, ROOT / "examples" / "goat.mp4")
    [track] = prediction.tracks
    assert all(track["segmentations"])
    reference = json.loads((ROOT / "tests" / "fixtures" / "goat.json").read_text())
    measure = RegionSimilarity()
    measure.update({"segmentations": [track["segmentations"]]}, {"segmentations": [reference["segmentations"]]})
    assert measure.compute()["j"] > 0.6
    assert measure.compute()["flicker"] < 0.15
