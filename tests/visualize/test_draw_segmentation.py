"""A prediction as a picture: what is coloured, what is outlined, what the legend adds."""

import numpy as np
import pytest
import torch
from PIL import Image

from maskformer_hf import Prediction, draw_segmentation
from maskformer_hf.visualize import label_color

LABELS = {0: "road", 1: "car"}


def record(id, label_id, area):
    return {"id": id, "label_id": label_id, "label": LABELS[label_id], "score": 0.9, "area": area}


def panoptic(height=60, width=90):
    """Road in the left third, a car in the middle third, void on the right."""
    segmentation = torch.zeros((height, width), dtype=torch.int32)
    segmentation[:, : width // 3] = 1
    segmentation[:, width // 3 : 2 * width // 3] = 2
    area = height * width // 3
    return Prediction("panoptic", (height, width), [record(1, 0, area), record(2, 1, area)], segmentation)


def photo(prediction, value=90):
    height, width = prediction.size
    return Image.new("RGB", (width, height), (value, value, value))


def test_segments_are_tinted_and_void_is_not():
    prediction = panoptic()
    picture = np.asarray(draw_segmentation(photo(prediction), prediction, legend=False))
    assert picture.shape == (60, 90, 3)
    for column, label_id in ((15, 0), (45, 1)):
        expected = 90 + 0.55 * (np.array(label_color(label_id)) - 90)
        np.testing.assert_allclose(picture[30, column], expected, atol=1)
    assert (picture[:, 65:] == 90).all()


@pytest.mark.parametrize("value", [0, 255])
def test_outlines_show_on_any_ground(value):
    prediction = panoptic()
    picture = draw_segmentation(photo(prediction, value), prediction, legend=False, opacity=0.0)
    row = np.asarray(picture)[30, :, 0].astype(int)
    # A light line with dark ones beside it: one of them differs from the ground.
    for border in (30, 60):
        assert abs(row[border - 3 : border + 3] - value).max() > 80
    assert (row[5:25] == value).all()


def test_outlines_grow_with_the_picture():
    widths = []
    for height in (200, 1600):
        prediction = panoptic(height, 1200)
        row = np.asarray(draw_segmentation(photo(prediction), prediction, legend=False, opacity=0.0))[100, :, 0]
        widths.append(int((row > 150).sum()))
    assert widths[0] < widths[1]


def test_a_legend_is_added_and_the_photo_not_resized():
    wide, tall = panoptic(120, 300), panoptic(300, 120)
    below = draw_segmentation(photo(wide), wide)
    assert below.width == 300
    assert below.height > 120
    beside = draw_segmentation(photo(tall), tall)
    assert beside.height == 300
    assert beside.width > 120
    bare = draw_segmentation(photo(wide), wide, legend=False)
    assert (np.asarray(below)[:120] == np.asarray(bare)).all()
    # A swatch in the class's own colour.
    panel = np.asarray(below)[120:].reshape(-1, 3)
    assert (panel == label_color(0)).all(1).any()


def test_a_legend_of_many_long_names_fits():
    names = {index: f"a rather long class name {index}" for index in range(60)}
    segmentation = torch.arange(60).repeat_interleave(20)[None].expand(150, -1).contiguous()
    segments = [{"id": i, "label_id": i, "label": names[i], "score": 1.0, "area": 3000} for i in range(60)]
    prediction = Prediction("semantic", (150, 1200), segments, segmentation)
    picture = draw_segmentation(photo(prediction), prediction)
    assert picture.width == 1200
    panel = np.asarray(picture)[150:]
    # Nothing is written on the last pixels of the panel, so nothing is cut.
    assert (panel[-3:] == panel[-1, -1]).all()
    narrow = Prediction("semantic", (100, 110), segments[:3], torch.zeros((100, 110), dtype=torch.int64))
    # Wider than the photo, so that no name is cut.
    assert draw_segmentation(photo(narrow), narrow).width > 200


def test_colors_are_stable_and_apart():
    assert label_color(3) == label_color(3)
    colors = np.array([label_color(index) for index in range(20)], dtype=float)
    distances = np.abs(colors[:, None] - colors[None]).sum(-1) + 1000 * np.eye(20)
    assert distances.min() > 25
    variations = {label_color(1, number) for number in range(12)}
    assert len(variations) == 12


def test_things_of_one_class_differ_in_color():
    prediction = panoptic()
    prediction.segments[0] = record(1, 1, 1800)
    picture = np.asarray(draw_segmentation(photo(prediction), prediction, legend=False))
    assert (picture[30, 15] != picture[30, 45]).any()


def test_the_smaller_of_two_instances_is_in_front():
    masks = torch.zeros((2, 60, 60), dtype=torch.bool)
    masks[0, 20:40, 20:40] = True
    masks[1] = True
    segments = [record(1, 1, 400), record(2, 0, 3600)]
    prediction = Prediction("instance", (60, 60), segments, masks=masks)
    picture = np.asarray(draw_segmentation(photo(prediction), prediction, legend=False))
    for place, label_id in (((30, 30), 1), ((5, 5), 0)):
        np.testing.assert_allclose(picture[place], 90 + 0.55 * (np.array(label_color(label_id)) - 90), atol=1)


def test_nothing_found_is_the_photo():
    prediction = Prediction("panoptic", (40, 50), [], torch.zeros((40, 50), dtype=torch.int32))
    picture = draw_segmentation(photo(prediction), prediction)
    assert (np.asarray(picture) == np.asarray(photo(prediction))).all()


def test_another_size_is_refused():
    prediction = panoptic(60, 90)
    with pytest.raises(ValueError, match=r"90 x 60.*60 x 90"):
        draw_segmentation(Image.new("RGB", (60, 90)), prediction)


def test_names_of_the_legend_can_be_replaced():
    prediction = panoptic()
    own, same = (
        draw_segmentation(photo(prediction), prediction),
        draw_segmentation(photo(prediction), prediction, LABELS),
    )
    german = draw_segmentation(photo(prediction), prediction, {0: "Strasse", 1: "Auto"})
    assert own.tobytes() == same.tobytes() != german.tobytes()


def test_every_kind_of_image_gives_the_same_picture(tmp_path):
    prediction = panoptic()
    array = np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(array).save(tmp_path / "photo.png")
    tensor = torch.from_numpy(array)
    kinds = [tmp_path / "photo.png", Image.fromarray(array), array, tensor, tensor.permute(2, 0, 1)]
    assert len({draw_segmentation(image, prediction).tobytes() for image in kinds}) == 1
