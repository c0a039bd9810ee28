"""The one opener of images: a path, a URL, bytes, an open file or a PIL image to a decoded PIL image.

All images of the package come through here: those of `predict` and of the image processor, the frames of videos, and
the photos and label maps of training data. Here it is decided how an image stands, what a file that cannot be read is
told, and how large an image may be.
"""

import base64
import io
import os
import re
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import huggingface_hub
import PIL.Image
from PIL.Image import Transpose

# What EXIF's orientation asks for; 1 is upright.
ORIENTATION = 0x0112
TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
PNG = b"\x89PNG\r\n\x1a\n"
# Texts and the colour profile. Pillow refuses large ones, though the pixels do not depend on them.
PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
# Pillow's limit is one number for the whole process.
_changing_the_limit = threading.Lock()


def is_source(image: Any) -> bool:
    """Whether this is something to open: a path, a URL, bytes, an open file or a PIL image. Arrays are not."""
    kinds = (str, os.PathLike, bytes, bytearray, memoryview, PIL.Image.Image)
    return isinstance(image, kinds) or hasattr(image, "read")


def open_image(
    source: Any,
    name: str = "",
    *,
    upright: bool = True,
    size: tuple[int, int] | None = None,
    max_pixels: int | None = None,
    timeout: float | None = None,
) -> PIL.Image.Image:
    """The first picture of an image file, decoded in its own mode.

    Args:
        source: A path, a URL (http, https, or data with base64), bytes, a file that is open for reading bytes, or a PIL
            image. A file stays open, and may be read again.
        name: How messages call the image; its path if there is one.
        upright: Turn the image as EXIF says; otherwise pixels come as they are stored. EXIF that cannot be read says
            nothing.
        size: (height, width) of annotations. If only the other way of `upright` gives this size, that one is taken.
        max_pixels: Most pixels of an image; None is Pillow's limit, twice `PIL.Image.MAX_IMAGE_PIXELS`.
        timeout: Seconds to wait for a server.

    Raises:
        ValueError: Whatever is wrong with the file, in one line that begins with its name.
    """
    name = name or name_of(source)
    try:
        with _opened(source, timeout) as file:
            image = _loaded(file) if isinstance(file, PIL.Image.Image) else _decode(file, max_pixels)
            # TIFF's orientation is read from the file, so it must still be open.
            return _turned(image, upright, size)
    except FileNotFoundError as error:
        raise ValueError(f"There is no file {name}.") from error
    except PIL.UnidentifiedImageError as error:
        raise ValueError(f"{name} cannot be read: it is no image, or none that Pillow knows.") from error
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning) as error:
        raise ValueError(_too_large(name, str(error))) from error
    except Exception as error:
        # Decoders raise whatever foreign bytes make of them: OSError, SyntaxError, struct.error, IndexError, ...
        raise ValueError(f"{name} cannot be read: {first_line(error)}") from error


def name_of(source: Any) -> str:
    """How messages call an image."""
    if isinstance(source, (str, os.PathLike)):
        text = os.fspath(source)
        return str(text) if len(text) <= 1000 else f"{text[:40]}..."
    path = getattr(source, "filename", None) or getattr(source, "name", None)
    return str(path) if isinstance(path, (str, os.PathLike)) else "The image"


def first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@contextmanager
def _opened(source: Any, timeout: float | None) -> Iterator[Any]:
    """A file that can be read from its beginning; PIL images as they are."""
    if isinstance(source, PIL.Image.Image):
        yield source
    elif isinstance(source, (bytes, bytearray, memoryview)):
        yield io.BytesIO(source)
    elif hasattr(source, "read"):
        if isinstance(source, io.TextIOBase):
            raise ValueError('it is open as text; open it with mode "rb"')
        yield source if getattr(source, "seekable", lambda: False)() else io.BytesIO(source.read())
    elif isinstance(source, str) and re.match(r"https?://", source):
        answer = huggingface_hub.get_session().get(source, timeout=timeout, follow_redirects=True)
        answer.raise_for_status()
        yield io.BytesIO(answer.content)
    elif isinstance(source, str) and source.startswith("data:"):
        yield io.BytesIO(base64.b64decode(source.partition(",")[2]))
    elif (embedded := _base64_of(source)) is not None:
        yield io.BytesIO(embedded)
    else:
        with open(source, "rb") as file:
            yield file


def _base64_of(source: Any) -> bytes | None:
    """The bytes of an image that is given as text, as `transformers.pipeline` takes it. No path is as long as that."""
    if not isinstance(source, str) or len(source) < 64 or os.path.exists(source):
        return None
    try:
        return base64.b64decode("".join(source.split()), validate=True)
    except ValueError:
        return None


def _loaded(image: PIL.Image.Image) -> PIL.Image.Image:
    # Opening reads the header only.
    image.load()
    return image


def _decode(file: Any, max_pixels: int | None) -> PIL.Image.Image:
    try:
        return _load(file, max_pixels)
    except (ValueError, zlib.error):
        file.seek(0)
        pixels = _png_without_texts(file.read())
        if pixels is None:
            raise
        return _load(pixels, max_pixels)


def _load(file: Any, max_pixels: int | None) -> PIL.Image.Image:
    if max_pixels is None:
        image = PIL.Image.open(file)
        image.load()
        return image
    with _changing_the_limit:
        before = PIL.Image.MAX_IMAGE_PIXELS
        # The check is ours: Pillow's begins to warn at its limit, and refuses at twice as much.
        PIL.Image.MAX_IMAGE_PIXELS = None
        try:
            image = PIL.Image.open(file)
            if image.width * image.height > max_pixels:
                found = image.width * image.height
                raise PIL.Image.DecompressionBombError(f"{found} pixels exceed {max_pixels} pixels")
            # Some formats are checked again when they are decoded.
            image.load()
        finally:
            PIL.Image.MAX_IMAGE_PIXELS = before
    return image


def _png_without_texts(data: bytes) -> io.BytesIO | None:
    """A PNG file without its texts and colour profile; None for other files."""
    if not data.startswith(PNG):
        return None
    kept, place = [PNG], len(PNG)
    while place + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        if kind not in PNG_TEXTS:
            kept.append(data[place : place + 12 + length])
        place += 12 + length
    return io.BytesIO(b"".join(kept))


def _turned(image: PIL.Image.Image, upright: bool, size: tuple[int, int] | None) -> PIL.Image.Image:
    turn = _turn_of(image)
    if turn is None:
        return image
    stored = (image.height, image.width)
    turned = stored[::-1] if turn in (TURNS[5], TURNS[6], TURNS[7], TURNS[8]) else stored
    if size is not None and (size == stored) != (size == turned):
        upright = size == turned
    if not upright:
        return image
    image = image.transpose(turn)
    # What has been turned must not be turned again.
    for name in ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"):
        image.info.pop(name, None)
    return image


def orientation_of(path: str | os.PathLike) -> tuple[int, tuple[int, int]]:
    """How EXIF says that a photo is to be turned, 1 if it does not, and (height, width) of the pixels as stored.

    Only the beginning of the file is read. A file that cannot be read gives 1 and (0, 0).
    """
    try:
        with PIL.Image.open(path) as photo:
            return int(photo.getexif().get(ORIENTATION, 1)), (photo.height, photo.width)
    except Exception:  # whatever is odd about EXIF is no reason to stop
        return 1, (0, 0)


def _turn_of(image: PIL.Image.Image) -> Transpose | None:
    try:
        return TURNS.get(int(image.getexif().get(ORIENTATION, 1)))
    except Exception:  # EXIF is written by everybody, and the pixels do not depend on it
        return None


def _too_large(name: str, message: str) -> str:
    numbers = [int(number) for number in re.findall(r"(\d+) pixels", message)]
    found, limit = f"{numbers[0]:,}" if numbers else "too many", f"{numbers[-1]:,}" if len(numbers) > 1 else "Pillow's"
    return (
        f"{name} has {found} pixels, more than the limit of {limit}, as a small file can stand for more than fits into "
        f"memory. If you trust it, raise the limit: max_pixels={numbers[0] if numbers else '...'}, --max-pixels on the "
        "command line, or PIL.Image.MAX_IMAGE_PIXELS for the photos of a data set."
    )
