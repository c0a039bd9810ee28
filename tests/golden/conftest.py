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


@pytest.fixture(scope="session")
def mask2former() -> GoldenCase:
    return load_case("mask2former_swin", "model_zoo_style.pkl")


def load_case(name: str, checkpoint: str) -> GoldenCase:
    folder = GOLDEN / name
    return GoldenCase(
        model=load_detectron2(folder / checkpoint),
        inputs=load_file(GOLDEN / "inputs.safetensors"),
        runs=json.loads((GOLDEN / "inputs.json").read_text())["runs"],
        expected=load_file(folder / "expected.safetensors"),
        record=json.loads((folder / "expected.json").read_text()),
    )


@pytest.fixture
def replay_random_points(monkeypatch):
    """Makes our criterion draw the random points that the original drew after `torch.manual_seed(seed)`.

    `matching` has, for each layer in the original's order (the last one, then the first, the second, ...) and each
    image, the queries and targets that the original matched: it draws by ascending queries, we by ascending targets.
    """

    def replay(seed: int, matching: list, counts: list[int], num_points: int = 200, num_frames: int = 1):
        num_candidates, num_uniform = 3 * num_points, num_points - int(0.75 * num_points)
        offsets = [sum(counts[:image]) for image in range(len(counts))]
        torch.manual_seed(seed)
        matched_at, looked_at = [], []
        for images in matching:
            matched_at.append(torch.cat([torch.rand(1, num_points, 2) for _ in images]))
            targets = [target + offsets[i] for i, (_, targets) in enumerate(images) for target in targets]
            order = torch.tensor(targets, dtype=torch.int64).argsort()
            for count in (num_candidates, num_uniform):
                points = torch.rand(len(order) * num_frames, count, 2)
                looked_at.append(points.unflatten(0, (len(order), num_frames))[order].flatten(0, 1))
        first_layer_first = torch.stack(matched_at[1:] + matched_at[:1])
        draws = iter(looked_at)
        assigners, point_sampling = "maskformer_hf.models.assigners", "maskformer_hf.models.point_sampling"
        monkeypatch.setattr(f"{assigners}.uniform_points", lambda *size, **_: first_layer_first)
        monkeypatch.setattr(f"{point_sampling}.uniform_points", lambda *size, **_: next(draws))

    return replay
