"""What the readers of images have in common: records in an Arrow table, one row an image."""

import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch.utils.data import Dataset

from .problems import ProblemCounter
from .sample import Problem, Sample, Task


class RecordReader(Dataset[Sample]):
    """A `SegmentationDataset` whose records lie in a table. A subclass makes a sample of a record.

    Args:
        records: the table, a `datasets.Dataset`.
        names: the classes, in the order of their labels.
        stuff: labels of the classes that are stuff.
        image_column: column of the image files.
        image_folder: folder that these count from; "" if they are whole paths.
        problems: annotations that were left out.
        supercategories: class name -> name of its group.
    """

    def __init__(
        self,
        records: Any,
        names: Sequence[str],
        *,
        task: Task,
        stuff: Collection[int] = (),
        image_column: str = "image",
        image_folder: str = "",
        problems: Sequence[Problem] = (),
        supercategories: Mapping[str, str] | None = None,
    ) -> None:
        self.records = records
        self.task: Task = task
        self.id2label: dict[int, str] = dict(enumerate(names))
        self.label_ids_to_fuse: list[int] = sorted(stuff)
        self.image_column = image_column
        self.image_folder = image_folder
        self.left_out = list(problems)
        self.noted = ProblemCounter()
        self.supercategories = dict(supercategories or {})

    @property
    def image_paths(self) -> list[str]:
        return [os.path.join(self.image_folder, name) for name in self.records[self.image_column]]

    @property
    def problems(self) -> list[Problem]:
        """What was left out, and what the samples that have been read so far have shown."""
        return [*self.left_out, *self.noted.problems()]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        return self.sample(self.records[index])

    def sample(self, record: dict[str, Any]) -> Sample:
        raise NotImplementedError
