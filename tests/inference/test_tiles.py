"""Tiled prediction: where the tiles lie, and that a photo in tiles gives what the whole photo gives."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from maskformer_hf import MaskFormerConfig, MaskFormerImageProcessor, Prediction, load, predict
from maskformer_hf.inference.tile_objects import TileObject, join_objects
from maskformer_hf.inference.tiles import TileMerger
from maskformer_hf.inference.windows import Window, nearest_parts, scale_windows, tile_windows
from maskformer_hf.models.masks import DenseMasks
from maskformer_hf.models.modeling_outputs import MaskFormerHfForUniversalSegmentationOutput

LABELS = {0: "sky", 1: "grass", 2: "car", 3: "person"}
STUFF = [0, 1]
QUERIES = 40


class ColorModel(torch.nn.Module):
    """Finds every colour that a photo has: red - 1 is the class, green the number of the object. Black is nothing."""

    def __init__(self, labels=LABELS, task="panoptic"):
        super().__init__()
        self.config = MaskFormerConfig(
            id2label=labels,
            label2id={label: index for index, label in labels.items()},
            label_ids_to_fuse=STUFF,
            task=task,
        )
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.calls = []

    def forward(self, pixel_values, pixel_mask, lazy_masks):
        self.calls.append(tuple(pixel_values.shape))
        batch_size, _, height, width = pixel_values.shape
        masks = torch.full((batch_size, QUERIES, height, width), -30.0)
        classes = torch.zeros(batch_size, QUERIES, len(self.config.id2label) + 1)
        classes[..., -1] = 20
        for index, (red, green, _) in enumerate(pixel_values.long()):
            for query in range(QUERIES):
                pixels = (green == query) & (red > 0)
                if pixels.any():
                    classes[index, query, red[pixels][0] - 1] = 40
                    masks[index, query][pixels] = 30
        sizes = torch.tensor([[height, width]] * batch_size)
        return MaskFormerHfForUniversalSegmentationOutput(
            class_queries_logits=classes, masks=DenseMasks(masks[None]), image_sizes=sizes, padded_sizes=sizes
        )


@pytest.fixture
def plain_processor():
    return MaskFormerImageProcessor(do_resize=False, do_rescale=False, do_normalize=False, size_divisor=0)


def scene(height=300, width=420):
    """Sky above grass, and objects: at the corner of four tiles, over three tiles, small, touching, bent, at the edge.

    Tiles of 128 that share 32 begin at 0, 86, 172 and at 0, 73, 146, 219, 292.
    """
    photo = Image.new("RGB", (width, height), (1, 0, 0))
    draw = ImageDraw.Draw(photo)
    draw.rectangle((0, 150, width, height), fill=(2, 1, 0))
    boxes = [
        (65, 70, 140, 140),  # the corner of four tiles
        (20, 180, 400, 200),  # all along
        (100, 95, 108, 103),  # on top of the first, in four tiles
        (200, 20, 215, 260),  # from top to bottom
        (300, 30, 340, 60),
        (341, 30, 380, 60),  # touches the one before
        (0, 0, 30, 30),
        (120, 210, 134, 224),  # at the end of the first column of tiles
        (405, 280, 420, 300),  # the last corner
    ]
    for number, box in enumerate(boxes, start=2):
        draw.ellipse(box, fill=(3 + number % 2, number, 0))
    draw.line([(230, 100), (230, 150), (360, 150), (360, 100)], fill=(4, 12, 0), width=12)
    return photo


def found(prediction):
    """Label and pixels of every segment, in an order of their own."""
    return sorted(
        (s["label"], s["area"], np.packbits(prediction.mask(s).numpy()).tobytes()) for s in prediction.segments
    )


@pytest.mark.parametrize("task", ["semantic", "instance", "panoptic"])
@pytest.mark.parametrize(("tile_size", "overlap"), [(128, 32), (100, 50), (200, 8), (299, 149)])
def test_tiles_give_what_the_whole_photo_gives(plain_processor, task, tile_size, overlap):
    model, photo = ColorModel(), scene()
    [whole] = predict(model, plain_processor, photo, task=task)
    assert len(model.calls) == 1
    [tiled] = predict(model, plain_processor, photo, task=task, tile_size=tile_size, tile_overlap=overlap)
    assert len(model.calls) > 2
    assert set(model.calls[1:]) == {(1, 3, tile_size, tile_size)}
    assert tiled.size == whole.size == (300, 420)
    assert found(tiled) == found(whole)
    assert len(found(whole)) == {"semantic": 4, "instance": 10, "panoptic": 12}[task]
    assert tiled.task == task
    for segment in tiled.segments:
        assert segment["score"] == pytest.approx(1, abs=1e-3)
        assert segment["area"] == tiled.mask(segment).sum()
    if task == "instance":
        assert tiled.segmentation is None
        assert tiled.masks.shape == (10, 300, 420)
        boxes = {tuple(segment["box"]) for segment in tiled.segments}
        assert boxes == {tuple(segment["box"]) for segment in whole.segments}
        assert [s["id"] for s in tiled.segments] == list(range(1, 11))
        assert all(torch.equal(tiled.masks[s["id"] - 1], tiled.mask(s)) for s in tiled.segments)
    else:
        assert tiled.masks is None
        assert tiled.segmentation.dtype == whole.segmentation.dtype
        areas = [segment["area"] for segment in tiled.segments]
        assert areas == sorted(areas, reverse=True)
        assert set(tiled.segmentation.unique().tolist()) == {s["id"] for s in tiled.segments}


@pytest.mark.parametrize("task", ["semantic", "instance", "panoptic"])
def test_one_tile_is_the_whole_photo(tiny_model, tiny_processor, photo_paths, task):
    photo = Image.open(photo_paths[0]).convert("RGB")
    [whole] = predict(tiny_model, tiny_processor, photo, task=task, threshold=0.3)
    [one] = predict(tiny_model, tiny_processor, photo, task=task, threshold=0.3, tile_size=max(photo.size))
    assert found(one) == found(whole)


@pytest.mark.parametrize("task", ["semantic", "instance", "panoptic"])
def test_batches_and_kinds_of_images_change_nothing(tiny_model, tiny_processor, photo_paths, task):
    photo = Image.open(photo_paths[0]).convert("RGB").resize((150, 110))
    options = {"task": task, "threshold": 0.3, "tile_size": 80, "tile_overlap": 20}
    small = photo.resize((70, 60))
    array = np.array(photo)
    images = [photo, small, array, torch.from_numpy(array).permute(2, 0, 1)]
    expected, alone, *others = predict(tiny_model, tiny_processor, images, **options)
    batched = predict(tiny_model, tiny_processor, images, batch_size=3, **options)
    assert expected.segments
    assert found(alone) == found(predict(tiny_model, tiny_processor, small, task=task, threshold=0.3)[0])
    for other in others:
        assert found(other) == found(expected)
    for one, other in zip([expected, alone, *others], batched, strict=True):
        assert one.size == other.size
        assert len(one.segments) == len(other.segments)
        for left, right in zip(one.segments, other.segments, strict=True):
            # Sums in another order move a pixel here and there.
            assert (one.mask(left) != other.mask(right)).float().mean() < 1e-3


def test_tiles_at_another_size(plain_processor):
    photo = scene()
    options = {"task": "panoptic", "tile_size": 128, "tile_overlap": 32}
    [tiled] = predict(ColorModel(), plain_processor, photo, target_sizes=[(450, 630)], **options)
    [whole] = predict(ColorModel(), plain_processor, photo, target_sizes=[(450, 630)], task="panoptic")
    assert tiled.size == tuple(tiled.segmentation.shape) == (450, 630)
    assert [s["label"] for s in tiled.segments] == [s["label"] for s in whole.segments]
    for one, other in zip(tiled.segments, whole.segments, strict=True):
        assert one["area"] == pytest.approx(other["area"], rel=0.1)


def test_the_checkpoint_says_whether_to_cut(plain_processor, tmp_path):
    processor = MaskFormerImageProcessor(**{**plain_processor.to_dict(), "tile_size": 128, "tile_overlap": 32})
    processor.save_pretrained(tmp_path)
    processor = MaskFormerImageProcessor.from_pretrained(tmp_path)
    model, photo = ColorModel(), scene()
    predict(model, processor, photo)
    assert len(model.calls) == 15
    predict(model, processor, photo, tile_size=0)
    assert model.calls[15:] == [(1, 3, 300, 420)]
    # What is given by hand has its own overlap: a quarter of 160, and not the checkpoint's.
    predict(model, processor, photo, tile_size=160)
    assert len(model.calls[16:]) == len(tile_windows((300, 420), 160, 40))
    assert MaskFormerImageProcessor().tile_size is None


def test_a_loaded_checkpoint_cuts_by_itself(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    MaskFormerImageProcessor(size={"shortest_edge": 64}, tile_size=64).save_pretrained(tmp_path)
    model, processor = load(tmp_path, "cpu")
    [prediction] = predict(model, processor, np.zeros((100, 150, 3), np.uint8), task="semantic")
    assert prediction.size == (100, 150)
    assert sum(segment["area"] for segment in prediction.segments) == 100 * 150


@pytest.mark.parametrize(("options", "message"), [
    ({"tile_size": -1}, "`tile_size` is -1"),
    ({"tile_size": 64, "tile_overlap": 33}, "`tile_overlap` is 33.*0 to 32"),
    ({"tile_size": 64, "tile_overlap": -1}, "`tile_overlap` is -1"),
])  # fmt: skip
def test_impossible_tiles_are_refused(plain_processor, options, message):
    with pytest.raises(ValueError, match=message):
        predict(ColorModel(), plain_processor, scene(), **options)


def test_how_many_instances(plain_processor):
    photo = scene()
    assert len(predict(ColorModel(), plain_processor, photo, task="instance", max_instances=3)[0].segments) <= 3
    tiled = predict(ColorModel(), plain_processor, photo, task="instance", max_instances=3, tile_size=128)
    assert len(tiled[0].segments) > 3


def test_progress_is_of_images_and_tiles(plain_processor, capsys):
    predict(ColorModel(), plain_processor, scene(), tile_size=128, progress=True)
    err = capsys.readouterr().err
    assert "Tiles: 100%" in err
    assert "Segmenting" not in err
    predict(ColorModel(), plain_processor, [scene(), scene()], progress=True)
    err = capsys.readouterr().err
    assert "Segmenting: 100%" in err
    assert "Tiles" not in err


# --- windows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(128, 128), (129, 128), (300, 420), (1000, 130), (257, 255)])
@pytest.mark.parametrize("overlap", [0, 1, 32, 64])
def test_windows_cover_the_photo_and_share_what_they_must(size, overlap):
    windows = tile_windows(size, 128, overlap)
    seen, owned = np.zeros(size, int), np.zeros(size, int)
    for window, part in zip(windows, nearest_parts(windows), strict=True):
        assert (window.bottom - window.top, window.right - window.left) == (min(128, size[0]), min(128, size[1]))
        seen[window.top : window.bottom, window.left : window.right] += 1
        owned[part.top : part.bottom, part.left : part.right] += 1
        assert window.top <= part.top <= part.bottom <= window.bottom
        assert window.left <= part.left <= part.right <= window.right
    assert seen.min() == 1
    assert (owned == 1).all()
    for axis in (0, 1):
        starts = sorted({window[axis] for window in windows})
        assert all(first + 128 - second >= overlap for first, second in pairwise(starts))
        # No more of them than it takes.
        assert (len(starts) - 1) * (128 - overlap) < max(1, size[axis] - overlap)


def test_scaled_windows_end_where_the_photo_ends():
    windows = scale_windows(tile_windows((300, 420), 128, 32), (300, 420), (611, 333))
    assert (windows[-1].bottom, windows[-1].right) == (611, 333)
    assert windows[0][:2] == (0, 0)


# --- objects that do not quite agree ---------------------------------------------------------------------------------

TWO = [Window(0, 0, 100, 100), Window(0, 60, 100, 160)]


def box(tile, top, left, bottom, right, score=0.9, label_id=0):
    mask = np.ones((bottom - top, right - left), bool)
    return TileObject(
        tile, label_id, "cell", score, mask.size, Window(top, left, bottom, right), np.packbits(mask).tobytes()
    )


def joined(*objects, windows=TWO):
    return sorted((tuple(item.box), round(item.score, 3), item.area) for item in join_objects(objects, windows))


def test_an_object_cut_by_both_tiles_is_united():
    # Its outline differs a little; the score is that of all pixels.
    result = joined(box(0, 20, 30, 40, 100, 0.9), box(1, 21, 60, 40, 130, 0.6))
    assert result == [((20, 30, 40, 130), round((0.9 * 1400 + 0.6 * 1330) / 2730, 3), 20 * 70 + 19 * 30)]


def test_a_fragment_yields_to_the_whole():
    # The second tile begins in the middle of it, is surer, and sees less than it could.
    whole = box(0, 20, 40, 40, 80, 0.7)
    assert joined(whole, box(1, 22, 60, 38, 79, 0.95)) == [((20, 40, 40, 80), 0.7, 800)]
    assert joined(whole, box(1, 22, 60, 38, 64, 0.95)) == [((20, 40, 40, 80), 0.7, 800)]


def test_of_two_whole_ones_the_better_stays():
    assert joined(box(0, 20, 70, 40, 90, 0.7), box(1, 21, 70, 41, 91, 0.8)) == [((21, 70, 41, 91), 0.8, 420)]


def test_different_objects_stay_apart():
    neighbours = [box(0, 20, 70, 40, 80), box(1, 20, 80, 40, 90)]
    of_two_classes = [box(0, 20, 70, 40, 90), box(1, 20, 70, 40, 90, label_id=1)]
    small_on_large = [box(0, 20, 65, 80, 95), box(1, 40, 70, 50, 80)]
    for objects in (neighbours, of_two_classes, small_on_large):
        assert len(joined(*objects)) == 2


def test_two_that_a_tile_tells_apart_are_not_united_by_another_that_does_not():
    first, second = box(0, 20, 30, 40, 100), box(0, 40, 30, 60, 100)
    both = box(1, 20, 60, 60, 130)
    result = joined(first, second, both)
    assert len(result) == 2
    assert max(area for _, _, area in result) == 40 * 70 + 20 * 30


def test_an_object_that_only_seems_whole_loses_nothing():
    # The first tile gave up before its border, but the second sees far more of it.
    assert joined(box(0, 20, 30, 40, 95), box(1, 20, 60, 40, 140)) == [((20, 30, 40, 140), 0.9, 20 * 110)]


def test_memory_does_not_grow_with_the_tiles():
    """What stays of a tile is a bit a pixel of its objects' boxes."""
    windows = tile_windows((64, 32000), 64, 32)
    merger = TileMerger("instance", windows)
    mask = torch.zeros(1, 64, 64, dtype=torch.bool)
    mask[0, 30:34, 30:34] = True
    for tile in range(len(windows)):
        cell = {"id": 1, "label_id": 0, "label": "cell", "score": 0.9, "area": 16}
        merger.add(tile, Prediction("instance", (64, 64), [cell], masks=mask))
    assert len(windows) == 999
    assert sum(len(item.bits) for item in merger.objects) == 999 * 2
    prediction = merger.result()
    assert len(prediction.segments) == len(prediction._crops) == 999
    assert all(crop.shape == (4, 4) and crop.all() for crop in prediction._crops)


def test_void_stays_void_and_stuff_lies_under_things():
    windows = tile_windows((40, 70), 40, 10)
    merger = TileMerger("panoptic", windows, stuff=[0])
    maps = torch.zeros(2, 40, 40, dtype=torch.int32)
    maps[:, :20] = 1  # stuff above, void below
    maps[0, 10:30, 10:38] = 2  # a thing that ends in the part both see, of which the second tile knows nothing
    stuff = {"id": 1, "label_id": 0, "label": "sky", "score": 0.5, "area": 800}
    thing = {"id": 2, "label_id": 1, "label": "car", "score": 0.9, "area": 560}
    merger.add(0, Prediction("panoptic", (40, 40), [stuff, thing], maps[0]))
    merger.add(1, Prediction("panoptic", (40, 40), [{**stuff, "score": 0.7}], maps[1]))
    prediction = merger.result()
    segments, segmentation = prediction.segments, prediction.segmentation
    assert prediction.masks is None
    assert segmentation is not None
    assert [(segment["label"], segment["area"]) for segment in segments] == [("sky", 70 * 20 - 280), ("car", 560)]
    assert (segmentation[30:] == 0).all()
    assert (segmentation[10:30, 10:38] == segments[1]["id"]).all()
    # The first tile decides 35 columns; in 25 of them the car is in front of half the sky.
    assert segments[0]["score"] == pytest.approx((0.5 * (700 - 250) + 0.7 * 700) / (1400 - 250), abs=1e-6)


def test_what_hardly_was_found_changes_nothing_that_was():
    """With a threshold of 0, as average precision wants it, every query is an object."""
    one, other = box(0, 20, 30, 40, 100, 0.9), box(1, 20, 60, 40, 130, 0.8)
    expected = joined(one, other)
    assert len(expected) == 1
    # Doubles of both, one of which overlaps better than the good ones do, and a blob that covers everything.
    doubtful = [box(0, 19, 30, 40, 100, 0.05), box(1, 19, 60, 40, 130, 0.04), box(0, 0, 0, 100, 100, 0.02)]
    result = joined(one, other, *doubtful)
    assert expected[0] in result
    assert sorted(score for _, score, _ in result)[:-1] == sorted(score for _, score, _ in joined(*doubtful))
    # A fragment is none of a blob's.
    assert ((80, 60, 100, 70), 0.9, 200) in joined(box(1, 80, 60, 100, 70, 0.9), box(0, 0, 0, 100, 100, 0.02))
