"""A per-pixel baseline where a MaskFormer is expected: `load`, `predict`, the pipeline, the command line."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import pipeline
from typer.testing import CliRunner

from maskformer_hf import MaskFormerImageSegmentationPipeline, PerPixelBaseline, PerPixelBaselineConfig, load, predict
from maskformer_hf.cli import app
from maskformer_hf.inference.images import read_image
from maskformer_hf.models.remote_code import add_code

LABELS = ("sky", "road", "car", "person")


@pytest.fixture(scope="module", params=[None, "detr"], ids=["PerPixelBaseline", "PerPixelBaseline+"])
def checkpoint(request, tmp_path_factory, tiny_model, tiny_processor):
    torch.manual_seed(0)
    names = ("backbone_config", "feature_size", "mask_feature_size", "hidden_size", "num_attention_heads", "ffn_dim")
    config = PerPixelBaselineConfig(
        **{name: getattr(tiny_model.config, name) for name in (*names, "decoder_layers", "id2label", "label2id")},
        transformer_decoder=request.param,
    )
    folder = tmp_path_factory.mktemp("per_pixel") / "tiny"
    PerPixelBaseline(config).save_pretrained(folder)
    tiny_processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def loaded(checkpoint):
    return load(checkpoint, device="cpu")


def test_predict(loaded, photo_paths):
    """Each pixel has the class with the largest logit, and a class the mean probability of its pixels as its score."""
    model, processor = loaded
    assert type(model) is PerPixelBaseline
    [prediction] = predict(model, processor, photo_paths[0])
    inputs = processor(read_image(photo_paths[0]), return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits
    logits = F.interpolate(logits, scale_factor=4, mode="bilinear")
    height, width = (int(inputs["pixel_mask"][0].any(axis).sum()) for axis in (1, 0))
    logits = F.interpolate(logits[..., :height, :width], size=prediction.size, mode="bilinear")[0]
    assert prediction.task == "semantic"
    assert (prediction.segmentation != logits.argmax(0)).float().mean() < 1e-3
    assert sum(segment["area"] for segment in prediction.segments) == logits[0].numel()
    assert [segment["area"] for segment in prediction.segments] == sorted(
        (segment["area"] for segment in prediction.segments), reverse=True
    )
    probabilities = logits.softmax(0)
    for segment in prediction.segments:
        assert segment["label"] == LABELS[segment["label_id"]]
        mean = probabilities[segment["label_id"]][prediction.mask(segment)].mean().item()
        assert segment["score"] == pytest.approx(mean, abs=0.05)


def test_a_batch_changes_nothing(loaded, photo_paths):
    photos = [photo_paths[0], photo_paths[1], photo_paths[0]]
    together = predict(*loaded, photos, batch_size=3)
    for photo, prediction in zip(photos, together, strict=True):
        [alone] = predict(*loaded, photo)
        assert (alone.segmentation != prediction.segmentation).float().mean() < 1e-4


@pytest.mark.parametrize("task", ["instance", "panoptic"])
def test_other_tasks_are_refused(loaded, photo_paths, task):
    with pytest.raises(ValueError, match=f"knows no segments: `task` must be 'semantic', got '{task}'"):
        predict(*loaded, photo_paths[0], task=task)


def test_pipeline(checkpoint, loaded, photo_paths):
    segmenter = pipeline("image-segmentation", model=str(checkpoint), device="cpu")
    assert type(segmenter) is MaskFormerImageSegmentationPipeline
    [prediction] = predict(*loaded, photo_paths[0])
    for segments in (segmenter(str(photo_paths[0])), segmenter([str(photo_paths[0])] * 2, batch_size=2)[1]):
        assert [segment["label"] for segment in segments] == [segment["label"] for segment in prediction.segments]
        assert segments[0]["mask"].size == Image.open(photo_paths[0]).size
    with pytest.raises(ValueError, match="`task` must be 'semantic', got 'panoptic'"):
        segmenter(str(photo_paths[0]), subtask="panoptic")


def test_command(checkpoint, photo_paths, tmp_path):
    arguments = ["segment", str(photo_paths[0]), "--checkpoint", str(checkpoint), "--device", "cpu", "--json"]
    result = CliRunner().invoke(app, [*arguments, "--output", str(tmp_path / "result.png")])
    assert result.exit_code == 0, result.output
    [record] = json.loads(result.stdout)
    assert record["task"] == "semantic"
    assert record["segments"]
    assert (tmp_path / "result.png").is_file()
    result = CliRunner().invoke(app, [*arguments, "--task", "instance"])
    assert result.exit_code == 1
    assert len(result.stderr.strip().splitlines()) <= 2
    assert "`task` must be 'semantic', got 'instance'" in result.stderr


WITHOUT_PACKAGE = """
import sys
sys.modules["maskformer_hf"] = None
import torch
from transformers import AutoModelForSemanticSegmentation
model = AutoModelForSemanticSegmentation.from_pretrained(sys.argv[1], trust_remote_code=True)
torch.manual_seed(0)
torch.save(model(torch.randn(1, 3, 64, 96)).logits.detach(), sys.argv[2])
"""


@pytest.mark.slow
def test_uploaded_files_work_without_the_package(checkpoint, loaded, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "uploaded")
    add_code(folder)
    subprocess.run(
        [sys.executable, "-c", WITHOUT_PACKAGE, str(folder), str(tmp_path / "logits.pt")],
        env={**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")},
        check=True,
        capture_output=True,
    )
    torch.manual_seed(0)
    with torch.no_grad():
        expected = loaded[0](torch.randn(1, 3, 64, 96)).logits
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), expected, rtol=0, atol=1e-4)
