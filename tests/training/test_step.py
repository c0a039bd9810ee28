"""One step of training: which terms of the loss it reports."""

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from maskformer_hf.models.criterion import is_auxiliary
from maskformer_hf.training.step import training_step


class Terms(nn.Module):
    """Losses of three layers, of which one term has a name that ends in a digit."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, value):
        terms = {"loss_l1": value, "loss_mask": 2 * value, "loss_l1_0": 3 * value, "loss_mask_10": 4 * value}
        terms = {name: self.weight * term for name, term in terms.items()}
        return {"loss": sum(terms.values()), "loss_dict": terms}


@pytest.mark.parametrize(
    ("name", "expected"),
    [("loss_l1", False), ("loss_mask", False), ("loss_l1_0", True), ("loss_mask_10", True), ("dn_loss_ce_0", True)],
)
def test_terms_of_earlier_layers_end_in_their_number(name, expected):
    assert is_auxiliary(name) == expected


def test_terms_of_the_last_layer_are_reported():
    model = Terms()
    accelerator = Accelerator(gradient_accumulation_steps=2)
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.5))
    batches = [
        {"value": torch.tensor(1.0, device=accelerator.device)},
        {"value": torch.tensor(3.0, device=accelerator.device)},
    ]
    terms = training_step(accelerator, model, optimizer, batches, max_gradient_norm=1.0)
    assert {name: float(value) for name, value in terms.items()} == {
        "loss": 20,
        "loss_l1": 2,
        "loss_mask": 4,
        "gradient_norm": 20,
    }
