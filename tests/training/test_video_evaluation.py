"""`evaluate` on videos: what a perfect and an unsteady model get, of clips and frame by frame."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from maskformer_hf import Prediction, VideoPrediction
from maskformer_hf.data import open_dataset, videos_in
from maskformer_hf.training import (
    checkpoint_evaluation,
    comparison,
    evaluate_checkpoint,
    frame_tracks,
    kinds,
    video_evaluation,
)
from maskformer_hf.training.evaluation_options import EvaluationOptions
from maskformer_hf.training.evaluation_table import format_table

NUM_FRAMES, SIZE = 4, (24, 40)


class Config:
    def __init__(self, model_type: str) -> None:
        self.model_type, self.task, self.label_ids_to_fuse = model_type, "instance", []
        self.kind = "clip" if "video" in model_type else "image"
        # Not in the order of the data.
        self.id2label = {0: "green", 1: "red"}


class Model(torch.nn.Module):
    def __init__(self, model_type: str) -> None:
        super().__init__()
        self.config = Config(model_type)
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.base_model = SimpleNamespace(backbone=SimpleNamespace(body=None))


def encode(mask: np.ndarray) -> dict | None:
    if not mask.any():
        return None
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(SIZE), "counts": rle["counts"].decode()}


@pytest.fixture
def clips(tmp_path):
    """Two videos of a red and a green square; the green one of the second is there in the first two frames alone."""
    videos, annotations = [], []
    for number in range(2):
        tubes = np.zeros((2, NUM_FRAMES, *SIZE), bool)
        for frame in range(NUM_FRAMES):
            tubes[0, frame, 2:10, 2 + frame : 10 + frame] = True
            tubes[1, frame, 12:20, 2 + frame : 10 + frame] = number == 0 or frame < 2
        names = [f"{number}/{frame}.png" for frame in range(NUM_FRAMES)]
        (tmp_path / "JPEGImages" / str(number)).mkdir(parents=True)
        for frame, name in enumerate(names):
            pixels = np.zeros((*SIZE, 3), np.uint8)
            pixels[tubes[0, frame]], pixels[tubes[1, frame]] = (255, 0, 0), (0, 255, 0)
            Image.fromarray(pixels).save(tmp_path / "JPEGImages" / name)
        videos.append({"id": number + 1, "height": SIZE[0], "width": SIZE[1], "file_names": names})
        for channel, tube in enumerate(tubes):
            annotation = {"video_id": number + 1, "category_id": channel + 1}
            annotations.append({**annotation, "segmentations": [encode(mask) for mask in tube]})
    categories = [{"id": 1, "name": "red"}, {"id": 2, "name": "green"}]
    content = {"videos": videos, "annotations": annotations, "categories": categories}
    (tmp_path / "instances.json").write_text(json.dumps(content))
    return tmp_path


def masks_in(path, shift: int = 0) -> list[np.ndarray]:
    """Where a frame is green and where it is red, which are the model's classes."""
    pixels = np.asarray(Image.open(path))
    return [np.roll(pixels[..., channel] > 0, shift, 1) for channel in (1, 0)]


def predict_frame(model, processor, path, *, shift=0, **options) -> list[Prediction]:
    masks = torch.from_numpy(np.stack(masks_in(path, shift)))
    segments = [
        {"id": label + 1, "label_id": label, "label": "", "score": 0.9, "area": int(mask.sum())}
        for label, mask in enumerate(masks)
    ]
    return [Prediction("instance", SIZE, segments, masks=masks)]


def predict_tensor(model, processor, image, **options) -> list[Prediction]:
    """The prediction for a frame that was read already."""
    masks = torch.stack([image[channel] > 0 for channel in (1, 0)])
    segments = [
        {"id": label + 1, "label_id": label, "label": name, "score": 0.9, "area": int(masks[label].sum())}
        for label, name in model.config.id2label.items()
    ]
    return [Prediction("instance", SIZE, segments, masks=masks)]


def predict_clip(model, processor, paths, **options) -> VideoPrediction:
    tubes = zip(*(masks_in(path) for path in paths), strict=True)
    tracks = [
        {
            "id": label + 1,
            "label_id": label,
            "label": ("green", "red")[label],
            "score": 0.9,
            "segmentations": [encode(mask) for mask in tube],
        }
        for label, tube in enumerate(tubes)
    ]
    return VideoPrediction(SIZE, len(paths), tracks)


@pytest.mark.parametrize("model_type", ["maskformer_hf_video", "maskformer_hf"])
def test_what_finds_everything_is_perfect(clips, monkeypatch, tmp_path, model_type):
    monkeypatch.setattr(frame_tracks, "predict", predict_frame)
    monkeypatch.setattr(kinds, "predict_video", predict_clip)
    monkeypatch.setattr(kinds, "predict", predict_tensor)
    monkeypatch.setattr(checkpoint_evaluation, "load", lambda *arguments: (Model(model_type), None))
    monkeypatch.setattr(checkpoint_evaluation, "checkpoint_path", str)
    result = evaluate_checkpoint("model", clips, json_path=tmp_path / "scores.json")
    assert (result["score"], result["ap50"], result["j"], result["flicker"]) == (1, 1, 1, 0)
    assert (result["videos"], result["frames"], result["objects"]) == (2, 2 * NUM_FRAMES, 4)
    assert result["method"] == ("clips" if "video" in model_type else "single frames")
    assert [row["label"] for row in result["per_class"]] == ["red", "green"]
    assert json.loads((tmp_path / "scores.json").read_text())["ap"] == 1
    table = format_table(result).splitlines()
    assert table[0].split() == ["class", "AP", "AP50", "AR", "objects"]
    assert "J 100.0, flicker 0.0" in table[-1]
    result = evaluate_checkpoint("model", clips, worst=2, picture=tmp_path / "worst.png")
    assert [(row["index"], row["score"]) for row in result["per_image"]] == [(2, 1), (6, 1)]
    with Image.open(tmp_path / "worst.png") as picture:
        panel = comparison.LARGE_PANEL[0] + comparison.GAP
        top = 2 * comparison.FONT_SIZE
        # The red square of the first video's third frame: rows 2 to 9 and columns 4 to 11, twelve times as large.
        photo, annotation, prediction = (picture.getpixel((12 * 8 + panel * i, top + 12 * 6)) for i in range(3))
        assert photo == (255, 0, 0)
        assert annotation != photo != prediction
        assert {picture.getpixel((12 * 30 + panel * i, top + 12 * 6)) for i in range(3)} == {(0, 0, 0)}
    with pytest.raises(ValueError, match="boundary measures are for photos"):
        evaluate_checkpoint("model", clips, boundary=True)


def test_videos_are_shared_out(clips, monkeypatch):
    """Each of two processes measures one of the two videos."""
    monkeypatch.setattr(kinds, "predict_video", predict_clip)
    gathered = []

    def gather(rows):
        gathered.append(len(rows))
        return rows

    monkeypatch.setattr(video_evaluation, "gather_object", gather)
    for measure in (video_evaluation.VideoAP, video_evaluation.RegionSimilarity):
        monkeypatch.setattr(measure, "reduce", lambda self: gathered.append(type(self).__name__))
    videos = videos_in(open_dataset(clips, "."))
    model = Model("maskformer_hf_video")
    options = [EvaluationOptions(per_image=True, processes=(rank, 2), progress=False) for rank in range(2)]
    results = [video_evaluation.evaluate_videos(model, None, videos, [1, 0], item) for item in options]
    assert [[row["index"] for row in result["per_image"]] for result in results] == [[2], [6]]
    assert [result["objects"] for result in results] == [2, 2]
    assert gathered == ["VideoAP", "RegionSimilarity", 1] * 2


def test_masks_that_jump_flicker(clips, monkeypatch):
    """To the right in every second frame: an IoU of 7/9 there, and with the next frame 6/10 or 8/8, not 7/9."""

    def jumping(model, processor, path, **options):
        return predict_frame(model, processor, path, shift=int(path[-5]) % 2)

    monkeypatch.setattr(frame_tracks, "predict", jumping)
    videos = videos_in(open_dataset(clips, "."))
    options = EvaluationOptions(progress=False)
    result = video_evaluation.evaluate_videos(Model("maskformer_hf"), None, videos, [1, 0], options)
    # The one that leaves is rightly found nowhere in the last two frames.
    assert result["j"] == pytest.approx((3 * (1 + 7 / 9) / 2 + (3 + 7 / 9) / 4) / 4)
    assert result["flicker"] == pytest.approx((3 * (2 / 3 * (7 / 9 - 6 / 10)) + (7 / 9 - 6 / 10)) / 4)


def test_an_object_is_followed_from_frame_to_frame(clips, monkeypatch):
    """One that is lost for a frame counts as another when it is found again."""

    def blinking(model, processor, path, **options):
        [prediction] = predict_frame(model, processor, path)
        if path.endswith("1.png"):
            prediction.segments = prediction.segments[:1]
        return [prediction]

    monkeypatch.setattr(frame_tracks, "predict", blinking)
    paths = videos_in(open_dataset(clips, ".")).frame_paths[0]
    tracks = frame_tracks.track_frame_by_frame(Model("maskformer_hf"), None, paths)
    seen = [[mask is not None for mask in track["segmentations"]] for track in tracks]
    assert seen == [[True] * 4, [True, False, False, False], [False, False, True, True]]
    assert [track["label_id"] for track in tracks] == [0, 1, 1]
    assert [track["score"] for track in tracks] == pytest.approx([0.9, 0.9 / 4, 0.9 / 2])
