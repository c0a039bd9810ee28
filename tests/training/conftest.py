from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image

from builders import resnet
from maskformer_hf.models.configuration_maskformer import MaskFormerHfConfig
from maskformer_hf.models.image_processing_maskformer import MaskFormerHfImageProcessor
from maskformer_hf.models.modeling_maskformer import MaskFormerHfForUniversalSegmentation

COLORS = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200]], dtype=np.uint8)


@pytest.fixture(scope="session")
def shapes(tmp_path_factory) -> Path:
    """Two splits of coloured rectangles on a ground, 48x64 pixels, with a void strip; three classes told by colour."""
    root = tmp_path_factory.mktemp("shapes")
    (root / "classes.txt").write_text("ground\nbox\nsky\nvoid\n")
    random = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 3)):
        for folder in ("images", "labels"):
            (root / split / folder).mkdir(parents=True)
        for index in range(count):
            ids = np.zeros((48, 64), dtype=np.uint8)
            ids[: random.integers(8, 16)] = 2
            top, left = random.integers(16, 26), random.integers(0, 34)
            ids[top : top + 20, left : left + 26] = 1
            image = (COLORS[ids] * random.uniform(0.8, 1.1, (48, 64, 1))).clip(0, 255).astype(np.uint8)
            ids[:, -2:] = 3
            Image.fromarray(image).save(root / split / "images" / f"{index}.png")
            Image.fromarray(ids).save(root / split / "labels" / f"{index}.png")
    return root


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory) -> Path:
    """A MaskFormer of some ten thousand weights, classes unlike those of `shapes`."""
    torch.manual_seed(0)
    config = MaskFormerHfConfig(
        backbone_config=resnet(8, 16, 16, 16),
        feature_size=32,
        mask_feature_size=16,
        hidden_size=32,
        num_attention_heads=2,
        ffn_dim=32,
        decoder_layers=2,
        num_queries=6,
        mask_loss="points",
        num_points=64,
        task="semantic",
    )
    folder = tmp_path_factory.mktemp("tiny")
    MaskFormerHfForUniversalSegmentation(config).save_pretrained(folder)
    MaskFormerHfImageProcessor(size={"shortest_edge": 48, "longest_edge": 96}).save_pretrained(folder)
    return folder


@pytest.fixture
def recipe(shapes, tiny_checkpoint, tmp_path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"""
data: {{root: {shapes}}}
augmentation: {{short_edge: [40, 60], crop_size: [48, 64]}}
model: {{checkpoint: {tiny_checkpoint}}}
optimization: {{learning_rate: 2e-3, backbone_multiplier: 1, max_gradient_norm: 0.1, ema_decay: 0.9}}
steps: 6
batch_size: 2
log_every: 1
save_every: 2
evaluate_every: 4
output_dir: {tmp_path / "run"}
"""
    )
    return path


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """Accelerate keeps precision and device for the life of a process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
