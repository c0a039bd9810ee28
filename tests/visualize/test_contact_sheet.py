"""What a data set says, as pictures."""

import numpy as np
import torch
from torchvision import tv_tensors

from maskformer_hf.data import VOID
from maskformer_hf.data.report import Pick
from maskformer_hf.visualize import contact_sheet, draw_sample, label_color
from maskformer_hf.visualize.contact_sheet import _innermost

LABELS = {0: "road", 1: "car"}


def labelled(height=60, width=90, name="folder/a.png", value=90):
    """Road on the left, two cars in the middle, the second a crowd, void on the right."""
    planes = torch.zeros((1, height, width), dtype=torch.int32)
    planes[0, :, : width // 3] = 1
    planes[0, : height // 3, width // 3 : 2 * width // 3] = 2
    planes[0, height // 2 :, width // 3 : 2 * width // 3] = 3
    planes[0, :, 2 * width // 3 :] = VOID
    return {
        "image": tv_tensors.Image(torch.full((3, height, width), value, dtype=torch.uint8)),
        "planes": tv_tensors.Mask(planes),
        "labels": torch.tensor([0, 1, 1]),
        "is_crowd": torch.tensor([False, False, True]),
        "name": name,
    }


def test_labels_are_tinted_and_void_and_crowds_hatched():
    picture = np.asarray(draw_sample(labelled(), LABELS, legend=False)).astype(int)
    assert picture.shape == (60, 90, 3)
    # The crowd is the larger car.
    for place, color in (((30, 15), label_color(0)), ((10, 45), label_color(1, 1))):
        np.testing.assert_allclose(picture[place], 90 + 0.55 * (np.array(color) - 90), atol=1)
    for rows, columns in ((slice(5, 55), slice(66, 84)), (slice(36, 54), slice(36, 54))):
        # Two colours: that of what is there, and dark.
        assert len(np.unique(picture[rows, columns].reshape(-1, 3), axis=0)) == 2
    assert len(np.unique(picture[5:15, 36:54].reshape(-1, 3), axis=0)) == 1
    # Nothing is known of the void: between its stripes the photo shows.
    assert (picture[5:55, 66:84] == 90).all(-1).any()
    assert draw_sample(labelled(), LABELS).height > 60


class Samples:
    task, id2label, label_ids_to_fuse = "panoptic", LABELS, [0]

    def __init__(self, *samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]


def test_a_contact_sheet_has_a_cell_for_each_pick_and_a_legend():
    dataset = Samples(labelled(), labelled(300, 100, "b.png"), labelled(50, 700, "c.png"))
    picks = [Pick(index % 3, f"reason {index}") for index in range(6)]
    one, six = contact_sheet(dataset, picks[:1]), contact_sheet(dataset, picks)
    assert six.width > 3 * one.width
    assert one.height < six.height < 3 * one.height
    for color in (label_color(0), label_color(1)):
        assert (np.asarray(six).reshape(-1, 3) == color).all(1).any()
    # Names are written: a longer reason changes the picture, a reason that does not fit is cut.
    assert contact_sheet(dataset, [Pick(0, "another")]).tobytes() != one.tobytes()
    assert contact_sheet(dataset, [Pick(0, "long " * 200)]).size == one.size


def test_a_window_shows_what_a_photo_in_a_cell_does_not():
    sample = labelled(900, 1200)
    sample["planes"][0][sample["planes"][0] != 1] = 0
    sample["planes"][0, 700:706, 800:806] = 2
    color = 90 + 0.55 * (np.array(label_color(1)) - 90)
    shown = []
    for number in (None, 2):
        picture = np.asarray(contact_sheet(Samples(sample), [Pick(0, "", number)]))[:280].astype(int)
        shown.append(int((np.abs(picture - color).max(-1) < 2).sum()))
    assert shown[0] < 10 < 200 < shown[1]


def test_classes_that_a_cell_does_not_show_are_not_in_its_legend():
    sample = labelled()
    sample["planes"][0][sample["planes"][0] > 1] = 0
    sample["planes"][0, 50, 50] = 2
    tall = contact_sheet(Samples(labelled(), sample), [Pick(0, "")])
    assert (np.asarray(tall).reshape(-1, 3) == label_color(1)).all(1).any()
    sample["planes"][0, 50, 50] = 0
    assert not (
        (np.asarray(contact_sheet(Samples(sample), [Pick(0, "")])).reshape(-1, 3) == label_color(1)).all(1).any()
    )


def test_names_are_written_where_a_segment_is_thickest():
    mask = np.zeros((60, 100), bool)
    mask[28:32, :] = True
    mask[10:50, 60:90] = True
    y, x = _innermost(mask)
    assert 24 <= y <= 36
    assert 70 <= x <= 80
    # The border of the image counts as one.
    y, x = _innermost(np.ones((40, 80), bool))
    assert 16 <= y <= 22
    assert 16 <= x <= 62
