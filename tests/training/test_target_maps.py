"""Maps of the targets that a loss term asks for: the collator of a recipe makes them, and the term sees them."""

import json

import pytest
import torch

from maskformer_hf.models import parts
from maskformer_hf.models.parts import Part, register
from maskformer_hf.training import train


def rows_above(masks: torch.Tensor) -> torch.Tensor:
    return masks * torch.arange(masks.shape[-2], dtype=torch.float32)[:, None]


class TallMasks:
    """The mean row of a mask's pixels: a term without a gradient."""

    maps = {"rows": rows_above}  # noqa: RUF012

    def __call__(self, pixels):
        assert (pixels.maps["rows"] >= 0).all()
        return pixels.maps["rows"].mean(1) + 0 * pixels.logits.sum(1)


@pytest.fixture
def tall_term(monkeypatch):
    # The table is the program's: what is registered here must not be there for other tests.
    monkeypatch.setattr(parts, "_TABLE", {slot: dict(table) for slot, table in parts._TABLE.items()})
    register("loss_term", "tall", Part(lambda config: TallMasks()))


@pytest.mark.parametrize("mask_loss", ["points", "dense"])
def test_a_recipe_makes_the_maps_that_a_term_asks_for(recipe, tall_term, tmp_path, mask_loss):
    settings = ["model.config.loss_terms={tall: 0.5}", f"model.config.mask_loss={mask_loss}", "data.workers=1"]
    train(recipe, [*settings, "steps=1", "data.validation=null"])
    [line] = [json.loads(text) for text in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert 0 < line["loss_tall"] < 48
