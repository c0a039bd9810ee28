"""How many pixels have each pair of values of two integer maps: what IoU of classes and of segments is made of."""

import torch

# Pairs of values that are counted directly; beyond this a table would cost more than the pixels.
LARGEST_TABLE = 2**20
CPU_CHUNK = 2**15


def as_integers(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """On the device; as int64 unless it is an integer type that every operation below knows."""
    known = (torch.uint8, torch.int16, torch.int32, torch.int64)
    return values.to(device, values.dtype if values.dtype in known else torch.int64)


def value_ranges(*maps: torch.Tensor) -> list[tuple[int, int]]:
    """Smallest and largest value of each map, (0, 0) of an empty one; one transfer from the device for all."""
    extremes = [part.aminmax() if part.numel() else (part.new_zeros(()), part.new_zeros(())) for part in maps]
    values = torch.stack([value.long() for pair in extremes for value in pair]).tolist()
    return list(zip(values[::2], values[1::2], strict=True))


def joint_counts(
    rows: torch.Tensor, columns: torch.Tensor, row_range: tuple[int, int], column_range: tuple[int, int]
) -> torch.Tensor:
    """Pixels of each pair of values of two maps of one shape, (R, C) int64; the first row and column are the smallest
    values. The ranges are those of the values, with not more than `LARGEST_TABLE` pairs."""
    height, width = row_range[1] - row_range[0] + 1, column_range[1] - column_range[0] + 1
    assert height * width <= LARGEST_TABLE
    counts = torch.zeros(height * width, dtype=torch.int64, device=rows.device)
    rows, columns = rows.flatten(), columns.flatten()
    # On a CPU as much at a time as stays in its cache, but more than the table, which each time is written as a whole.
    step = max(CPU_CHUNK, 4 * counts.numel()) if rows.device.type == "cpu" else max(1, rows.numel())
    for some_rows, some_columns in zip(rows.split(step), columns.split(step), strict=True):
        # int32 has half the bytes of what most maps come in.
        joint = _from_zero(some_rows, row_range[0]).mul_(width).add_(_from_zero(some_columns, column_range[0]))
        counts += torch.bincount(joint, minlength=counts.numel())
    return counts.view(height, width)


def _from_zero(values: torch.Tensor, smallest: int) -> torch.Tensor:
    return (values - smallest if smallest else values).to(torch.int32, copy=True)
