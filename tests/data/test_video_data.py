"""Videos: what the readers give, which frames a clip has, that all of them are augmented alike, and batches."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torchvision import tv_tensors

from maskformer_hf.data import (
    Cached,
    Clips,
    ClipTransform,
    Collator,
    DavisFolder,
    SampleStream,
    VideoFrames,
    YoutubeVis,
    augmentation,
    binary_masks,
    open_dataset,
    videos_in,
)
from maskformer_hf.data.open import find_format

SIZE = (40, 60)
LENGTHS = (5, 50, 1)


def mask_of(number: int, frame: int) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[8 * number : 8 * number + 12, frame % 30 : frame % 30 + 20] = True
    return mask


def encode(mask: np.ndarray) -> dict:
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(SIZE), "counts": rle["counts"].decode()}


def write_frames(root, name: str, length: int) -> list[str]:
    folder = root / "JPEGImages" / name
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for frame in range(length):
        pixels = random.integers(0, 255, (*SIZE, 3), dtype=np.uint8)
        pixels[0, 0] = frame
        Image.fromarray(pixels).save(folder / f"{frame:05}.png")
    return [f"{name}/{frame:05}.png" for frame in range(length)]


@pytest.fixture
def content(tmp_path) -> dict:
    """Three videos; in the first an object that comes and goes and overlaps another, a crowd, and one without pixels.

    Ids count from 1 with gaps, as in YouTube-VIS.
    """
    names = [write_frames(tmp_path, f"video{number}", length) for number, length in enumerate(LENGTHS)]
    height, width = SIZE
    videos = [
        {"id": 3 * number + 1, "height": height, "width": width, "file_names": files}
        for number, files in enumerate(names)
    ]
    coming = [None if frame in (0, 3) else encode(mask_of(0, frame)) for frame in range(LENGTHS[0])]
    annotations = [
        {"id": 1, "video_id": 1, "category_id": 7, "iscrowd": 0, "segmentations": coming},
        {"id": 4, "video_id": 1, "category_id": 2, "segmentations": [encode(mask_of(1, f)) for f in range(LENGTHS[0])]},
        {
            "id": 5,
            "video_id": 1,
            "category_id": 2,
            "iscrowd": 1,
            "segmentations": [encode(mask_of(3, 0)), *[None] * (LENGTHS[0] - 1)],
        },
        {"id": 6, "video_id": 4, "category_id": 7, "segmentations": [encode(mask_of(2, f)) for f in range(LENGTHS[1])]},
        {"id": 9, "video_id": 1, "category_id": 7, "segmentations": [None] * LENGTHS[0]},
    ]
    categories = [{"id": 7, "name": "dog"}, {"id": 2, "name": "cow"}]
    return {"videos": videos, "annotations": annotations, "categories": categories}


@pytest.fixture
def videos(tmp_path, content) -> YoutubeVis:
    (tmp_path / "instances.json").write_text(json.dumps(content))
    return YoutubeVis(tmp_path / "instances.json")


@pytest.fixture
def davis(tmp_path) -> DavisFolder:
    """One video of two objects, of which the second leaves, and a border that is void."""
    root = tmp_path / "davis"
    write_frames(root, "walk", 4)
    (root / "Annotations" / "walk").mkdir(parents=True)
    for frame in range(4):
        ids = np.zeros(SIZE, np.uint8)
        ids[mask_of(0, frame)] = 38
        if frame < 2:
            ids[mask_of(3, frame)] = 75
        ids[:, -1] = 255
        image = Image.fromarray(ids, "P")
        image.putpalette(list(range(256)) * 3)
        image.save(root / "Annotations" / "walk" / f"{frame:05}.png")
    return DavisFolder(root)


def masks_of(clip) -> torch.Tensor:
    """(N, T, H, W) bool."""
    ids = torch.arange(1, len(clip["labels"]) + 1)[:, None, None, None, None]
    return (clip["planes"].as_subclass(torch.Tensor)[None] == ids).any(2)


def test_a_json_of_youtube_vis(videos):
    assert videos.id2label == {0: "cow", 1: "dog"}
    assert [len(paths) for paths in videos.frame_paths] == list(LENGTHS)
    assert [(problem.what, problem.count) for problem in videos.problems] == [
        ("annotation without a pixel in any frame", 1)
    ]
    clip = videos.clip(0, [0, 1, 4])
    assert clip["video"].shape == (3, 3, *SIZE)
    assert clip["video"][:, 0, 0, 0].tolist() == [0, 1, 4]
    assert (clip["labels"].tolist(), clip["is_crowd"].tolist()) == ([1, 0, 0], [False, False, True])
    expected = np.zeros((3, 3, *SIZE), bool)
    for place, frame in enumerate((0, 1, 4)):
        expected[0, place] = mask_of(0, frame) if frame else False
        expected[1, place] = mask_of(1, frame)
        expected[2, place] = mask_of(3, 0) if not frame else False
    assert (masks_of(clip).numpy() == expected).all()
    objects = videos.objects(0)
    assert [rle is not None for rle in objects.segmentations[0]] == [False, True, True, False, True]
    assert (coco_mask.decode(objects.segmentations[1][2]) == mask_of(1, 2)).all()
    # A video that nobody annotated has nothing in it.
    assert videos.clip(2, [0])["planes"].max() == 0
    assert videos.objects(2) == ([], [], [])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda json: json["annotations"][0]["segmentations"].pop(), "4 segmentations for the 5 frames"),
        (lambda json: json["annotations"][0].update(category_id=3), "annotation 1 .* category_id 3"),
        (lambda json: json["videos"][1].update(id=1), "two videos of id 1"),
        (lambda json: json["videos"][0]["file_names"].__setitem__(2, "gone.png"), "missing, first .*gone.png"),
        (lambda json: json["videos"].clear(), "lists no videos"),
        (lambda json: json["videos"][2].update(height=41), r"video2/00000.png is \(40, 60\)"),
    ],
)
def test_a_json_that_cannot_be_right_is_named(tmp_path, content, change, message):
    change(content)
    (tmp_path / "instances.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        YoutubeVis(tmp_path / "instances.json").clip(2, [0])


def test_folders_of_davis(davis):
    assert davis.id2label == {0: "object"}
    clip = davis.clip(0, [1, 3])
    assert clip["labels"].tolist() == [0, 0]
    masks = masks_of(clip).numpy()
    for place, frame in enumerate((1, 3)):
        expected = mask_of(0, frame)
        expected[:, -1] = False
        assert (masks[0, place] == expected).all()
    assert masks[1, 0].any()
    assert not masks[1, 1].any()
    objects = davis.objects(0)
    assert [rle is not None for rle in objects.segmentations[1]] == [True, True, False, False]
    assert (coco_mask.decode(objects.segmentations[0][3]) == masks[0, 1]).all()


def test_opening_finds_out_the_format(videos, davis, tmp_path):
    def opened(split, format="auto"):
        return videos_in(open_dataset(tmp_path, split, format=format))

    assert isinstance(opened("."), YoutubeVis)
    assert isinstance(opened("instances.json"), YoutubeVis)
    assert isinstance(opened("davis"), DavisFolder)
    with pytest.raises(ValueError, match="fits no format"):
        opened("nothing")
    with pytest.raises(ValueError, match="no COCO video json for split 'davis'"):
        opened("davis", "youtube_vis")
    # Where there are both, the json says more, unless the folders are asked for.
    (tmp_path / "Annotations").mkdir()
    assert isinstance(opened("."), YoutubeVis)
    (tmp_path / "davis" / "instances.json").write_text((tmp_path / "instances.json").read_text())
    assert find_format(tmp_path, "davis") == "youtube_vis"
    assert isinstance(opened("davis", "davis"), DavisFolder)


def test_only_frames_as_they_are_have_videos(videos, tmp_path):
    frames = Cached(open_dataset(tmp_path, "."))
    assert len(videos_in(frames)) == len(videos)
    assert frames[0] is frames[0]
    assert videos_in(open_dataset(tmp_path, ".", task="semantic")) is None
    names = list(videos.id2label.values())
    assert videos_in(open_dataset(tmp_path, ".", class_groups={"all": names})) is None
    assert videos_in(open_dataset(tmp_path, [".", "."])) is None


def test_single_frames_are_images(videos):
    frames = VideoFrames(videos)
    assert len(frames) == sum(LENGTHS)
    sample = frames[3]
    assert sample["name"].endswith("video0/00003.png")
    # Only the second object is in sight.
    assert sample["labels"].tolist() == [0]
    assert (binary_masks(sample).numpy() == mask_of(1, 3)[None]).all()
    assert frames[5]["image"][0, 0, 0] == 0
    assert frames[len(frames) - 1]["name"].endswith("video2/00000.png")
    assert frames[6]["labels"].tolist() == [1]
    with pytest.raises(IndexError):
        frames[len(frames)]


def test_clips_are_of_frames_near_one_another(videos):
    torch.manual_seed(0)
    drawn = [Clips(videos, num_frames=3, frame_range=6)[1]["video"][:, 0, 0, 0].tolist() for _ in range(200)]
    assert all(frames == sorted(frames) and len(set(frames)) == 3 for frames in drawn)
    spans = {frames[2] - frames[0] for frames in drawn}
    # The reference frame may lie between two that are each 6 frames away.
    assert max(spans) in range(10, 13)
    assert min(spans) == 2
    assert {frame for frames in drawn for frame in frames} >= {0, 1, LENGTHS[1] - 1}
    assert Clips(videos, num_frames=2)[2]["video"].shape[0] == 2


@pytest.mark.parametrize(
    "options",
    [
        {"short_edge": [24, 50], "crop_size": [24, 32]},
        {"short_edge": [32, 48]},
        {"kind": "large_scale_jitter", "scale": [0.5, 1.5], "crop_size": [32, 32]},
        {"kind": "detr", "short_edge": [32, 48]},
    ],
    ids=str,
)
def test_all_frames_are_augmented_alike(videos, options):
    """The same frame twice stays the same; masks go where their pixels go."""
    transform = ClipTransform(augmentation(**options))
    clip = videos.clip(0, [1, 1])
    mask_TPHW = clip["planes"].as_subclass(torch.Tensor) > 0
    clip["video"] = tv_tensors.Video(255 * mask_TPHW.any(1, keepdim=True).expand(-1, 3, -1, -1).to(torch.uint8))
    seen = set()
    for seed in range(8):
        torch.manual_seed(seed)
        result = transform(dict(clip))
        video, planes = (result[name].as_subclass(torch.Tensor) for name in ("video", "planes"))
        assert video.shape[-2:] == planes.shape[-2:]
        assert torch.equal(video[0], video[1])
        assert torch.equal(planes[0], planes[1])
        seen.add((*video.shape, int(planes.sum())))
    assert len(seen) > 4
    torch.manual_seed(0)
    result = ClipTransform(augmentation(**options, color_jitter=False))(dict(clip))
    white = result["video"].as_subclass(torch.Tensor)[:, 0] > 127
    covered = (result["planes"].as_subclass(torch.Tensor) > 0).any(1)
    assert (white == covered).float().mean() > 0.93


def test_a_stream_of_clips_depends_on_its_seed_alone(videos):
    transform = ClipTransform(augmentation(short_edge=[24, 50], crop_size=[24, 32]))

    def stream(start):
        return SampleStream(Clips(videos), transform, seed=3, start=start, stop=12)  # pyrefly: ignore

    whole, rest = stream(0), stream(5)
    for number in range(5, 12):
        assert torch.equal(whole[number]["video"], rest[number - 5]["video"])


def test_a_batch_of_clips(videos):
    collate = Collator([0.5] * 3, [0.25] * 3, size_divisor=32, return_void_masks=True)
    clips = [videos.clip(0, [0, 3]), videos.clip(1, [7, 8])]
    batch = collate(clips)
    assert batch["pixel_values"].shape == (2, 2, 3, 64, 64)
    assert batch["pixel_mask"].shape == (2, 2, 64, 64)
    assert batch["pixel_mask"].sum((2, 3)).tolist() == [[SIZE[0] * SIZE[1]] * 2] * 2
    # The first object is in sight in neither frame, and the crowd is no target.
    assert [masks.shape for masks in batch["mask_labels"]] == [(1, 2, 64, 64)] * 2
    assert [labels.tolist() for labels in batch["class_labels"]] == [[0], [1]]
    assert (batch["mask_labels"][1][0, 1, :40, :60].numpy() == mask_of(2, 8)).all()
    assert (batch["void_masks"][0, 0, :40, :60].numpy() == mask_of(3, 0)).all()
    assert not batch["void_masks"][0, 1].any()
    # In sight in one of two frames: a target, with an empty mask in the other.
    masks = collate([videos.clip(0, [0, 1])])["mask_labels"][0]
    assert masks.flatten(2).any(2).tolist() == [[False, True], [True, True]]
    images = Collator([0.5] * 3, [0.25] * 3, size_divisor=32)([VideoFrames(videos)[3], VideoFrames(videos)[5 + 8]])
    assert torch.equal(images["pixel_values"][0], batch["pixel_values"][0, 1])
    assert torch.equal(images["mask_labels"][1], batch["mask_labels"][1][:, 1])
