"""What the tests of several commands share."""

from pathlib import Path

import numpy as np
from PIL import Image


def one_line_error(result) -> str:
    """The one line that a refused command prints."""
    assert result.exit_code == 1, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("maskformer: ")
    assert result.stdout == ""
    return lines[0]


def write_data(root: Path, names=("sky", "road", "car", "person")) -> Path:
    """Two photos with maps of ids in each of the splits train and val."""
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (root / split / kind).mkdir(parents=True)
        for index in range(2):
            labels = np.repeat(np.arange(4, dtype=np.uint8), 16)[None].repeat(64, 0)
            Image.fromarray(labels).save(root / split / "labels" / f"{index}.png")
            colors = np.random.default_rng(index).integers(0, 255, (4, 3), dtype=np.uint8)
            Image.fromarray(colors[labels]).save(root / split / "images" / f"{index}.png")
    (root / "classes.txt").write_text("\n".join(names) + "\n")
    return root
