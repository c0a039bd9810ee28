"""The original's inputs and results (tests/fixtures/golden/README.md)."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from maskformer_hf.conversion.detectron2 import load_detectron2

GOLDEN = Path(__file__).parent.parent / "fixtures" / "golden"
CHECKPOINTS = {"maskformer_r50_fpn": "model_zoo_style.pkl", "maskformer_swin_tenc": "state_dict.safetensors"}
PER_PIXEL_PLUS = "perpixel_plus_swin"
MEAN = torch.tensor([123.675, 116.280, 103.530])[:, None, None]
DEVIATION = torch.tensor([58.395, 57.120, 57.375])[:, None, None]


@dataclass
class GoldenCase:
    """
    Attributes:
        expected: The original's tensors by name.
        record: The original's losses, matched indices and gradient norms.
    """

    model: Any
    inputs: dict[str, torch.Tensor]
    runs: dict[str, list[dict[str, Any]]]
    expected: dict[str, torch.Tensor]
    record: dict[str, Any]

    def pixel_values(self, run: str) -> torch.Tensor:
        """Normalised photos, then padded with zeros to a multiple of 32; those of run B_div0 are left as they are."""
        divisor = 1 if run == "B_div0" else 32
        names = [entry["image"] for entry in self.runs[run.removesuffix("_div0")]]
        images = [(self.inputs[f"image.{name}"].float() - MEAN) / DEVIATION for name in names]
        height, width = (-(-max(image.shape[axis] for image in images) // divisor) * divisor for axis in (1, 2))
        return torch.stack([F.pad(i, (0, width - i.shape[2], 0, height - i.shape[1])) for i in images])

    def targets(self, run: str, target_set: str) -> dict[str, list[torch.Tensor]]:
        height, width = self.pixel_values(run).shape[-2:]
        masks, labels = [], []
        for image in range(len(self.runs[run])):
            name = f"target.{run}.{target_set}.{image}"
            mask = self.inputs[f"{name}.masks"].bool()
            masks.append(F.pad(mask, (0, width - mask.shape[-1], 0, height - mask.shape[-2])))
            labels.append(self.inputs[f"{name}.labels"])
        return {"mask_labels": masks, "class_labels": labels}


@pytest.fixture(scope="session", params=list(CHECKPOINTS))
def case(request) -> GoldenCase:
    return load_case(request.param, CHECKPOINTS[request.param])


@pytest.fixture(scope="session")
def per_pixel_plus() -> GoldenCase:
    return load_case(PER_PIXEL_PLUS, "state_dict.safetensors")


def load_case(name: str, checkpoint: str) -> GoldenCase:
    folder = GOLDEN / name
    return GoldenCase(
        model=load_detectron2(folder / checkpoint),
        inputs=load_file(GOLDEN / "inputs.safetensors"),
        runs=json.loads((GOLDEN / "inputs.json").read_text())["runs"],
        expected=load_file(folder / "expected.safetensors"),
        record=json.loads((folder / "expected.json").read_text()),
    )
