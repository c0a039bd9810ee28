"""What several tests share: a model that is tiny, and still finds something."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from builders import random_model, resnet, tiny_config
from maskformer_hf import MaskFormerForUniversalSegmentation, MaskFormerImageProcessor

ROOT = Path(__file__).parent.parent
# The first two are stuff.
LABELS = ("sky", "road", "car", "person")
# Its assertions then tell values as those of test files do.
pytest.register_assert_rewrite("tests.models.contract")


@pytest.fixture(scope="session")
def tiny_model() -> MaskFormerForUniversalSegmentation:
    """Random weights, but queries that are sure of their class and masks with clear outlines. Read only."""
    sizes = {"backbone_config": resnet(8, 12, 16, 24), "mask_feature_size": 32, "ffn_dim": 32, "num_queries": 12}
    model = random_model(tiny_config(labels=LABELS, label_ids_to_fuse=[0, 1], **sizes))
    with torch.no_grad():
        # Untrained, every class has about the same probability and no query passes a threshold.
        model.head.class_predictor.weight.mul_(12)
        model.head.mask_embedder.layers[-1].weight.mul_(12)
    return model


@pytest.fixture(scope="session")
def tiny_processor() -> MaskFormerImageProcessor:
    return MaskFormerImageProcessor(size={"shortest_edge": 96, "longest_edge": 256})


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory, tiny_model, tiny_processor) -> Path:
    """A folder that `from_pretrained` loads `tiny_model` and `tiny_processor` from. Read only."""
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    tiny_model.save_pretrained(folder)
    tiny_processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def photo_paths() -> list[Path]:
    """The photos in examples/, which differ in shape."""
    paths = sorted((ROOT / "examples").glob("*.jpg"))
    assert len({Image.open(path).size for path in paths}) >= 2
    return paths
