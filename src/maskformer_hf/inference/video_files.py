"""Video files and folders of frames, read and written frame by frame, so that none is in memory as a whole.

A folder of frames needs Pillow alone; files such as mp4 are decoded and encoded by PyAV, which brings its own ffmpeg.
"""

import struct
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..output_files import whole_file

if TYPE_CHECKING:  # the command line reads this file before it knows that it needs more
    from PIL import Image

VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpg", ".webm"})
FRAMES_PER_SECOND = Fraction(10)
"""The rate of a video that is a folder of frames, which has none of its own."""


class VideoFile:
    """The frames of a video file, RGB, decoded anew whenever it is iterated over.

    Attributes:
        frames_per_second: as the file says.

    Raises ValueError for a file that is no video, a damaged one, and where PyAV is not installed.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with self._open() as container:
            stream = container.streams.video[0]
            self.frames_per_second = Fraction(stream.average_rate or FRAMES_PER_SECOND)
            # 0 where the container does not tell.
            self.stated_frames = int(stream.frames)

    def __iter__(self) -> "Iterator[Image.Image]":
        with self._open() as container:
            try:
                for frame in container.decode(video=0):
                    yield upright_frame(frame)
            except _av().FFmpegError as error:
                raise ValueError(f"the video {str(self.path)!r} is damaged: {error}") from error

    def _open(self) -> Any:
        av = _av()
        if not self.path.is_file():
            raise ValueError(f"there is no file {str(self.path)!r}")
        try:
            container = av.open(str(self.path))
        except av.FFmpegError as error:
            raise ValueError(f"{str(self.path)!r} is no video, or none that ffmpeg reads: {error}") from error
        if not container.streams.video:
            container.close()
            raise ValueError(f"{str(self.path)!r} has no video, only sound or text")
        return container


def upright_frame(frame: Any) -> "Image.Image":
    """A decoded frame as it is to be seen: telephones write what they hold, with a matrix of how to turn and mirror it.

    The matrix (ffmpeg's display matrix, of 3 x 3 int32) sends column x and row y to (a x + c y, b x + d y). It is taken
    for the nearest of the eight ways in which a frame can stand; PyAV's `rotation` tells turns alone.
    """
    from PIL import Image

    image = frame.to_image()
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return image
    a, b, _, c, d = struct.unpack_from("=5i", bytes(matrix))
    is_turned = abs(b) + abs(c) > abs(a) + abs(d)
    if is_turned:
        image = image.transpose(Image.Transpose.TRANSPOSE)
    to_right, to_bottom = (c, b) if is_turned else (a, d)
    if to_right < 0:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if to_bottom < 0:
        image = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    return image


def write_video(path: str | Path, frames: "Iterable[Image.Image]", frames_per_second: Fraction) -> None:
    """Writes frames of one size as a video file that browsers play (H.264); the suffix says the container.

    Its colours are kept for two by two pixels, so an odd last row or column is doubled. The file appears when it is
    whole.
    """
    av = _av()
    try:
        with whole_file(path) as unfinished, av.open(str(unfinished), "w") as container:
            codec = "libvpx-vp9" if unfinished.suffix.lower() == ".webm" else "libx264"
            stream: Any = container.add_stream(codec, frames_per_second, options={"crf": "20"})
            stream.pix_fmt = "yuv420p"
            for number, image in enumerate(frames):
                width, height = (side + side % 2 for side in image.size)
                if number == 0:
                    stream.width, stream.height = width, height
                container.mux(stream.encode(av.VideoFrame.from_image(_doubled_edges(image, width, height))))
            container.mux(stream.encode(None))
    except av.FFmpegError as error:
        raise ValueError(f"the video {str(path)!r} cannot be written: {error}") from error


def _doubled_edges(image: "Image.Image", width: int, height: int) -> "Image.Image":
    image = image.convert("RGB")
    if image.size == (width, height):
        return image
    from PIL import Image

    larger = Image.new("RGB", (width, height))
    # From the largest offset on, so that what is doubled stays at the edge.
    for left in range(width - image.width, -1, -1):
        for top in range(height - image.height, -1, -1):
            larger.paste(image, (left, top))
    return larger


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise ValueError(
            'video files need PyAV: pip install "maskformer-hf[video]", or give and write folders of frames'
        ) from error
    return av
