"""Training batches of streamed data: shuffled in a buffer, shared by processes, and repeated exactly on resume."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from .sample import Sample, SegmentationDataset, Task
from .stream import mix_seed

BUFFER = 1000
"""Rows, still encoded: about 200 MB where they are JPEGs of a megapixel."""


def is_streamed(dataset: SegmentationDataset) -> bool:
    """Whether `dataset` is a stream, or one that was relabelled."""
    table = getattr(dataset, "table", None)
    if table is None:
        return False
    import datasets

    return isinstance(table, datasets.IterableDataset)


@dataclass(frozen=True)
class StreamPart:
    """Which samples of an endless stream are read, and which of their batches one process gets.

    Attributes:
        batch_size: samples of a batch.
        start, stop: samples number `start` to `stop - 1`; multiples of batch_size * num_processes.
        process_index, num_processes: batch k of all goes to process k % num_processes.
        buffer_size: rows among which the next one is drawn.
    """

    batch_size: int
    seed: int
    start: int
    stop: int
    process_index: int = 0
    num_processes: int = 1
    buffer_size: int = BUFFER


def streamed_loader(
    dataset: SegmentationDataset,
    transform: Callable[[Sample], Sample],
    part: StreamPart,
    *,
    collate: Callable[[list[Sample]], Any],
    workers: int = 0,
    pin_memory: bool = False,
) -> DataLoader[Any]:
    """The batches of a part of a stream; the counterpart of `SampleStream`.

    If the number of shards (files, mostly) is a multiple of the number of processes, each process reads its own shards,
    and which samples it sees depends on how many processes there are. Otherwise each reads all rows, and the batches
    are the same whatever their number.

    In each repetition the shards come in another order, and each row is drawn from a buffer. All this is a function of
    seed and repetition alone. To begin at `part.start`, the rows before it are read again, but neither decoded nor
    augmented. This process reads the rows, worker processes decode and augment them.
    """
    return DataLoader(
        _Samples(dataset, transform, part.seed),
        batch_sampler=_Batches(dataset.table, part),  # pyrefly: ignore[missing-attribute, bad-argument-type]
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin_memory,
    )


class _Samples(Dataset[Sample]):
    """What worker processes do: they make an augmented sample of (number, row)."""

    def __init__(self, dataset: SegmentationDataset, transform: Callable[[Sample], Sample], seed: int) -> None:
        self.dataset = dataset
        self.transform = transform
        self.seed = seed

    def __getitem__(self, index: Any) -> Sample:
        sample = self.dataset[index]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mix_seed(self.seed, index[0], 1))
            return self.transform(sample)


class _Batches(Sampler[list[tuple[int, dict[str, Any]]]]):
    """Lists of (number of the sample, undecoded row)."""

    def __init__(self, table: Any, part: StreamPart) -> None:
        self.table = table
        self.part = part

    def __len__(self) -> int:
        part = self.part
        return (part.stop - part.start) // (part.batch_size * part.num_processes)

    def __iter__(self) -> Iterator[list[tuple[int, dict[str, Any]]]]:
        part = self.part
        first = part.start // (part.batch_size * part.num_processes)
        has_own_shards = self.table.num_shards % part.num_processes == 0
        rows = self._rows(part.process_index, part.num_processes) if has_own_shards else self._rows(0, 1)
        batches_a_turn = 1 if has_own_shards else part.num_processes
        before = first * batches_a_turn + (0 if has_own_shards else part.process_index)
        rows = itertools.islice(rows, before * part.batch_size, None)
        for turn in range(first, first + len(self)):
            number = (turn * part.num_processes + part.process_index) * part.batch_size
            yield [(number + place, row) for place, row in enumerate(itertools.islice(rows, part.batch_size))]
            # Skips the batches of the other processes.
            skipped = (batches_a_turn - 1) * part.batch_size
            next(itertools.islice(rows, skipped, skipped), None)

    def _rows(self, index: int, count: int) -> Iterator[dict[str, Any]]:
        """The endless sequence of the rows that reader `index` of `count` reads."""
        from datasets.distributed import split_dataset_by_node

        # The shards are shuffled before they are shared out, with one seed for all processes.
        table = self.table.shuffle(seed=self.part.seed, buffer_size=self.part.buffer_size)
        table = split_dataset_by_node(table, rank=index, world_size=count)
        for epoch in itertools.count():
            table.set_epoch(epoch)
            is_empty = True
            for row in table:
                is_empty = False
                yield row
            if is_empty:
                raise ValueError("the streamed data set has no rows")


class FirstRows(Dataset[Sample]):
    """The first rows of a stream, as a data set with a length, for a check or an evaluation."""

    def __init__(self, dataset: SegmentationDataset, count: int) -> None:
        self.dataset = dataset
        self.task: Task = dataset.task
        self.id2label = dataset.id2label
        self.label_ids_to_fuse = dataset.label_ids_to_fuse
        self.rows = list(dataset.table.take(count))  # pyrefly: ignore[missing-attribute]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        item: Any = (index, self.rows[index])
        return self.dataset[item]
