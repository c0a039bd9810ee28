"""The one finder of files: in folders, by the stem of a name, and by names that another computer has written."""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from ..models.image_files import IMAGE_SUFFIXES, files_in, is_hidden, natural_order

# How many missing files a message names.
NUM_NAMED = 10


def folders_in(folder: Path) -> list[Path]:
    """The folders in a folder, in natural order, but for hidden ones."""
    return sorted((path for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name)), key=natural_order)


def existing_file(path: Path) -> Path | None:
    """The file of this name, or else the only one whose name differs in case alone; None if there is none."""
    if path.is_file():
        return path
    similar = Folders().similar(path)
    return similar if similar is not None and similar.is_file() else None


def first_file(folders: Iterable[Path], names: Sequence[str]) -> Path | None:
    """The first of some files that is there; all names are looked for in a folder before the next one."""
    found = (existing_file(folder / name) for folder in folders for name in names)
    return next((path for path in found if path is not None), None)


def list_images(folder: Path) -> list[Path]:
    """The images in a folder, in natural order. Raises ValueError if there is none, or two of one stem."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; photos are expected there")
    paths = files_in(folder, IMAGE_SUFFIXES)
    if not paths:
        raise ValueError(f"{folder} holds no image; expected files ending in {sorted(IMAGE_SUFFIXES)}")
    by_stem(paths)
    return paths


def by_stem(paths: Iterable[Path], ending: str = "") -> dict[str, Path]:
    """Stem, without `ending` -> file. Raises ValueError if two files have one stem."""
    paths = list(paths)
    stems = [path.stem.removesuffix(ending) for path in paths]
    [(stem, count)] = Counter(stems).most_common(1) or [("", 0)]
    if count > 1:
        raise ValueError(
            f"{paths[0].parent} holds {count} images called {stem}, and one map of ids cannot belong to both; rename "
            "one"
        )
    return dict(zip(stems, paths, strict=True))


def with_maps(
    photos: Sequence[Path], folder: Path, suffixes: Sequence[str] = (".png",), ending: str = ""
) -> list[tuple[Path, Path]]:
    """Each image and the map of its stem in `folder`. Raises ValueError if there are images without one.

    Args:
        ending: what both names may end in besides.
    """
    maps = by_stem(files_in(folder, suffixes), ending)
    missing = [path.name for path in photos if path.stem.removesuffix(ending) not in maps]
    if missing:
        raise ValueError(
            f"{len(missing)} images in {photos[0].parent} have no PNG of the same name in {folder}, first "
            f"{named(missing)}"
        )
    return [(path, maps[path.stem.removesuffix(ending)]) for path in photos]


def named(names: Sequence[object]) -> str:
    """The first names of a list in words."""
    more = f" and {len(names) - NUM_NAMED} more" if len(names) > NUM_NAMED else ""
    return ", ".join(str(name) for name in names[:NUM_NAMED]) + more


class Folders:
    """Listings of folders, each read once: faster than asking for each of many files."""

    def __init__(self) -> None:
        self._listed: dict[str, dict[str, list[str]]] = {}
        self._names: dict[str, frozenset[str]] = {}

    def has(self, path: str) -> bool:
        folder, name = os.path.split(path)
        self._list(folder)
        return name in self._names[folder]

    def similar(self, path: str | Path) -> Path | None:
        """The only file whose name differs in case, or in the form of its accents, alone."""
        folder, name = os.path.split(path)
        self._list(folder)
        found = self._listed[folder].get(_folded(name), [])
        return Path(folder, found[0]) if len(found) == 1 else None

    def _list(self, folder: str) -> None:
        if folder not in self._names:
            names = os.listdir(folder or ".") if os.path.isdir(folder or ".") else []
            self._names[folder] = frozenset(names)
            self._listed[folder] = {}
            for name in names:
                self._listed[folder].setdefault(_folded(name), []).append(name)


def spellings(name: str) -> Iterator[str]:
    """What a name that another computer has written may be here: as it is, decoded, and ever shorter ends of it."""
    yield name
    for decoded in dict.fromkeys((name, unquote(name.partition("?d=")[2] or name.partition("?")[0] or name))):
        slashed = decoded.replace("\\", "/")
        yield slashed
        parts = [part for part in slashed.split("/") if part not in ("", ".", "..")]
        yield from ("/".join(parts[start:]) for start in range(len(parts)))


def locate(names: Sequence[str], folders: Sequence[Path], source: Path, what: str = "photos") -> list[str]:
    """The files that `source` names, which count from one of the folders.

    All are looked for in the folder that has most of them as they are named. Those that are not there are looked for
    under the other `spellings` of their names in all folders, and then by name alone below these folders, where it must
    be unique.

    Raises ValueError that names those that are missing, and says what was tried.
    """
    listings = Folders()
    best = max(folders, key=lambda folder: sum(listings.has(os.path.join(folder, name)) for name in names[:20]))
    paths = [os.path.join(best, name) for name in names]
    lost = {index: path for index, path in enumerate(paths) if not listings.has(path)}
    if not lost:
        return paths
    # Above the file's own folder lie other people's photos, unless that holds the annotations alone.
    above = () if source.parent.name.lower().startswith("annotation") else source.parent.parents
    below = Below([folder for folder in folders if folder not in above])
    missing = {}
    for index, path in lost.items():
        found = find(names[index], folders, listings) or below.only(names[index])
        if found is None:
            missing[index] = path + below.why_not(names[index])
        else:
            paths[index] = found
    # Files of one name in two folders are not the same: what another entry has is none of this one's.
    entries: dict[str, set[str]] = {}
    for name, path in zip(names, paths, strict=True):
        entries.setdefault(os.path.realpath(path), set()).add(name)
    for index, path in lost.items():
        if index not in missing and len(entries[os.path.realpath(paths[index])]) > 1:
            missing[index] = f"{path} (there is {paths[index]}, but for another entry)"
    if missing:
        raise ValueError(
            f"{len(missing)} of the {len(names)} {what} that {source} names are missing, first "
            f"{named(list(missing.values()))} (looked in {named([*dict.fromkeys(map(str, folders))])}, for the whole "
            "name, for its end, and by name below); put them there, or take them out of the file"
        )
    return paths


def located(records: Any, column: str, folders: Sequence[Path], source: Path, what: str = "photos") -> tuple[Any, str]:
    """A table with the whole paths of the files in `column`, or as it is and their folder if that is all it takes."""
    names = records[column][:]
    paths = locate(names, folders, source, what)
    for folder in folders:
        if all(path == os.path.join(folder, name) for path, name in zip(paths, names, strict=True)):
            return records, str(folder)
    return records.remove_columns(column).add_column(column, paths), ""


def find(name: str, folders: Sequence[Path], listings: Folders) -> str | None:
    """The first file that is there under one of the `spellings` of a name."""
    for spelling in dict.fromkeys(spellings(name)):
        for folder in folders if spelling else ():
            path = os.path.join(folder, spelling)
            found = path if listings.has(path) else listings.similar(path)
            if found is not None and os.path.isfile(found):
                return str(found)
    return None


class Below:
    """The files in and below folders by their names, which are listed when the first is asked for."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = folders
        self._paths: dict[str, list[str]] | None = None

    def only(self, name: str) -> str | None:
        found = self._named_like(name)
        return found[0] if len(found) == 1 else None

    def why_not(self, name: str) -> str:
        found = self._named_like(name)
        return f" (there are {' and '.join(found[:2])})" if found else ""

    def _named_like(self, name: str) -> list[str]:
        if self._paths is None:
            files = [path for folder in self.folders for path in files_in(folder, IMAGE_SUFFIXES, deep=True)]
            self._paths, seen = {}, set()
            for path in files:
                # A folder may lie in another of them.
                if (whole := os.path.realpath(path)) not in seen:
                    seen.add(whole)
                    self._paths.setdefault(_folded(path.name), []).append(str(path))
        return self._paths.get(_folded([*spellings(name)][-1].rsplit("/", 1)[-1]), [])


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
