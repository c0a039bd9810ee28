"""Which photos a command reads, and where its pictures go."""

from collections.abc import Sequence
from pathlib import Path

from ..models.image_files import IMAGE_SUFFIXES, files_in, is_image_file

DEFAULT_PICTURE = Path("result.png")
DEFAULT_FOLDER = Path("predictions")


def find_photos(paths: Sequence[Path], output: Path | None) -> tuple[list[Path], bool]:
    """The photos that are named or lie at any depth of a named folder, and whether these are several.

    Files in the output folder are earlier results, and are left out.

    Raises:
        ValueError: A folder holds no images, or the only photo does not exist.
    """
    photos, has_folder = [], False
    written = (output or DEFAULT_FOLDER).resolve()
    for path in paths:
        if not path.is_dir():
            photos.append(path)
            continue
        has_folder = True
        files = files_in(path, IMAGE_SUFFIXES, deep=True)
        found = [file for file in files if written not in file.resolve().parents]
        if not found:
            raise ValueError(f"the folder {str(path)!r} holds no images ({' '.join(sorted(IMAGE_SUFFIXES))})")
        photos += found
    photos = list(dict.fromkeys(photos))
    if len(photos) == 1 and not photos[0].is_file():
        raise ValueError(f"there is no file {str(photos[0])!r}")
    return photos, has_folder or len(photos) > 1


def picture_paths(photos: list[Path], output: Path | None, several: bool) -> list[Path]:
    """The file that the picture of each photo is written to. No two are the same, and none is a photo.

    Raises:
        ValueError: `output` is no place for these pictures.
    """
    target = output or (DEFAULT_FOLDER if several else DEFAULT_PICTURE)
    if several or target.is_dir() or not target.suffix:
        if target.is_file() or is_image_file(target):
            raise ValueError(f"--output {str(target)!r} is a file; the pictures of several photos need a folder")
        pictures = [target / f"{stem}.png" for stem in _distinct_stems(photos)]
    else:
        check_picture(target, "--output")
        pictures = [target]
    originals = {photo.resolve() for photo in photos}
    for picture in pictures:
        if picture.resolve() in originals:
            raise ValueError(f"{str(picture)!r} is one of the photos and would be overwritten: choose another --output")
    return pictures


def check_picture(path: Path, option: str) -> None:
    """Raises ValueError if Pillow cannot write a picture to a file of this name."""
    from PIL import Image

    Image.init()
    if Image.registered_extensions().get(path.suffix.lower()) not in Image.SAVE:
        raise ValueError(f"{option} {str(path)!r}: {path.suffix} is no image format; use .png or .jpg")


def _distinct_stems(photos: list[Path]) -> list[str]:
    """The names of photos without suffix; a name that was there before gets a number, as in street_2."""
    taken: dict[str, None] = {}
    for photo in photos:
        stem, number = photo.stem, 2
        while stem in taken:
            stem, number = f"{photo.stem}_{number}", number + 1
        taken[stem] = None
    return list(taken)
