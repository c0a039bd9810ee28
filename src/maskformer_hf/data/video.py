"""Videos with their objects: YouTube-VIS's jsons and DAVIS's folders; whole, as single frames, and as clips.

`open_dataset` gives the frames, which are images like others; `videos_in` what they are frames of.

Shapes: V videos, T frames of a clip, N objects, P planes, H W pixels.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypedDict

import numpy as np
import torch
from torch.utils.data import Dataset
from torchvision import tv_tensors

from .coco_json import facts_of, read_categories, required_field
from .files import IMAGE_SUFFIXES, missing_files, read_id_map, read_photo
from .records import Parsed, ProblemCounter, arrow_records, read_json
from .run_lengths import planes_from_run_lengths, run_lengths_of
from .sample import Problem, Sample, SegmentationDataset, Task
from .views import Cached

DAVIS_VOID = 255


class ClipSample(TypedDict):
    """Some frames of a video; see `Sample`, whose form each of them has.

    video: (T, 3, H, W) uint8 RGB.
    planes: (T, P, H, W) int32. A value means the same object in all frames.
    labels: (N,) int64. Objects that no frame shows stay, as in `Sample`: collation drops them.
    is_crowd: (N,) bool.
    """

    video: tv_tensors.Video
    planes: tv_tensors.Mask
    labels: torch.Tensor
    is_crowd: torch.Tensor
    name: str


class Objects(NamedTuple):
    """The objects of a video: their classes, which are crowds, and of each the RLE of every frame, or None."""

    labels: list[int]
    is_crowd: list[bool]
    segmentations: list[list[Any]]


class VideoDataset(Protocol):
    """What readers of videos give. Frames are decoded when asked for.

    Attributes:
        id2label: Names of the classes, numbered from 0 without gaps.
        frame_paths: The files of each video's frames, in order.
        problems: Annotations that were left out.
    """

    id2label: dict[int, str]
    frame_paths: list[list[str]]
    problems: list[Problem]

    def __len__(self) -> int:
        """Videos, V."""
        ...

    def name(self, index: int) -> str: ...

    def objects(self, index: int) -> Objects: ...

    def clip(self, index: int, frames: Sequence[int]) -> ClipSample:
        """The frames of these numbers, from 0, of a video."""
        ...


class YoutubeVis:
    """The json of YouTube-VIS: videos with file_names, and annotations with a segmentation a frame, or null.

    Args:
        json_path: the json. Its categories, in the order of their ids, are the classes.
        images: folder that the file names count from; if None `JPEGImages/` next to the json, or the json's own folder.

    Attributes:
        records: the Arrow table, one row a video: file_names, height, width, and of each object its label, is_crowd and
            counts (COCO's compressed run lengths of each frame, or None).
        problems: annotations left out: of a video that the json does not list, and without a pixel in any frame.
    """

    def __init__(self, json_path: str | Path, images: str | Path | None = None) -> None:
        self.path = Path(json_path)
        if not self.path.is_file():
            raise ValueError(f"there is no json {str(self.path)!r}")
        self.records, facts = arrow_records(self.path, "youtube_vis", parse_youtube_vis)
        self.id2label: dict[int, str] = dict(enumerate(facts["names"]))
        self.problems = [Problem(*problem) for problem in facts["problems"]]
        names: list[list[str]] = self.records["file_names"][:]
        places = [Path(images)] if images else [self.path.parent / "JPEGImages", self.path.parent]
        found = []
        for folder in places:
            paths = [[os.path.join(folder, name) for name in video] for video in names]
            missing = missing_files(path for video in paths for path in video)
            found.append((len(missing), missing, paths))
        count, missing, self.frame_paths = min(found, key=lambda item: item[0])
        if count:
            raise ValueError(f"{count} frames that {self.path} names are missing, first {missing[0]}")

    def __len__(self) -> int:
        return len(self.records)

    def name(self, index: int) -> str:
        return os.path.dirname(self.frame_paths[index][0]) or str(self.path)

    def objects(self, index: int) -> Objects:
        record = self.records[index]
        size = [record["height"], record["width"]]
        segmentations = [
            [None if item is None else {"size": size, "counts": item} for item in counts] for counts in record["counts"]
        ]
        return Objects(record["label"], record["is_crowd"], segmentations)

    def clip(self, index: int, frames: Sequence[int]) -> ClipSample:
        record = self.records[index]
        size = (record["height"], record["width"])
        planes = []
        for frame in frames:
            present = [number for number, counts in enumerate(record["counts"]) if counts[frame] is not None]
            planes_PHW = planes_from_run_lengths([record["counts"][number][frame] for number in present], size)
            planes.append(np.array([0, *(number + 1 for number in present)], dtype=np.int32)[planes_PHW])
        return {
            "video": _read_frames([self.frame_paths[index][frame] for frame in frames], size),
            "planes": _stack_planes(planes),
            "labels": torch.tensor(record["label"], dtype=torch.int64),
            "is_crowd": torch.tensor(record["is_crowd"], dtype=torch.bool),
            "name": self.name(index),
        }


class DavisFolder:
    """DAVIS's folders: `JPEGImages/VIDEO/*.jpg`, and `Annotations/VIDEO/*.png` of the same names.

    The PNGs' palette indices are the objects: 0 none, 255 void, which is taken for none. All are of one class,
    "object". A folder of one resolution below both, such as `480p/`, is found.

    Args:
        root: folder that holds both.
        names: the videos; all that are annotated if None.
    """

    def __init__(self, root: str | Path, names: Sequence[str] | None = None) -> None:
        self.root = Path(root)
        images, annotations = (_davis_level(self.root / name) for name in ("JPEGImages", "Annotations"))
        chosen = sorted(path.name for path in annotations.iterdir() if path.is_dir()) if names is None else list(names)
        if not chosen:
            raise ValueError(f"{annotations} holds no folder of a video")
        self.id2label = {0: "object"}
        self.problems: list[Problem] = []
        self.names = chosen
        self.frame_paths: list[list[str]] = []
        self.map_paths: list[list[str]] = []
        for name in chosen:
            folder = images / name
            if not folder.is_dir():
                raise ValueError(f"there is no folder {folder} with the frames of video {name!r}")
            frames = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
            maps = [annotations / name / f"{path.stem}.png" for path in frames]
            missing = [str(path) for path in maps if not path.is_file()]
            if missing or not frames:
                raise ValueError(
                    f"{len(missing)} of the {len(frames)} frames in {folder} have no PNG of their name in "
                    f"{annotations / name}{f', first {missing[0]}' if missing else ''}"
                )
            self.frame_paths.append([str(path) for path in frames])
            self.map_paths.append([str(path) for path in maps])
        self._ids: dict[int, list[int]] = {}

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        return os.path.dirname(self.frame_paths[index][0])

    def objects(self, index: int) -> Objects:
        from pycocotools import mask as run_lengths

        ids = self._object_ids(index)
        segmentations: list[list[Any]] = [[] for _ in ids]
        for path in self.map_paths[index]:
            map_HW = read_id_map(path)
            for number, object_id in enumerate(ids):
                mask_HW = map_HW == object_id
                rle = run_lengths.encode(np.asfortranarray(mask_HW.astype(np.uint8))) if mask_HW.any() else None
                segmentations[number].append(rle)
        return Objects([0] * len(ids), [False] * len(ids), segmentations)

    def clip(self, index: int, frames: Sequence[int]) -> ClipSample:
        ids = self._object_ids(index)
        # Ids have 8 bits.
        number_of_id = np.zeros(256, dtype=np.int32)
        number_of_id[ids] = np.arange(1, len(ids) + 1)
        planes = [number_of_id[read_id_map(self.map_paths[index][frame])][None] for frame in frames]
        video = _read_frames([self.frame_paths[index][frame] for frame in frames], planes[0].shape[1:])
        return {
            "video": video,
            "planes": _stack_planes(planes),
            "labels": torch.zeros(len(ids), dtype=torch.int64),
            "is_crowd": torch.zeros(len(ids), dtype=torch.bool),
            "name": self.name(index),
        }

    def _object_ids(self, index: int) -> list[int]:
        if index not in self._ids:
            found: set[int] = set()
            for path in self.map_paths[index]:
                map_HW = read_id_map(path)
                if map_HW.dtype != np.uint8:
                    raise ValueError(f"{path} has pixels of type {map_HW.dtype}; DAVIS's maps have 8 bits")
                found |= set(np.unique(map_HW).tolist())
            self._ids[index] = sorted(found - {0, DAVIS_VOID})
        return self._ids[index]


class VideoFrames(Dataset[Sample]):
    """The frames of all videos, one after the other, as images: what a model of images trains on and is measured by.

    Attributes:
        videos: the `VideoDataset`.
    """

    task: Task = "instance"

    def __init__(self, videos: VideoDataset) -> None:
        self.videos = videos
        self.id2label = videos.id2label
        self.label_ids_to_fuse: list[int] = []
        self.problems = videos.problems
        self.image_paths = [path for video in videos.frame_paths for path in video]
        self._starts = np.cumsum([0, *(len(video) for video in videos.frame_paths)])

    def __len__(self) -> int:
        return len(self.image_paths)

    def place(self, index: int) -> tuple[int, int]:
        """The video that an image is from, and its number there."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        video = int(np.searchsorted(self._starts, index, side="right")) - 1
        return video, index - int(self._starts[video])

    def __getitem__(self, index: int) -> Sample:
        video, frame = self.place(index)
        clip = self.videos.clip(video, [frame])
        planes_PHW = clip["planes"].as_subclass(torch.Tensor)[0]
        seen = torch.bincount(planes_PHW.flatten(), minlength=len(clip["labels"]) + 1)[1:] > 0
        # Objects of other frames have no place in an image's segments.
        numbers = torch.cat((torch.zeros(1, dtype=torch.int64), seen.cumsum(0) * seen)).to(torch.int32)
        return {
            "image": tv_tensors.Image(clip["video"].as_subclass(torch.Tensor)[0]),
            "planes": tv_tensors.Mask(numbers[planes_PHW.long()]),
            "labels": clip["labels"][seen],
            "is_crowd": clip["is_crowd"][seen],
            "name": self.image_paths[index],
        }


def videos_in(dataset: SegmentationDataset) -> VideoDataset | None:
    """The videos whose frames a data set is; None of photos, and of frames whose classes or task were changed."""
    if isinstance(dataset, Cached):
        dataset = dataset.dataset
    return dataset.videos if isinstance(dataset, VideoFrames) else None


class Clips(Dataset[ClipSample]):
    """Of each video some frames near one another, drawn anew whenever it is asked for, as Mask2Former-VIS trains.

    A reference frame is drawn, and then the others among those at most `frame_range` before or behind it, in the order
    of the video. Of a shorter video a frame comes more than once.

    Args:
        num_frames: T. frame_range: the original's 20.

    Draws from torch's global generator, which `SampleStream` seeds.
    """

    def __init__(self, videos: VideoDataset, num_frames: int = 2, frame_range: int = 20) -> None:
        if num_frames < 1 or frame_range < 1:
            raise ValueError(f"num_frames is {num_frames}, frame_range {frame_range}; both must be at least 1")
        self.videos = videos
        self.num_frames = num_frames
        self.frame_range = frame_range

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> ClipSample:
        length = len(self.videos.frame_paths[index])
        reference = int(torch.randint(length, ()))
        first, stop = max(0, reference - self.frame_range), min(length, reference + self.frame_range + 1)
        others = [frame for frame in range(first, stop) if frame != reference] or [reference]
        order = torch.randperm(len(others)).tolist()
        chosen = [others[order[number % len(others)]] for number in range(self.num_frames - 1)]
        return self.videos.clip(index, sorted([reference, *chosen]))


class ClipTransform:
    """An augmentation of images for clips: whatever it draws, it does the same to all frames."""

    def __init__(self, transform: Callable[[Sample], Sample]) -> None:
        self.transform = transform

    def __call__(self, clip: ClipSample) -> ClipSample:
        planes_TPHW = clip["planes"].as_subclass(torch.Tensor)
        # Images may have leading axes, and planes are resized and cut one by one.
        sample = self.transform(
            {
                "image": tv_tensors.Image(clip["video"].as_subclass(torch.Tensor)),
                "planes": tv_tensors.Mask(planes_TPHW.flatten(0, 1)),
                "labels": clip["labels"],
                "is_crowd": clip["is_crowd"],
                "name": clip["name"],
            }
        )
        planes = sample["planes"].as_subclass(torch.Tensor).unflatten(0, planes_TPHW.shape[:2])
        return {
            **clip,
            "video": tv_tensors.Video(sample["image"].as_subclass(torch.Tensor)),
            "planes": tv_tensors.Mask(planes),
        }


def parse_youtube_vis(path: Path) -> Parsed:
    import pyarrow

    content = read_json(path, ("videos", "annotations", "categories"))
    categories = read_categories(content, path)
    label_of_id = {category_id: label for label, ids in enumerate(categories.ids) for category_id in ids}
    problems = ProblemCounter()
    rows: dict[Any, dict[str, Any]] = {}
    for video in content["videos"]:
        video_id = required_field(video, "id", f"a video of {path}")
        if video_id in rows:
            raise ValueError(f"{path} has two videos of id {video_id}")
        names, height, width = (
            required_field(video, key, f"video {video_id} of {path}") for key in ("file_names", "height", "width")
        )
        if not names:
            raise ValueError(f"video {video_id} of {path} has no frames; leave it out")
        rows[video_id] = {"file_names": names, "height": height, "width": width, "label": [], "is_crowd": []}
        rows[video_id]["counts"] = []
    if not rows:
        raise ValueError(f"{path} lists no videos")
    # The jsons of YouTube-VIS's hidden test sets say null.
    for number, annotation in enumerate(content["annotations"] or ()):
        where = f"annotation {annotation.get('id', f'number {number}')} of {path}"
        video_id = required_field(annotation, "video_id", where)
        if video_id not in rows:
            problems.add("annotation of a video that the json does not list", f"{where}: video {video_id}")
            continue
        row = rows[video_id]
        category_id = required_field(annotation, "category_id", where)
        if category_id not in label_of_id:
            raise ValueError(f"{where} has category_id {category_id}, which the json's categories do not list")
        segmentations = required_field(annotation, "segmentations", where)
        if len(segmentations) != len(row["file_names"]):
            raise ValueError(
                f"{where} has {len(segmentations)} segmentations for the {len(row['file_names'])} frames of video "
                f"{video_id}; write null where the object is out of sight"
            )
        size = (row["height"], row["width"])
        # An empty mask is out of sight, and no problem in a frame.
        unseen = ProblemCounter()
        counts = [
            None if not item else run_lengths_of(item, size, f"{where}, frame {frame}", unseen)
            for frame, item in enumerate(segmentations)
        ]
        if not any(item is not None for item in counts):
            problems.add("annotation without a pixel in any frame", where)
            continue
        row["label"].append(label_of_id[category_id])
        row["is_crowd"].append(bool(annotation.get("iscrowd", 0)))
        row["counts"].append(counts)
    schema = pyarrow.schema(
        {
            "file_names": pyarrow.list_(pyarrow.string()),
            "height": pyarrow.int32(),
            "width": pyarrow.int32(),
            "label": pyarrow.list_(pyarrow.int32()),
            "is_crowd": pyarrow.list_(pyarrow.bool_()),
            "counts": pyarrow.list_(pyarrow.list_(pyarrow.binary())),
        }
    )
    return schema, rows.values(), facts_of(categories, problems)


def _read_frames(paths: Sequence[str], size: tuple[int, ...]) -> tv_tensors.Video:
    height, width = size
    return tv_tensors.Video(
        torch.stack([read_photo(path, (height, width)).as_subclass(torch.Tensor) for path in paths])
    )


def _stack_planes(planes: Sequence[np.ndarray]) -> tv_tensors.Mask:
    """(T, P, H, W) of frames whose number of planes may differ; missing ones are empty."""
    most = max(len(frame) for frame in planes)
    padded = [np.pad(frame, ((0, most - len(frame)), (0, 0), (0, 0))) for frame in planes]
    return tv_tensors.Mask(torch.from_numpy(np.stack(padded).astype(np.int32, copy=False)))


def _davis_level(folder: Path) -> Path:
    """The folder that holds those of the videos: itself, or its only one, which names a resolution."""
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    children = [path for path in folder.iterdir() if path.is_dir()]
    if len(children) == 1 and any(path.is_dir() for path in children[0].iterdir()):
        return children[0]
    return folder
