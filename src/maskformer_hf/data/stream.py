"""The endless shuffled sequence of augmented samples that training reads."""

from collections.abc import Callable

import torch
from torch.utils.data import Dataset

from .sample import Sample, SegmentationDataset


class SampleStream(Dataset[Sample]):
    """Samples number `start` to `stop - 1` of the shuffled, augmented repetitions of a data set.

    Sample n is a function of (dataset, seed, n) alone: neither what was read before nor worker processes change which
    image it shows and how that is augmented. Training therefore continues exactly where it stopped by beginning at
    another `start`, and any number of processes may share the numbers.
    """

    def __init__(
        self,
        dataset: SegmentationDataset,
        transform: Callable[[Sample], Sample],
        *,
        seed: int,
        start: int,
        stop: int,
    ) -> None:
        self.dataset = dataset
        self.transform = transform
        self.seed = seed
        self.start = start
        self.stop = stop
        self._order: tuple[int, list[int]] = (-1, [])

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = self.start + index
        length = len(self.dataset)
        epoch, position = divmod(number, length)
        if self._order[0] != epoch:
            generator = torch.Generator().manual_seed(mix_seed(self.seed, epoch, 0))
            self._order = (epoch, torch.randperm(length, generator=generator).tolist())
        # torchvision's transforms draw from the global generator, whose state must stay as it is.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mix_seed(self.seed, number, 1))
            return self.transform(self.dataset[self._order[1][position]])


def mix_seed(seed: int, number: int, purpose: int) -> int:
    """A 63-bit seed; neighbouring numbers give unrelated ones (the multipliers are splitmix64's)."""
    value = (seed * 0x9E3779B97F4A7C15 + number * 0xBF58476D1CE4E5B9 + purpose * 0x94D049BB133111EB) & (2**64 - 1)
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    return (value ^ (value >> 31)) >> 1
