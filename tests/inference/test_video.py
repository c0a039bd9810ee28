"""`predict_video`: what is one object stays one, over windows and in any order that the model finds it in."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from builders import tiny_config
from maskformer_hf import (
    MaskFormerForVideoSegmentation,
    MaskFormerVideoConfig,
    MaskFormerVideoProcessor,
    load,
    predict,
    predict_video,
)
from maskformer_hf.inference.tracks import link_objects, tube_overlap
from maskformer_hf.models.coco_rle import encode_coco_rle
from maskformer_hf.models.masks import DenseMasks
from maskformer_hf.models.modeling_outputs import MaskFormerHfForVideoSegmentationOutput

COLORS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
LABELS = list(COLORS)
HEIGHT, WIDTH = 40, 64


class ColorModel(nn.Module):
    """Finds whatever has one of three colours, as a query each; another order of queries in every window."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.config = MaskFormerVideoConfig(
            id2label=dict(enumerate(LABELS)), label2id={label: index for index, label in enumerate(LABELS)}
        )
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.windows: list[int] = []

    def forward(
        self, pixel_values: torch.Tensor, pixel_mask: torch.Tensor, lazy_masks: bool
    ) -> MaskFormerHfForVideoSegmentationOutput:
        self.windows.append(pixel_values.shape[1])
        order = torch.arange(3).roll(len(self.windows))
        masks = torch.where(pixel_values[0, :, order] > 0.5, 8.0, -8.0).transpose(0, 1)  # (Q, T, H, W)
        masks = masks[..., 1::4, 1::4]
        classes = torch.full((3, 4), -4.0)
        seen = (masks > 0).flatten(1).any(1)
        classes[torch.arange(3), torch.where(seen, order, 3)] = 4.0
        size = torch.tensor([pixel_values.shape[-2:]])
        return MaskFormerHfForVideoSegmentationOutput(
            class_queries_logits=classes[None],
            masks=DenseMasks(masks[None, None]),
            image_sizes=torch.tensor([[int(pixel_mask[0, 0].any(1).sum()), int(pixel_mask[0, 0].any(0).sum())]]),
            padded_sizes=size,
        )


PROCESSOR = MaskFormerVideoProcessor(do_resize=False, image_mean=[0.0] * 3, image_std=[1.0] * 3)


def clip(num_frames: int, **visible) -> np.ndarray:
    """A red, a green and a blue square that move to the right, one row each; in the frames that `visible` names."""
    frames = np.zeros((num_frames, HEIGHT, WIDTH, 3), dtype=np.uint8)
    for row, (name, color) in enumerate(COLORS.items()):
        for frame in visible.get(name, range(num_frames)):
            left = 4 + frame % 40
            frames[frame, 4 + 12 * row : 12 + 12 * row, left : left + 12] = color
    return frames


def assert_found(prediction, frames: np.ndarray, threshold=0.6):
    """Every track is the square of its colour in every frame, as far as mask cells of 4 pixels tell."""
    for track in prediction.tracks:
        for number, frame in enumerate(frames):
            truth = torch.from_numpy((frame == COLORS[track["label"]]).all(-1))
            found = prediction.mask(track, number)
            assert found.shape == (HEIGHT, WIDTH)
            union = (truth | found).sum()
            assert union == 0 or (truth & found).sum() / union > threshold
            assert (track["segmentations"][number] is None) == (not truth.any())


@pytest.mark.parametrize(
    ("num_frames", "windows"), [(1, [1]), (8, [8]), (9, [8, 4]), (13, [8, 8]), (14, [8, 8, 4]), (30, [8] * 5 + [5])]
)
def test_identities_last(num_frames, windows):
    model, frames = ColorModel(), clip(num_frames)
    prediction = predict_video(model, PROCESSOR, frames, window=8, overlap=3)
    assert model.windows == windows
    assert (prediction.size, prediction.num_frames) == ((HEIGHT, WIDTH), num_frames)
    assert sorted(track["label"] for track in prediction.tracks) == sorted(LABELS)
    assert [track["id"] for track in prediction.tracks] == [1, 2, 3]
    assert all(track["score"] == pytest.approx(0.999, abs=2e-3) for track in prediction.tracks)
    assert_found(prediction, frames)
    assert model.training


def test_objects_come_and_go():
    visible = {"red": range(9), "green": [*range(6), *range(14, 24)], "blue": range(18, 24)}
    frames = clip(24, **visible)
    prediction = predict_video(ColorModel(), PROCESSOR, frames, window=8, overlap=2)
    # The green one is lost: it was out of sight in frames that two windows share.
    assert [track["label"] for track in prediction.tracks].count("green") == 2
    assert [track["label"] for track in prediction.tracks].count("red") == 1
    assert [track["label"] for track in prediction.tracks].count("blue") == 1
    for track in prediction.tracks:
        seen = [frame for frame, mask in enumerate(track["segmentations"]) if mask is not None]
        assert set(seen) <= set(visible[track["label"]])
    green = [track for track in prediction.tracks if track["label"] == "green"]
    covered = [frame for track in green for frame, mask in enumerate(track["segmentations"]) if mask is not None]
    assert sorted(covered) == visible["green"]
    (nothing,) = [predict_video(ColorModel(), PROCESSOR, np.zeros((3, HEIGHT, WIDTH, 3), dtype=np.uint8))]
    assert nothing.tracks == []


def test_every_form_of_video_is_the_same(tmp_path, capsys):
    frames = clip(11)
    expected = predict_video(ColorModel(), PROCESSOR, frames, window=6).tracks
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / f"{index}.png")
    forms = [tmp_path, str(tmp_path), list(frames), (Image.fromarray(frame) for frame in frames)]
    for form in forms:
        assert predict_video(ColorModel(), PROCESSOR, form, window=6).tracks == expected
    assert capsys.readouterr().err == ""
    predict_video(ColorModel(), PROCESSOR, frames, window=6, progress=True)
    assert "Segmenting: 100%" in (bar := capsys.readouterr().err)
    assert "11/11" in bar


def test_only_a_window_is_in_memory():
    """A video that never ends is read no further than the windows reach."""
    alive, most = set(), [0]

    class Counted(np.ndarray):
        def __del__(self):
            alive.discard(id(self))

    def read():
        for frame in clip(60):
            counted = frame.view(Counted)
            alive.add(id(counted))
            most[0] = max(most[0], len(alive))
            yield counted

    prediction = predict_video(ColorModel(), PROCESSOR, read(), window=8, overlap=2)
    assert prediction.num_frames == 60
    assert most[0] <= 2 * 8


@pytest.mark.parametrize(
    ("video", "options", "message"),
    [
        ([], {}, "A video has no frames"),
        (iter(()), {}, "A video has no frames"),
        ([clip(1)[0], clip(1)[0][:20]], {}, r"Frame 1 has the size \(20, 64\) \(height, width\), and the first \(40"),
        (clip(2), {"window": 4}, "`overlap` is 4: it must be at least 1 and less than `window`, 4"),
        (["/no/such/frame.png"], {}, "There is no file /no/such/frame.png"),
        (clip(2), {"treshold": 0.5}, "no option 'treshold': there are threshold, mask_threshold, link_threshold"),
    ],
)
def test_what_is_wrong_is_named(video, options, message):
    with pytest.raises(ValueError, match=message):
        predict_video(ColorModel(), PROCESSOR, video, **options)


def test_overlap_of_tubes():
    left, right = torch.zeros(2, 4, 8, dtype=torch.bool)
    left[:, :4] = right[:, 2:6] = True
    a, b = encode_coco_rle(torch.stack((left, right)))
    assert tube_overlap([a], [b]) == pytest.approx(8 / 24)
    assert tube_overlap([a, None], [b, b]) == pytest.approx(8 / 40)
    assert tube_overlap([None], [None]) == 0
    # The best pair goes first, and takes what the other would have liked as well.
    assert link_objects([[a]], [[b], [a]], 0.3) == [None, 0]
    assert link_objects([[b], [a]], [[a], [a]], 0.3) == [1, 0]
    assert link_objects([[None]], [[None]], 0.0) == [None]
    assert link_objects([], [[a]], 0.5) == [None]


def test_a_real_model_and_its_folder(tmp_path):
    torch.manual_seed(0)
    config = tiny_config("video", num_queries=6)
    MaskFormerForVideoSegmentation(config).save_pretrained(tmp_path)
    MaskFormerVideoProcessor(size={"shortest_edge": 40, "longest_edge": 64}).save_pretrained(tmp_path)
    model, processor = load(tmp_path, device="cpu")
    assert isinstance(model, MaskFormerForVideoSegmentation)
    assert isinstance(processor, MaskFormerVideoProcessor)
    whole = predict_video(model, processor, clip(6), threshold=0.0, max_objects=3)
    assert 0 < len(whole.tracks) <= 3
    assert all(len(track["segmentations"]) == 6 for track in whole.tracks)
    with pytest.raises(ValueError, match=r"model of videos: use `maskformer_hf\.predict_video`"):
        predict(model, processor, clip(1)[0])


def test_a_model_of_images_is_refused(tiny_model, tiny_processor):
    with pytest.raises(ValueError, match="model of images, which knows no videos"):
        predict_video(tiny_model, tiny_processor, clip(2))
