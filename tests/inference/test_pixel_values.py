"""Each row of the table in docs/images.md: the same photo in another form gives the same pixels, whoever reads it."""

import base64
import io
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

from maskformer_hf import MaskFormerImageProcessor, MaskFormerVideoProcessor, draw_segmentation, predict
from maskformer_hf.inference.images import read_image
from tests.models.test_opening_images import TEXTS, chunk, odd_exif

DOCS = Path(__file__).parents[2] / "docs" / "images.md"
SIZE = (24, 40)
# Smooth enough for formats with losses, and with both ends of the range.
RAMP = np.linspace(0, 255, SIZE[1]).round().astype(np.uint8)[None].repeat(SIZE[0], 0)
RGB = np.stack([RAMP, RAMP[:, ::-1], RAMP // 2 + 64], axis=-1)
GREY = np.stack([RAMP] * 3, axis=-1)
TWO = np.where(RAMP > 127, 255, 0).astype(np.uint8)
BLACK_AND_WHITE = np.stack([TWO] * 3, axis=-1)
ALPHA = (RAMP[::-1, ::-1] // 3)[..., None]
FRACTIONS = RGB / 255


def file_of(image, kind="png", **options):
    if not isinstance(image, Image.Image):
        image = Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return file_of(Image.fromarray(RGB).transpose(Image.Transpose.ROTATE_90), exif=exif)


def palette(transparent=False):
    few = Image.fromarray(RGB // 64 * 85).convert("P", palette=Image.Palette.ADAPTIVE, colors=64)
    return file_of(few, **({"transparency": bytes(range(64))} if transparent else {})), np.asarray(few.convert("RGB"))


def converted(mode, kind):
    return file_of(Image.fromarray(RGB).convert(mode), kind)


def decoded(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def several(kind, **options):
    others = [Image.fromarray(255 - GREY), Image.fromarray(BLACK_AND_WHITE)]
    return file_of(GREY, kind, save_all=True, append_images=others, **options)


def opened(data, folder):
    (folder / "photo").write_bytes(data)
    return open(folder / "photo", "rb")


def path_of(data, folder):
    (folder / "photo.of-any-name").write_bytes(data)
    return folder / "photo.of-any-name"


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


DIM = (RGB.astype(np.uint16) * 16).clip(0, 4095)
MPO = several("mpo", quality=95)
CMYK = converted("CMYK", "tiff")
YCBCR = converted("YCbCr", "tiff")
FIRST = torch.from_numpy(RGB).permute(2, 0, 1)
# What is given, of a folder; what it is as RGB; whether that is a guess.
KINDS = {
    "path": (lambda folder: path_of(file_of(RGB), folder), RGB),
    "URL": (lambda _: "data:image/png;base64," + base64.b64encode(file_of(RGB)).decode(), RGB),
    "bytes": (lambda _: file_of(RGB), RGB),
    "open file": (lambda folder: opened(file_of(RGB), folder), RGB),
    "PIL image": (lambda _: Image.open(io.BytesIO(turned())), RGB),
    "EXIF orientation": (lambda _: turned(), RGB),
    "odd EXIF": (lambda _: file_of(RGB, exif=next(iter(odd_exif())).values[0]), RGB),
    "large texts or colour profile in a PNG": (
        lambda _: file_of(RGB)[:33] + chunk(b"iCCP", TEXTS["a large colour profile"][41:-4]) + file_of(RGB)[33:],
        RGB,
    ),
    "RGB": (lambda _: Image.fromarray(RGB), RGB),
    "grey": (lambda _: file_of(RAMP), GREY),
    "grey with transparency": (lambda _: file_of(np.dstack([RAMP, ALPHA])), GREY),
    "RGB with transparency": (lambda _: file_of(np.dstack([RGB, ALPHA])), RGB),
    "palette": (lambda _: palette()[0], palette()[1]),
    "palette with transparency": (lambda _: palette(True)[0], palette()[1]),
    "black and white": (lambda _: file_of(Image.fromarray(TWO).convert("1")), BLACK_AND_WHITE),
    "CMYK": (lambda _: CMYK, decoded(CMYK)),
    "YCbCr": (lambda _: YCBCR, decoded(YCBCR)),
    "16 bits grey": (lambda _: file_of(RAMP.astype(np.uint16) * 257), GREY),
    "animated": (lambda _: several("gif"), GREY),
    "several pages": (lambda _: several("tiff"), GREY),
    "MPO, as stereo cameras write it": (lambda _: MPO, decoded(MPO)),
    "array uint8": (lambda _: RGB, RGB),
    "array bool": (lambda _: BLACK_AND_WHITE > 0, BLACK_AND_WHITE),
    "array uint16 above 4095": (lambda _: RGB.astype(np.uint16) * 257, RGB),
    "array uint16 up to 4095": (lambda _: DIM, (DIM / 4095 * 255).round().astype(np.uint8), "taken for one of 12 bits"),
    "array uint16 up to 255": (lambda _: RGB.astype(np.uint16), RGB, "taken for one of 8 bits"),
    "array of whole numbers up to 255": (lambda _: RGB.astype(np.int64), RGB),
    "array float 0 to 1": (lambda _: FRACTIONS.astype(np.float32), RGB),
    "array float 0 to 255": (lambda _: RGB + 0.3 * np.sin(RGB.astype(np.float32)) * (RGB < 255) * (RGB > 0), RGB),
    "array float a little beyond 0 to 1": (
        lambda _: FRACTIONS + 0.05 * (FRACTIONS == 1) - 0.05 * (FRACTIONS == 0),
        RGB,
        "a little beyond 0 to 1: what is beyond is cut",
    ),
    "array float16": (lambda _: FRACTIONS.astype(np.float16), RGB),
    "array float64": (lambda _: FRACTIONS, RGB),
    "array of another byte order": (lambda _: (RGB.astype(np.uint16) * 257).astype(">u2"), RGB),
    "array that is read only": (lambda _: read_only(RGB), RGB),
    "channels last": (lambda _: torch.from_numpy(RGB), RGB),
    "channels first": (lambda _: RGB.transpose(2, 0, 1), RGB),
    "array grey (H, W)": (lambda _: RAMP, GREY),
    "array grey (H, W, 1)": (lambda _: RAMP[..., None], GREY),
    "array grey (1, H, W)": (lambda _: RAMP[None], GREY),
    "array grey with transparency (H, W, 2)": (lambda _: np.dstack([RAMP, ALPHA]), GREY),
    "array RGB with transparency (H, W, 4)": (lambda _: np.dstack([RGB, ALPHA]), RGB),
    "tensor uint8": (lambda _: FIRST, RGB),
    "tensor float 0 to 1": (lambda _: FIRST.float() / 255, RGB),
    "tensor uint16": (lambda _: torch.from_numpy(RGB.astype(np.uint16) * 257), RGB),
    "tensor bfloat16": (lambda _: (FIRST > 127).to(torch.bfloat16), np.where(RGB > 127, 255, 0).astype(np.uint8)),
}


@pytest.fixture(scope="module")
def processor():
    return MaskFormerImageProcessor(size={"shortest_edge": 32, "longest_edge": 64})


@pytest.fixture(scope="module")
def segmenter(tiny_model, processor):
    return pipeline("image-segmentation", model=tiny_model, image_processor=processor, device="cpu")


def test_each_row_of_the_docs_is_tested():
    rows = re.findall(r"^\| (.*?) \|", DOCS.read_text(encoding="utf-8"), flags=re.M)
    assert rows == ["what is given", *KINDS]


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_photo_in_another_form(kind, tiny_model, processor, segmenter, tmp_path):
    make, pixels, *guess = KINDS[kind]
    readers = (
        lambda image: read_image(image).permute(1, 2, 0),
        lambda image: processor(image).pixel_values,
        lambda image: segmenter.preprocess(image)["pixel_values"],
        lambda image: predict(tiny_model, processor, image, task="semantic")[0].segmentation,
        lambda image: np.asarray(draw_segmentation(image, prediction, legend=False)),
    )
    [prediction] = predict(tiny_model, processor, pixels, task="semantic")
    for read in readers:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = read(make(tmp_path))
        said = [str(warning.message) for warning in caught if "maskformer_hf" in warning.filename]
        assert len(said) == len(guess), said
        assert all(text in said[0] for text in guess)
        assert torch.equal(torch.as_tensor(found), torch.as_tensor(read(pixels)))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (FRACTIONS * 4 - 2, r"values from -2 to 2, as if it were normalised already"),
        (FRACTIONS * 65535, r"values from 0 to 65535; fractions must be 0 to 1 or 0 to 255"),
        (RGB.astype(np.int16) - 9, r"values from -9 to .*; whole numbers must be"),
        (RGB.astype(np.int64) * 10**6, r"whole numbers must be 0 to 255, or 0 to 65535"),
        (np.where(RGB == 255, np.nan, FRACTIONS), r"holds nan; replace"),
        (RGB.astype(np.complex64), r"an array of complex64"),
        (RGB.astype(str), r"an array of <U"),
        (RGB[..., :0], r"0 pixels: its shape is \(24, 40, 0\)"),
        (np.dstack([RGB, RGB]), r"shape \(24, 40, 6\).*the model's 3 channels"),
        (RGB[None, None], r"shape \(1, 1, 24, 40, 3\)"),
        ({"image": RGB}, r"is a dict; give a PIL image, an array"),
    ],
)
def test_what_is_hopeless_is_refused(tiny_model, processor, segmenter, image, message):
    for read in (processor, segmenter.preprocess, lambda given: predict(tiny_model, processor, [given])):
        with pytest.raises(ValueError, match=message):
            read(image)


def test_a_dark_frame_of_a_clip_is_dark():
    clip = np.stack([RGB * 0.002, RGB]).astype(np.float32)
    assert clip[0].max() < 1
    processor = MaskFormerVideoProcessor(do_resize=False, image_mean=[0.0] * 3, image_std=[1.0] * 3)
    values = processor(clip).pixel_values[0]
    assert values[0].max() < 0.01
    assert values[1].max() == 1


def test_a_memory_mapped_photo_is_read_by_tiles(tiny_model, tiny_processor, tmp_path):
    np.save(tmp_path / "photo.npy", np.tile(RGB, (3, 3, 1)))
    mapped = np.load(tmp_path / "photo.npy", mmap_mode="r")
    whole = np.array(mapped)
    assert read_image(mapped).data_ptr() == mapped.ctypes.data
    options = {"tile_size": 48, "task": "semantic"}
    left, right = (predict(tiny_model, tiny_processor, image, **options)[0] for image in (mapped, whole))
    assert torch.equal(left.segmentation, right.segmentation)
