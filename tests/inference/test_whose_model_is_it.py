"""Whose model it is: `predict`, `evaluate` and the pipeline leave a caller's model as it was."""

from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from transformers import pipeline

from builders import random_model, tiny_config
from maskformer_hf import predict
from maskformer_hf.data import open_dataset
from maskformer_hf.inference.views_of_models import in_evaluation_mode, private_view
from maskformer_hf.training import evaluate
from tests import layouts


def photo(seed):
    return np.random.default_rng(seed).integers(0, 256, (40, 56, 3), dtype=np.uint8)


def state_of(model):
    """Everything about a model that a caller could miss: modes, weights, statistics, dtypes, devices, attributes."""
    return {
        "modes": [module.training for module in model.modules()],
        "weights": {name: value.clone() for name, value in model.state_dict().items()},
        "objects": [id(value) for value in (*model.parameters(), *model.buffers())],
        "gradients": [value.requires_grad for value in model.parameters()],
        "attributes": [sorted(vars(module)) for module in model.modules()],
        "hooks": [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
    }


def same_state(left, right):
    assert {**left, "weights": None} == {**right, "weights": None}
    for name, value in left["weights"].items():
        assert value.dtype == right["weights"][name].dtype
        assert torch.equal(value, right["weights"][name])


@pytest.fixture
def training_model(tiny_model):
    """In training mode, with a frozen head, and statistics that a forward in training mode would change."""
    model = deepcopy(tiny_model).train()
    model.head.eval()
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    return model


@pytest.mark.parametrize("threads", [1, 8])
def test_predict_leaves_the_model_as_it_was(training_model, tiny_model, tiny_processor, threads):
    photos = [photo(seed) for seed in range(16)]
    expected = [predict(tiny_model, tiny_processor, image, task="semantic")[0].segmentation for image in photos]
    before, seen = state_of(training_model), set()

    def run(image):
        [found] = predict(training_model, tiny_processor, image, task="semantic")
        # Not even for a moment is the caller's model in another mode.
        seen.add(training_model.training and not training_model.head.training)
        return found.segmentation

    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(run, photos))
    assert seen == {True}
    same_state(before, state_of(training_model))
    for left, right in zip(found, expected, strict=True):
        assert torch.equal(left, right)


def test_the_pipeline_leaves_the_model_as_it_was(training_model, tiny_model, tiny_processor):
    before = state_of(training_model)
    own = pipeline("image-segmentation", model=training_model, image_processor=tiny_processor, device="cpu")
    other = pipeline("image-segmentation", model=tiny_model, image_processor=tiny_processor, device="cpu")
    left, right = (segmenter(photo(3), subtask="panoptic") for segmenter in (own, other))
    same_state(before, state_of(training_model))
    assert [segment["score"] for segment in left] == [segment["score"] for segment in right]
    # What the pipeline moves is its own.
    own.model.to(torch.float64)
    same_state(before, state_of(training_model))


@pytest.mark.parametrize("mixed_precision", ["no", "bf16"])
def test_evaluate_leaves_the_model_as_it_was(tmp_path, tiny_processor, mixed_precision):
    layouts.semantic_folder(tmp_path)
    data = open_dataset(tmp_path, "train")
    model = random_model(tiny_config(labels=list(data.id2label.values()))).train()
    before = state_of(model)
    result = evaluate(model, tiny_processor, data, mixed_precision=mixed_precision)
    assert 0 <= result["score"] <= 1
    same_state(before, state_of(model))
    assert evaluate(model.eval(), tiny_processor, data, mixed_precision=mixed_precision)["score"] == result["score"]


class Wrapped(nn.Module):
    """Modules that are reached by more than their parent's table."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.9))
        self.tied = self.layer
        self.by_method = self.layer.forward
        self.by_partial = partial(nn.Module.__call__, self.layer)
        self.in_a_list = [self.layer]
        self.register_buffer("steps", torch.zeros(1))

    def forward(self, values):
        paths = self.layer, self.tied, self.by_method, self.by_partial, self.in_a_list[0]
        return torch.stack([path(values) for path in paths])


def test_a_view_reaches_no_module_of_the_original():
    model = Wrapped().train()
    model.forward = model.forward  # bound to the instance, as Accelerate leaves it
    view = in_evaluation_mode(model)
    values = torch.randn(64, 2)
    found = view(values)
    assert torch.equal(found, found[:1].expand_as(found))
    assert view.tied is view.layer
    assert view.layer[0].weight.data_ptr() == model.layer[0].weight.data_ptr()
    view.to(torch.float64)
    view.steps += 1
    assert model.layer[0].weight.dtype == torch.float32
    assert model.steps.item() == 0
    assert all(module.training for module in model.modules())
    assert in_evaluation_mode(model.eval()) is model
    assert type(private_view(torch.compile(model))) is Wrapped
