"""How much is worked on at a time."""

from typing import NamedTuple

import torch


class AtOnce(NamedTuple):
    """A bound on the numbers in temporary tensors: what fits the caches of a CPU, and what keeps other devices busy."""

    cpu: int
    other: int

    def on(self, device: torch.device) -> int:
        return self.cpu if device.type == "cpu" else self.other
