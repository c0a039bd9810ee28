"""Video files, and frames with tracks drawn on them."""

import struct
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image

from maskformer_hf import VideoPrediction
from maskformer_hf.inference.video_files import VideoFile, write_video
from maskformer_hf.models.coco_rle import encode_coco_rle
from maskformer_hf.visualize import draw_tracks

av = pytest.importorskip("av")


def grey(number: int, size=(63, 41)) -> Image.Image:
    return Image.new("RGB", size, (20 * number,) * 3)


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".mkv"])
def test_a_file_is_read_as_written(tmp_path, suffix):
    path = tmp_path / "folder" / f"clip{suffix}"
    write_video(path, (grey(number) for number in range(7)), Fraction(25, 2))
    video = VideoFile(path)
    assert video.frames_per_second == pytest.approx(Fraction(25, 2), rel=0.01)
    for _ in range(2):
        frames = [np.asarray(frame) for frame in video]
        assert [frame.shape for frame in frames] == [(42, 64, 3)] * 7
        for number, frame in enumerate(frames):
            # What was added to an odd side has the colour of the edge.
            assert abs(frame.astype(int) - 20 * number).max() <= 4


def stand(path, a, b, c, d):
    """Writes another display matrix into the header of the video track of an mp4."""
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 44
    assert struct.unpack_from(">9i", data, place) == (65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    struct.pack_into(">5i", data, place, a << 16, b << 16, 0, c << 16, d << 16)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("matrix", "turn"),
    [
        ((1, 0, 0, 1), None),
        ((0, 1, -1, 0), Image.Transpose.ROTATE_270),  # a telephone held upright
        ((-1, 0, 0, -1), Image.Transpose.ROTATE_180),
        ((0, -1, 1, 0), Image.Transpose.ROTATE_90),
        ((-1, 0, 0, 1), Image.Transpose.FLIP_LEFT_RIGHT),  # the front camera
        ((1, 0, 0, -1), Image.Transpose.FLIP_TOP_BOTTOM),
        ((0, 1, 1, 0), Image.Transpose.TRANSPOSE),
        ((0, -1, -1, 0), Image.Transpose.TRANSVERSE),
    ],
)
def test_a_turned_or_mirrored_video_stands_upright(tmp_path, matrix, turn):
    corners = Image.new("RGB", (64, 32))
    for place, color in zip([(0, 0), (32, 0), (0, 16), (32, 16)], ["white", "red", "green", "blue"], strict=True):
        corners.paste(Image.new("RGB", (32, 16), color), place)
    write_video(tmp_path / "clip.mp4", [corners] * 3, Fraction(10))
    stand(tmp_path / "clip.mp4", *matrix)
    expected = np.asarray(corners if turn is None else corners.transpose(turn)).astype(int)
    frames = [np.asarray(frame).astype(int) for frame in VideoFile(tmp_path / "clip.mp4")]
    assert [frame.shape for frame in frames] == [expected.shape] * 3
    assert all(abs(frame - expected).mean() < 12 for frame in frames)


def test_a_file_that_cannot_be_finished_is_removed(tmp_path):
    def frames():
        yield grey(1)
        raise ValueError("the second frame is broken")

    with pytest.raises(ValueError, match="the second frame is broken"):
        write_video(tmp_path / "clip.mp4", frames(), Fraction(10))
    assert list(tmp_path.iterdir()) == []


def test_errors_name_the_file(tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(ValueError, match=r"text\.mp4' is no video"):
        VideoFile(tmp_path / "text.mp4")
    with pytest.raises(ValueError, match=r"there is no file .*none\.mp4"):
        VideoFile(tmp_path / "none.mp4")


def test_a_track_keeps_its_colour():
    """Two objects of one class, of which now the one and now the other is larger, and one goes out of sight."""
    masks = torch.zeros(2, 3, 80, 120, dtype=torch.bool)
    masks[0, 0, 20:70, 5:50] = masks[0, 1, 20:40, 5:30] = True
    masks[1, 0, 20:40, 70:90] = masks[1, 1, 20:70, 70:110] = masks[1, 2, 20:70, 70:110] = True
    tracks = [
        {
            "id": number,
            "label_id": 0,
            "label": "cow",
            "score": 1.0,
            "segmentations": [
                rle if bool(mask.any()) else None for rle, mask in zip(encode_coco_rle(m), m, strict=True)
            ],
        }
        for number, m in enumerate(masks, start=1)
    ]
    prediction = VideoPrediction((80, 120), 3, tracks)
    frames = [
        np.asarray(draw_tracks(Image.new("RGB", (120, 80), "white"), prediction, number, names=False))
        for number in range(3)
    ]
    first, second = frames[0][30, 15].tolist(), frames[0][30, 80].tolist()
    assert first != second
    assert first != [255, 255, 255]
    assert frames[1][30, 15].tolist() == first
    assert frames[1][30, 80].tolist() == frames[2][30, 80].tolist() == second
    assert frames[2][30, 15].tolist() == [255, 255, 255]
    named = np.asarray(draw_tracks(Image.new("RGB", (120, 80), "white"), prediction, 2))
    above = slice(0, 19)
    assert (named[above] != frames[2][above]).any()
    assert (named[30:, :60] == 255).all()
    with pytest.raises(ValueError, match="80 x 120"):
        draw_tracks(Image.new("RGB", (10, 10)), prediction, 0)
