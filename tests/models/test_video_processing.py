"""Clips in, tracks out. What is done to a frame is the image processor's, and tested there."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from transformers import AutoImageProcessor, AutoVideoProcessor
from transformers.utils import ModelOutput

from maskformer_hf import MaskFormerImageProcessor, MaskFormerVideoConfig
from maskformer_hf import MaskFormerVideoProcessor as Processor
from maskformer_hf.models.auto_classes import VIDEO_PROCESSOR
from maskformer_hf.models.video_processing_maskformer import frames_of

SMALL = {"size": {"shortest_edge": 24, "longest_edge": 64}, "size_divisor": 32}


def clip(num_frames=3, height=20, width=30) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)


def test_a_clip_in_every_form_is_the_same(tmp_path):
    frames = clip(11)
    for index, frame in enumerate(frames):
        # 10.png comes after 9.png.
        Image.fromarray(frame).save(tmp_path / f"{index}.png")
    (tmp_path / "notes.txt").write_text("no frame")
    assert [path.stem for path in frames_of(tmp_path)] == [str(index) for index in range(11)]
    processor = Processor(**SMALL)
    expected = processor(frames, return_tensors="pt")
    assert expected["pixel_values"].shape == (1, 11, 3, 32, 64)
    assert expected["pixel_mask"].shape == (1, 11, 32, 64)
    images = MaskFormerImageProcessor(**SMALL)(list(frames), return_tensors="pt")
    assert torch.equal(expected["pixel_values"][0], images["pixel_values"])
    photos = [Image.fromarray(frame) for frame in frames]
    channels_first = torch.from_numpy(frames).permute(0, 3, 1, 2)
    for form in (tmp_path, str(tmp_path), photos, channels_first, [list(frames)], frames[None], frames_of(tmp_path)):
        assert torch.equal(processor(form, return_tensors="pt")["pixel_values"], expected["pixel_values"])
    both = processor([tmp_path, photos], return_tensors="pt")["pixel_values"]
    assert torch.equal(both, expected["pixel_values"].repeat(2, 1, 1, 1, 1))


def test_targets_follow_their_clip():
    masks = np.zeros((3, 3, 20, 30), dtype=np.uint8)
    masks[0, :, :10] = 1
    masks[2, 1, :, 15:] = 1
    # The class of the third is told by the only frame that shows it; the second is never seen.
    labels = np.array([[4, 4, 4], [1, 1, 1], [-1, 2, -1]])
    batch = Processor(**SMALL)(clip(), masks, labels, return_tensors="pt")
    assert batch["class_labels"][0].tolist() == [4, 2]
    assert batch["mask_labels"][0].shape == (2, 3, 32, 64)
    assert batch["mask_labels"][0].dtype == torch.bool
    areas = batch["mask_labels"][0].flatten(2).sum(-1)
    assert areas.tolist() == [[12 * 36] * 3, [0, 24 * 18, 0]]
    empty = Processor(**SMALL)(clip(), np.zeros((0, 3, 20, 30)), np.zeros(0), return_tensors="np")
    assert empty["mask_labels"][0].shape == (0, 3, 32, 64)
    assert isinstance(empty["pixel_values"], np.ndarray)


@pytest.mark.parametrize(
    ("videos", "targets", "message"),
    [
        ([clip(2), clip(3)], (), "need as many frames each, these have 2, 3"),
        ([clip()[0], clip(height=21)[0]], (), r"Frames 0 and 1 belong to one clip, but have sizes \(20, 30\) and"),
        ([], (), "has no frames"),
        ("/no/such/folder", (), "'/no/such/folder' is no folder of frames"),
        (clip(), (np.ones((1, 2, 20, 30)), [0]), r"mask_labels\[0\] has shape \(1, 2, 20, 30\); its clip has 3 frames"),
        (clip(), (np.full((1, 3, 20, 30), 2), [0]), r"mask_labels\[0\] holds 2"),
        (clip(), (np.ones((1, 3, 20, 30)), [[1, 2, 1]]), r"Object 0 of clip 0 has the classes \[1, 2\]"),
        (clip(), (np.ones((1, 3, 20, 30)), [[-1, -1, -1]]), "Object 0 of clip 0 has no class in any frame"),
        (clip(), (np.ones((1, 3, 20, 30)), [5]), "holds 5, which is no class: num_labels is 5"),
        (clip(), (np.ones((1, 3, 20, 30)), [1, 2]), "has 1 masks and 2 class labels"),
        (clip(), (np.ones((1, 3, 20, 30)), None), "belong together"),
    ],
)
def test_what_is_wrong_is_named(videos, targets, message):
    with pytest.raises(ValueError, match=message):
        Processor(**SMALL, num_labels=5)(videos, *targets, return_tensors="pt")


def test_a_video_file_is_no_folder(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"")
    with pytest.raises(ValueError, match=r"`ffmpeg -i clip\.mp4 frames/%05d.jpg` makes one"):
        frames_of(tmp_path / "clip.mp4")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no frames"):
        frames_of(tmp_path / "empty")


def test_saved_and_found_again(tmp_path):
    Processor(**SMALL, num_labels=5).save_pretrained(tmp_path)
    MaskFormerVideoConfig().save_pretrained(tmp_path)
    for auto_class in (AutoImageProcessor, AutoVideoProcessor):
        again = auto_class.from_pretrained(tmp_path)
        assert type(again) is Processor
        assert (again.num_labels, again.size["shortest_edge"]) == (5, 24)
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["auto_map"] == VIDEO_PROCESSOR
    for name in ("modeling_video.py", "configuration_video.py", "video_processing_maskformer.py", "criterion.py"):
        assert (tmp_path / name).is_file()


def outputs(num_frames=2) -> ModelOutput:
    """Two queries: class 1 on the left, surely; class 0 below, in the second frame only, less surely."""
    class_logits = torch.full((1, 2, 3), -9.0)
    class_logits[0, 0, 1], class_logits[0, 1, 0], class_logits[0, 1, 2] = 9.0, 1.0, 0.5
    mask_logits = torch.full((1, 2, num_frames, 8, 8), -5.0)
    mask_logits[0, 0, :, :, :4] = 5.0
    mask_logits[0, 1, 1, 4:] = 5.0
    return ModelOutput(class_queries_logits=class_logits, masks_queries_logits=mask_logits)


def test_tracks():
    processor = Processor()
    (result,) = processor.post_process_instance_segmentation(outputs(), target_sizes=[(16, 24)])
    # All pairs of query and class, of which there are less than ten.
    assert [(segment["id"], segment["label_id"]) for segment in result["segments_info"]][:2] == [(1, 1), (2, 0)]
    assert len(result["segments_info"]) == 4
    (sure,) = processor.post_process_instance_segmentation(outputs(), 0.5, target_sizes=[(16, 24)])
    assert [segment["label_id"] for segment in sure["segments_info"]] == [1, 0]
    assert sure["segments_info"][1]["score"] == pytest.approx(0.6225, abs=1e-3)
    assert sure["masks"].shape == (2, 2, 16, 24)
    assert sure["masks"].sum((2, 3)).tolist() == [[16 * 12] * 2, [0, 8 * 24]]
    (encoded,) = processor.post_process_instance_segmentation(
        outputs(), 0.5, target_sizes=[(16, 24)], return_coco_annotation=True
    )
    assert encoded["segments_info"] == sure["segments_info"]
    assert encoded["segmentations"][1][0] is None
    for tube, masks in zip(encoded["segmentations"], sure["masks"], strict=True):
        for rle, mask in zip(tube, masks, strict=True):
            decoded = np.zeros_like(mask.numpy()) if rle is None else coco_mask.decode(rle).astype(bool)
            assert (decoded == mask.numpy()).all()
    (best,) = processor.post_process_instance_segmentation(outputs(), top_k=1)
    assert best["masks"].shape == (1, 2, 32, 32)


def test_images_and_clips_are_told_apart():
    with pytest.raises(ValueError, match="outputs of a video model: only `post_process_instance_segmentation` of"):
        MaskFormerImageProcessor().post_process_instance_segmentation(outputs())
    image = outputs()
    image["masks_queries_logits"] = image.masks_queries_logits[:, :, 0]
    with pytest.raises(ValueError, match="their masks have no frames"):
        Processor().post_process_instance_segmentation(image)
