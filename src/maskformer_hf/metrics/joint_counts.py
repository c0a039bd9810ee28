"""How many pixels have each pair of values in two integer maps. IoU of classes is made of these counts."""

import torch

# Most pairs of values for which there is a table; a larger one would cost more than the pixels.
LARGEST_TABLE = 2**20
# Pixels that are counted together on a CPU, where their values stay in its cache.
CPU_PIXELS = 2**15


def as_integers(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The values on the device, as int64 unless their type is one that every operation below knows."""
    known = (torch.uint8, torch.int16, torch.int32, torch.int64)
    return values.to(device, values.dtype if values.dtype in known else torch.int64)


def value_ranges(*maps: torch.Tensor) -> list[tuple[int, int]]:
    """Smallest and largest value of each map, (0, 0) for an empty one, in one transfer from the device."""
    extremes = [part.aminmax() if part.numel() else (part.new_zeros(()), part.new_zeros(())) for part in maps]
    values = torch.stack([value.long() for pair in extremes for value in pair]).tolist()
    return list(zip(values[::2], values[1::2], strict=True))


def joint_counts(
    rows: torch.Tensor, columns: torch.Tensor, row_range: tuple[int, int], column_range: tuple[int, int]
) -> torch.Tensor:
    """Pixels of each pair of values of two maps of one shape, (R, C) int64.

    The first row and column are those of the smallest values.

    Args:
        row_range, column_range: smallest and largest value; together at most `LARGEST_TABLE` pairs.
    """
    height, width = row_range[1] - row_range[0] + 1, column_range[1] - column_range[0] + 1
    assert height * width <= LARGEST_TABLE
    counts = torch.zeros(height * width, dtype=torch.int64, device=rows.device)
    rows, columns = rows.flatten(), columns.flatten()
    # There are more pixels in a step than entries of the table, as each step writes the whole table.
    step = max(CPU_PIXELS, 4 * counts.numel()) if rows.device.type == "cpu" else max(1, rows.numel())
    for some_rows, some_columns in zip(rows.split(step), columns.split(step), strict=True):
        # int32 takes half the bytes of int64, the type of most maps.
        joint = _from_zero(some_rows, row_range[0]).mul_(width).add_(_from_zero(some_columns, column_range[0]))
        counts += torch.bincount(joint, minlength=counts.numel())
    return counts.view(height, width)


def _from_zero(values: torch.Tensor, smallest: int) -> torch.Tensor:
    return (values - smallest if smallest else values).to(torch.int32, copy=True)
