"""A data set whose samples stay in memory."""

from torch.utils.data import Dataset

from .iterable_stream import is_streamed
from .sample import Sample, SegmentationDataset, Task


class Cached(Dataset[Sample]):
    """Another data set whose samples are kept once they are decoded, in each process that reads it.

    A sample takes 3 + 4 P bytes a pixel. Keeping them pays where decoding competes with training.

    Raises ValueError for a stream, whose samples never come twice.
    """

    def __init__(self, dataset: SegmentationDataset) -> None:
        if is_streamed(dataset):
            raise ValueError("a stream cannot be kept in memory (cache); use format 'datasets'")
        self.dataset = dataset
        self.id2label = dataset.id2label
        self.label_ids_to_fuse = dataset.label_ids_to_fuse
        self.task: Task = dataset.task
        self._samples: dict[int, Sample] = {}

    def __getattr__(self, name: str) -> object:
        # What only some readers have. Unpickling asks before there is a `dataset`.
        if name.startswith("__") or name == "dataset":
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_samples": {}}

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        if index not in self._samples:
            self._samples[index] = self.dataset[index]
        return self._samples[index]
