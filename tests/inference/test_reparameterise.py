"""timm's mobile backbones: mask models of them, and their branches merged for exported files and measurements."""

import pytest
import torch
from torch import nn

from builders import random_model, timm_backbone, tiny_config
from maskformer_hf.inference.folding import fold_batch_norms
from maskformer_hf.inference.reparameterise import reparameterise

LOGITS = ("class_queries_logits", "masks_queries_logits")
# Whether there are branches to merge.
BACKBONES = {
    "mobilenetv4_conv_small": False,
    "repvit_m0_9": True,
    "fastvit_t8": True,
    "edgenext_xx_small": False,
    "starnet_s1": False,
}


@pytest.mark.parametrize("name", BACKBONES)
def test_a_mobile_backbone_predicts_the_same_with_its_branches_merged(name):
    model = random_model(tiny_config(backbone_config=timm_backbone(name)))
    generator = torch.manual_seed(2)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                tensor.data.add_(0.2 * torch.rand(tensor.shape, generator=generator))
    images = torch.randn(2, 3, 70, 90, generator=generator)
    with torch.no_grad():
        expected = model(images)
        # As `load` leaves it.
        fold_batch_norms(model)
        num_layers = len(list(model.modules()))
        assert reparameterise(model) == BACKBONES[name]
        found = model(images)
    assert (len(list(model.modules())) < num_layers) == BACKBONES[name]
    for logits in LOGITS:
        torch.testing.assert_close(found[logits], expected[logits], rtol=0, atol=1e-4)
    assert not torch.allclose(expected[LOGITS[1]][0], expected[LOGITS[1]][1], atol=1e-2)


def test_other_backbones_are_left_alone():
    assert not reparameterise(random_model(tiny_config()))
