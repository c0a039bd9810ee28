"""BatchNorm folded into convolutions: the same numbers, and nothing of it in training or in what is saved."""

import copy

import pytest
import torch
from torch import nn

from builders import random_model, resnet, swin, timm_backbone, tiny_config
from maskformer_hf import MaskFormerForUniversalSegmentation, load
from maskformer_hf.inference import folding
from maskformer_hf.inference.folding import fold_batch_norms
from maskformer_hf.models.image_processing_maskformer import MaskFormerHfImageProcessor

LOGITS = ("class_queries_logits", "masks_queries_logits")
BOTTLENECKS = resnet(16, 24, 32, 40, layer_type="bottleneck")


def images(batch_size=2, frames=()):
    return torch.randn(batch_size, *frames, 3, 70, 90, generator=torch.manual_seed(1))


def model_of(kind="maskformer", **fields):
    """A model whose BatchNorms are not as they start."""
    model = random_model(tiny_config(kind, **fields))
    generator = torch.manual_seed(2)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                if tensor is not None:
                    tensor.data.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return model


@pytest.mark.parametrize(
    ("fields", "num_folded"),
    [
        ({}, 12),
        ({"freeze_batch_norm": False, "backbone_config": BOTTLENECKS}, 17),
        ({"backbone_config": timm_backbone()}, 12),
        ({"pixel_decoder": "hybrid", "backbone_config": swin()}, 3 + 2 + 4 * 8 + 2 + 2),
        ({"kind": "mask2former", "pixel_decoder": "pem"}, 12 + 4 + 1 + 4 + 1),
        ({"kind": "video"}, 12),
        ({"kind": "per_pixel"}, 12),
        ({"backbone_config": swin()}, 0),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, dict) else "",
)
def test_results_are_the_same(fields, num_folded):
    model = model_of(**fields)
    pixels = images(frames=(2,) if fields.get("kind") == "video" else ())
    logits = LOGITS if fields.get("kind") != "per_pixel" else ("logits",)
    with torch.no_grad():
        expected = model(pixels)
        assert fold_batch_norms(model) == num_folded
        found = model(pixels)
    for name in logits:
        scale = expected[name].abs().max().item()
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-5 * max(scale, 1))


def test_the_folded_layers_are_left_out():
    """Not only that nothing changes: BatchNorm does not run."""
    model = model_of()
    fold_batch_norms(model)
    norm = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    maps = torch.randn(1, norm.num_features, 4, 4)
    with torch.no_grad():
        assert norm(maps) is maps


def test_what_is_saved_is_what_was_loaded(tmp_path):
    model = model_of()
    model.save_pretrained(tmp_path / "before")
    MaskFormerHfImageProcessor(num_labels=3).save_pretrained(tmp_path / "before")
    loaded, _ = load(tmp_path / "before", device="cpu")
    assert any(isinstance(module, folding.FoldedConv2d) for module in loaded.modules())
    assert list(loaded.state_dict()) == list(model.state_dict())
    loaded.save_pretrained(tmp_path / "after")
    again = MaskFormerForUniversalSegmentation.from_pretrained(tmp_path / "after")
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_training_is_that_of_the_model_as_it_was():
    masks = torch.zeros(1, 70, 90, dtype=torch.bool)
    masks[0, :30] = True
    targets = {"mask_labels": [masks, masks], "class_labels": [torch.tensor([1])] * 2}
    losses = []
    for fold in (False, True):
        model = model_of(dropout=0.0, freeze_batch_norm=False)
        if fold:
            assert fold_batch_norms(model) == 12
        model.train()
        assert not any(isinstance(module, folding.Folded) for module in model.modules())
        outputs = model(images(), **targets)
        outputs.loss.backward()
        losses.append((outputs.loss, [parameter.grad for parameter in model.parameters()]))
    assert torch.equal(losses[0][0], losses[1][0])
    assert all(torch.equal(*pair) for pair in zip(losses[0][1], losses[1][1], strict=True))


def test_gradients_of_a_model_in_evaluation_mode():
    """A folded weight has none, so the plain ones serve."""
    model = model_of(freeze_batch_norm=False)
    fold_batch_norms(model)
    model(images()).masks_queries_logits.sum().backward()
    for module in model.modules():
        if isinstance(module, folding.Folded):
            assert all(parameter.grad is not None for parameter in module.parameters())


def test_other_weights_are_not_those_that_were_folded():
    model, other = model_of(), model_of()
    for parameter in other.parameters():
        parameter.data.mul_(1.1)
    fold_batch_norms(model)
    model.load_state_dict(other.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(model(images())[LOGITS[0]], other(images())[LOGITS[0]])


def test_a_copy_is_folded_and_on_its_own():
    model = model_of()
    fold_batch_norms(model)
    with torch.no_grad():
        expected = model(images())[LOGITS[0]]
        copied = copy.deepcopy(model)
        model.train()
        assert any(isinstance(module, folding.Folded) for module in copied.modules())
        torch.testing.assert_close(copied(images())[LOGITS[0]], expected)


class Twice(nn.Module):
    """A convolution whose output is read by BatchNorm, and added to it."""

    def __init__(self, channels):
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels)

    def forward(self, maps):
        maps = self.convolution(maps)
        return maps + self.norm(maps)


def test_a_map_that_is_read_twice_is_not_folded():
    model = model_of()
    twice = Twice(16).eval()
    twice.norm.running_mean.fill_(1)
    model.model.pixel_decoder.mask_projection = nn.Sequential(nn.Conv2d(32, 16, 1), twice)
    with torch.no_grad():
        expected = model(images())[LOGITS[1]]
        assert fold_batch_norms(model) == 0
        assert torch.equal(model(images())[LOGITS[1]], expected)


def test_half_precision_is_left_alone():
    assert fold_batch_norms(model_of().bfloat16()) == 0
