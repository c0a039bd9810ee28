"""Models of videos on the Hub: what is pushed, what the card says, and that its code runs without this package."""

import json
from io import BytesIO

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

from builders import tiny_config
from maskformer_hf import load
from maskformer_hf.export import export_checkpoint
from maskformer_hf.hub import measure_speed, prepare_repository
from maskformer_hf.model_card import write_model_card
from maskformer_hf.models.modeling_video import MaskFormerHfForVideoSegmentation
from maskformer_hf.models.video_processing_maskformer import MaskFormerHfVideoProcessor


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    config = tiny_config("video", decoder_layers=3, id2label={0: "a", 1: "b"})
    folder = tmp_path_factory.mktemp("video") / "clips"
    MaskFormerHfForVideoSegmentation(config).save_pretrained(folder)
    MaskFormerHfVideoProcessor(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    folder = tmp_path_factory.mktemp("frames")
    random = np.random.default_rng(0)
    for number in range(3):
        Image.fromarray(random.integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return folder


def test_the_card_says_how_videos_are_segmented(checkpoint, tmp_path):
    prepare_repository(checkpoint, tmp_path, "me/video")
    record = {"task": "video", "data": "/data/davis", "split": "val", "videos": 4, "frames": 160, "ap": 0.25}
    record |= {"ap50": 0.5, "ap75": None, "j": 0.7, "flicker": 0.012, "max_detections": 100}
    record["per_class"] = [{"label": "a", "ap": 0.25, "ap50": 0.5, "ar": 0.6, "objects": 4}]
    (tmp_path / "evaluation.json").write_text(json.dumps(record))
    recipe = {"steps": 400, "batch_size": 4, "data": {"frames": 2}}
    data = {"name": "davis", "training_images": 396, "training_videos": 12, "validation_images": 160}
    (tmp_path / "training.json").write_text(json.dumps({"step": 400, "recipe": recipe, "data": data}))
    measure_speed(tmp_path)
    text = write_model_card(tmp_path, repo_id="me/video").read_text()
    card = ModelCard(text)
    assert card.data.pipeline_tag is None
    assert card.data.tags == ["maskformer", "maskformer_hf", "video-instance-segmentation"]
    assert [(result.metric_type, result.metric_value) for result in card.data.eval_results] == [
        ("video_ap", 0.25),
        ("video_ap50", 0.5),
        ("region_similarity", 0.7),
        ("flicker", 0.012),
    ]
    assert (
        "Mask2Former-VIS (https://arxiv.org/abs/2112.10764) for instance segmentation of videos into 2 classes" in text
    )
    assert "| Task | instance, in videos |" in text
    assert "396 frames of 12 videos for training, and 160 for validation" in text
    assert "4 clips of 2 frames a step" in text
    assert "On 4 videos (160 frames) of davis, `val`" in text
    assert "The 100 best objects of a video count." in text
    assert "| region similarity, J | 70.0 |" in text
    assert "| a | 25.0% | 50.0% | 60.0% |" in text
    assert "ms for a frame of" in text
    assert "maskformer segment clip.mp4 --checkpoint me/video" in text
    assert "pipeline" not in text
    assert "\n\n\n" not in text
    # A folder of one's own is not on the Hub.
    text = write_model_card(tmp_path).read_text()
    assert "trust_remote_code" not in text
    assert "predict_video(model, processor" in text


def test_what_is_no_image_model_is_not_exported(checkpoint, tmp_path):
    with pytest.raises(ValueError, match="is a model of videos, which cannot be exported"):
        export_checkpoint(checkpoint, tmp_path / "model.pt2", "torch-export")


@pytest.mark.slow
def test_it_goes_to_the_hub_and_runs_without_the_package(hub, run_script, checkpoint, frames, tmp_path):
    pushed = run_script("video.py", tmp_path / "with", "push", checkpoint)
    assert pushed["status"] == 0, pushed
    files = hub.repositories["me/video"].commits[-1].files
    assert {"modeling_video.py", "video_processing_maskformer.py", "configuration_video.py"} <= files.keys()
    assert Image.open(BytesIO(files["sample.png"])).width > 300
    (tmp_path / "README.md").write_bytes(files["README.md"])
    found = run_script("video.py", tmp_path / "without", "card", tmp_path / "README.md", frames)
    assert found["classes"] == ["MaskFormerHfForVideoSegmentation", "MaskFormerHfVideoProcessor"]
    assert found["modules"] == ["transformers_modules"] * 2
    # Ten pairs of query and class, each with its masks of three frames of the clip's own size.
    assert len(found["printed"]) == 10
    assert all(line.endswith("torch.Size([3, 64, 85])") for line in found["printed"])
    model, processor = load(checkpoint)
    with torch.inference_mode():
        expected = model(**processor(str(frames), return_tensors="pt"))
    torch.testing.assert_close(torch.tensor(found["logits"]), expected.class_queries_logits[0], atol=1e-5, rtol=1e-4)
