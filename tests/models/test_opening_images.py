"""The one opener of images: what is odd in a file does not matter, and what matters is said with the file's name."""

import io
import re
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest
from PIL import Image

import maskformer_hf
from maskformer_hf import MaskFormerImageProcessor
from maskformer_hf.data import from_datasets
from maskformer_hf.data.files import decode_image, read_id_map, read_image
from maskformer_hf.models.image_opening import ORIENTATION, TURNS, open_image
from maskformer_hf.models.image_reading import as_tensor

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)


def encoded(pixels=PIXELS, kind="png", **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def with_orientation(value, kind="png"):
    exif = Image.Exif()
    exif[ORIENTATION] = value
    return encoded(kind=kind, exif=exif)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunk(kind, data, before=b"IDAT"):
    png = encoded()
    place = png.index(before) - 4
    return png[:place] + chunk(kind, data) + png[place:]


LARGE = zlib.compress(b"a" * (2 << 20))
TEXTS = {
    "a large compressed text": with_chunk(b"zTXt", b"Comment\0\0" + LARGE),
    "a large text after the pixels": with_chunk(b"zTXt", b"Comment\0\0" + LARGE, before=b"IEND"),
    "a large international text": with_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + LARGE),
    "a large colour profile": with_chunk(b"iCCP", b"profile\0\0" + LARGE),
    "a broken colour profile": with_chunk(b"iCCP", b"profile\0\0" + b"no zlib at all"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_texts_and_profiles_of_a_png_do_not_matter(tmp_path, name):
    (tmp_path / "a.png").write_bytes(TEXTS[name])
    for source in (TEXTS[name], tmp_path / "a.png"):
        assert np.array_equal(np.asarray(open_image(source)), PIXELS)
    assert np.array_equal(read_image(tmp_path / "a.png").permute(1, 2, 0), PIXELS)
    assert np.array_equal(as_tensor(tmp_path / "a.png"), PIXELS)


def odd_exif():
    """EXIF blocks that Pillow's `exif_transpose` or `getexif` stumbles over."""
    right = Image.Exif()
    right[ORIENTATION] = 6
    data = right.tobytes()
    entry = data.index(struct.pack("<HH" if b"II" in data[:10] else ">HH", ORIENTATION, 3))
    for name, changed in {
        "cut off": data[: entry + 6],
        "nothing": b"Exif\0\0",
        "no TIFF": b"Exif\0\0no tiff at all",
        "an offset beyond the end": data[:10] + b"\xff\xff\xff\x00" + data[14:],
        "another type": data[: entry + 2] + b"\x02\x00" + data[entry + 4 :],
    }.items():
        yield pytest.param(changed, id=name)
    for value in (0, 9, 255):
        right[ORIENTATION] = value
        yield pytest.param(right.tobytes(), id=f"orientation {value}")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("exif", odd_exif())
def test_odd_exif_says_nothing_about_the_pixels(exif):
    for kind in ("png", "webp"):
        data = encoded(kind=kind, exif=exif, **({"lossless": True} if kind == "webp" else {}))
        assert np.array_equal(np.asarray(open_image(data)), PIXELS)


@pytest.mark.parametrize("value", [1, *TURNS])
@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_an_image_is_turned_once(value, kind):
    data = with_orientation(value, kind)
    expected = np.asarray(Image.fromarray(PIXELS).transpose(TURNS[value])) if value in TURNS else PIXELS
    assert np.array_equal(np.asarray(open_image(data)), expected)
    assert np.array_equal(np.asarray(open_image(open_image(data))), expected)
    # Pillow itself turns a TIFF, whose orientation is part of the format.
    stored = expected if kind == "tiff" else PIXELS
    assert np.array_equal(np.asarray(open_image(data, upright=False)), stored)
    # A PIL image, whose EXIF a copy keeps, stands as the file does.
    with Image.open(io.BytesIO(data)) as photo:
        assert np.array_equal(np.asarray(open_image(photo.copy())), expected)


def test_the_size_of_the_annotations_says_how_an_image_was_annotated(tmp_path):
    (tmp_path / "a.png").write_bytes(with_orientation(6))
    turned = np.asarray(Image.fromarray(PIXELS).transpose(TURNS[6]))
    for upright in (False, True):
        for size, expected in (((8, 12), PIXELS), ((12, 8), turned), (None, turned if upright else PIXELS)):
            found = decode_image(tmp_path / "a.png", size, upright=upright)
            assert np.array_equal(found.permute(1, 2, 0), expected)
    assert np.array_equal(as_tensor(tmp_path / "a.png"), PIXELS)


def test_a_processor_turns_photos_as_their_targets_are(tmp_path):
    (tmp_path / "a.png").write_bytes(with_orientation(6))
    processor = MaskFormerImageProcessor(do_resize=False, size_divisor=0)
    photo = Image.open(tmp_path / "a.png")
    for image in (tmp_path / "a.png", photo):
        assert processor(image).pixel_values.shape[-2:] == (12, 8)
        for size in ((8, 12), (12, 8)):
            assert processor(image, np.zeros(size, np.uint8)).pixel_values.shape[-2:] == size
            masks = np.ones((1, *size), np.uint8)
            found = processor(image, mask_labels=masks, class_labels=[0])
            assert found.pixel_values.shape[-2:] == size


def test_a_limit_names_the_file_and_what_lifts_it(tmp_path, monkeypatch):
    (tmp_path / "large.png").write_bytes(encoded())
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 40)
    match = r"large.png has 96 pixels, more than the limit of 80,.*max_pixels=96, --max-pixels"
    readers = (open_image, read_image, read_id_map, as_tensor, MaskFormerImageProcessor())
    for read in readers:
        with pytest.raises(ValueError, match=match):
            read(tmp_path / "large.png")
    with pytest.raises(ValueError, match=r"has 96 pixels, more than the limit of 95"):
        open_image(tmp_path / "large.png", max_pixels=95)

    def read(_):
        return np.array_equal(np.asarray(open_image(tmp_path / "large.png", max_pixels=96)), PIXELS)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(32)))
    assert PIL.Image.MAX_IMAGE_PIXELS == 40
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", None)
    assert open_image(tmp_path / "large.png").size == (12, 8)


class Stream(io.RawIOBase):
    """Bytes that come once, such as those of a socket."""

    def __init__(self, data):
        self.data = io.BytesIO(data)

    def readable(self):
        return True

    def readinto(self, buffer):
        return self.data.readinto(buffer)


def test_open_files_are_read_from_their_beginning_and_stay_open(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded())
    with open(tmp_path / "a.png", "rb") as file:
        for _ in range(2):
            assert np.array_equal(np.asarray(open_image(file)), PIXELS)
        assert not file.closed
    with pytest.raises(ValueError, match=r"a.png cannot be read: .*closed file"):
        open_image(file)
    with open(tmp_path / "a.png", encoding="latin1") as file, pytest.raises(ValueError, match='open it with mode "rb"'):
        open_image(file)
    assert np.array_equal(np.asarray(open_image(Stream(encoded()))), PIXELS)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "tiff", "gif", "bmp"])
def test_a_broken_file_is_one_line_with_its_name(tmp_path, kind):
    data = encoded(kind=kind)
    rng = np.random.default_rng(1)
    path = tmp_path / f"broken.{kind}"
    refused = []
    for _ in range(60):
        broken = bytearray(data)
        for place in rng.integers(0, len(data), 6):
            broken[place] = rng.integers(0, 256)
        path.write_bytes(broken[: rng.integers(1, len(data))])
        try:
            open_image(path)
        except ValueError as error:
            refused.append(str(error))
    assert len(refused) > 10
    assert all(str(path) in line and "\n" not in line for line in refused)


def test_what_is_no_file_is_said(tmp_path):
    for source, message in (
        (tmp_path / "none.png", r"There is no file .*none.png"),
        (tmp_path, r"cannot be read: .*[Dd]irectory"),
        ("a\0b.png", r"cannot be read: .*null"),
        (b"", r"The image cannot be read: it is no image"),
        ("http://127.0.0.1:9/photo.jpg", r"http://127.0.0.1:9/photo.jpg cannot be read"),
        ("data:image/png;base64,AAAA", r"cannot be read: it is no image"),
    ):
        with pytest.raises(ValueError, match=message):
            open_image(source)


def test_every_reader_of_data_opens_images_here():
    """No other file of the package opens or turns an image."""
    package = Path(maskformer_hf.__file__).parent
    found = {
        path.name
        for path in package.rglob("*.py")
        if re.search(r"Image\.open\(|exif_transpose|load_image\(|DecompressionBomb", path.read_text(encoding="utf-8"))
    }
    assert found == {"image_opening.py"}


@pytest.mark.parametrize("exif", odd_exif())
@pytest.mark.filterwarnings("ignore")
def test_rows_of_datasets_are_opened_here(exif):
    table = datasets.Dataset.from_dict(
        {
            "image": [{"bytes": encoded(exif=exif), "path": None}, {"bytes": with_orientation(6), "path": None}],
            "label": [{"bytes": encoded(np.ones(size, np.uint8)), "path": None} for size in ((8, 12), (12, 8))],
        },
        features=datasets.Features({"image": datasets.Image(), "label": datasets.Image()}),
    )
    data = from_datasets(table, id2label={0: "a", 1: "b"})
    turned = np.asarray(Image.fromarray(PIXELS).transpose(TURNS[6]))
    for sample, expected in zip((data[0], data[1]), (PIXELS, turned), strict=True):
        assert np.array_equal(sample["image"].permute(1, 2, 0), expected)
