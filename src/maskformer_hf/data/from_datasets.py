"""Any data set of the `datasets` library with images and masks, read or streamed."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch.utils.data import Dataset

from .dataset_columns import Columns, find_columns, names_of_classes, undecoded
from .dataset_rows import Row, Rows
from .relabel import as_task
from .sample import Sample, SegmentationDataset, Task
from .text_files import read_json

if TYPE_CHECKING:
    import datasets


class DatasetsReader(Dataset[Sample]):
    """The samples of a `datasets.Dataset`."""

    def __init__(self, table: "datasets.Dataset", rows: Rows) -> None:
        self.table = table
        self.rows = rows
        self.task: Task = rows.task
        self.id2label: dict[int, str] = dict(enumerate(rows.names))
        self.label_ids_to_fuse: list[int] = rows.stuff

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Sample:
        return self.rows.sample(self.table[index], f"row {index}")


class StreamedReader(Dataset[Sample]):
    """The samples of a `datasets.IterableDataset`, which has no length and no random access.

    Training reads it through `streamed_loader`. An index is a pair (number, row): the row becomes a sample.
    """

    def __init__(self, table: "datasets.IterableDataset", rows: Rows) -> None:
        self.table = table
        self.rows = rows
        self.task: Task = rows.task
        self.id2label: dict[int, str] = dict(enumerate(rows.names))
        self.label_ids_to_fuse: list[int] = rows.stuff

    def __len__(self) -> int:
        raise TypeError(
            "a stream has no length; to evaluate or check streamed data, take some of it: "
            "maskformer_hf.data.FirstRows(dataset, 100)"
        )

    def __getitem__(self, index: Any) -> Sample:
        number, row = index
        return self.rows.sample(row, f"streamed row {number}")

    def __iter__(self) -> Iterator[Sample]:
        return (self[item] for item in enumerate(self.table))


def from_datasets(
    dataset: "datasets.Dataset | datasets.IterableDataset",
    image_column: str = "auto",
    label_column: str = "auto",
    *,
    class_column: str = "auto",
    task: Task | None = None,
    id2label: Mapping[int, str] | None = None,
    stuff_classes: Sequence[str] = (),
    void_ids: Sequence[int] = (255,),
) -> SegmentationDataset:
    """Images and masks of a `datasets.Dataset`, or of an `IterableDataset` (streamed), as samples.

    The label column may hold:
    - a map of class ids (an image or an array): semantic;
    - a map of segment ids, with a column that lists the segments of each row ({id, category_id, iscrowd}, as COCO's
      `segments_info`): panoptic, or instance if asked for. A map of three channels is red + 256 green + 65536 blue; id
      0 is no segment;
    - a map whose red is the class and whose green numbers the objects from 1, as in the examples of transformers. It is
      read so if task is "instance" or "panoptic" and no column lists segments;
    - COCO's annotations, a list of {segmentation, category_id, iscrowd}: instance;
    - a list of masks, with a column of their classes: instance.

    Args:
        image_column, label_column, class_column: found by their types, then by their names, unless given.
        task: as above if None. `as_task` says how one task is made of another.
        id2label: names of the ids in the data, which may have gaps. None if the classes are of type `ClassLabel`.
        stuff_classes: names of the classes that are stuff, for panoptic data.
        void_ids: ids that mean void, unless they are in `id2label`. Negative ids in maps always do.

    Raises ValueError that lists the columns if it is not clear which one is meant.
    """
    import datasets

    features = dataset.features
    if features is None:
        # A stream after `map` does not know its types, so they are taken from its first row.
        features = datasets.Dataset.from_list(cast("list[Row]", list(dataset.take(1)))).features
        dataset = dataset.cast(features)
    columns = find_columns(features, image_column, label_column, class_column)
    names = names_of_classes(features, columns) if id2label is None else id2label
    absent = sorted(set(stuff_classes) - set(names.values()))
    if absent:
        raise ValueError(f"stuff_classes {absent} are not among the classes {sorted(names.values())}")
    rows = Rows(
        columns,
        task=_task_of_rows(columns, task),
        id2label={int(category): name for category, name in names.items()},
        stuff=stuff_classes,
        void_ids=void_ids,
    )
    used = [column for column in (columns.image, columns.label, columns.classes) if column]
    table = dataset.select_columns(used)
    for column in used:
        table = table.cast_column(column, undecoded(features[column]))
    if isinstance(dataset, datasets.IterableDataset):
        return as_task(StreamedReader(cast("datasets.IterableDataset", table), rows), task)
    return as_task(DatasetsReader(cast("datasets.Dataset", table), rows), task)


def _task_of_rows(columns: Columns, task: Task | None) -> Task:
    """The finest task that the rows can teach, as far as it is wanted."""
    if columns.kind != "ids":
        return "instance"
    if columns.classes:
        return "instance" if task == "instance" else "panoptic"
    return task or "semantic"


DATASETS_OPTIONS = ("image_column", "label_column", "class_column", "id2label", "stuff_classes", "void_ids")
"""Arguments of `from_datasets` that `open_datasets` hands on."""


def open_datasets(
    root: str | Path, split: str, task: Task | None = None, *, streaming: bool = False, **options: Any
) -> SegmentationDataset:
    """A folder that `save_to_disk` wrote, or whatever `load_dataset` opens: a repository of the Hub or a folder.

    Columns are found by their types. Class names that the columns lack are read from `id2label.json`, next to
    the data or in the Hub's repository: {"0": "road", ...}.

    Args:
        options: arguments of `from_datasets`, those in `DATASETS_OPTIONS`.
    """
    import datasets

    root = Path(root)
    is_saved = any((root / name).is_file() for name in ("dataset_dict.json", "state.json"))
    if is_saved:
        loaded = datasets.load_from_disk(str(root))
        if isinstance(loaded, datasets.DatasetDict):
            if split not in loaded:
                raise ValueError(f"{root} has no split {split!r}; there are {list(loaded)}")
            loaded = loaded[split]
        if streaming:
            loaded = loaded.to_iterable_dataset()
    else:
        try:
            loaded = datasets.load_dataset(str(root), split=split, streaming=streaming)
        except (OSError, ValueError) as error:
            raise ValueError(f"the library datasets cannot open split {split!r} of {root}: {error}") from error
    if options.get("id2label") is None:
        options["id2label"] = _id2label_file(root)
    return from_datasets(loaded, task=task, **options)


def _id2label_file(root: Path) -> dict[int, str] | None:
    path = root / "id2label.json"
    if not root.is_dir():
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError

        try:
            path = Path(hf_hub_download(str(root), path.name, repo_type="dataset"))
        except EntryNotFoundError:
            return None
    if not path.is_file():
        return None
    try:
        return {int(category): str(name) for category, name in read_json(path).items()}
    except (ValueError, AttributeError) as error:
        raise ValueError(f'{path} is not of the form {{"0": "name", ...}}: {error}') from error
