"""The table of parts: what may be registered, and what is said of a name that is not there."""

import pytest
from torch import nn

from builders import tiny_config
from maskformer_hf import MaskFormerConfig, MaskFormerVideoConfig, PerPixelBaselineConfig
from maskformer_hf.models import parts
from maskformer_hf.models.assembly import SLOT_FIELDS, layer_names
from maskformer_hf.models.parts import Part, is_own, names_of, part_of, register


@pytest.fixture(autouse=True)
def table(monkeypatch):
    """A table of one's own."""
    monkeypatch.setattr(parts, "_TABLE", {slot: dict(known) for slot, known in parts._TABLE.items()})


def test_a_name_is_registered_once():
    register("pixel_decoder", "mine", Part(nn.Identity))
    assert names_of("pixel_decoder")[-1] == "mine"
    with pytest.raises(ValueError, match=r"already a pixel_decoder|pixel_decoder 'mine' already: choose another name"):
        register("pixel_decoder", "mine", Part(nn.Identity))
    with pytest.raises(ValueError, match=r"There is a pixel_decoder 'fpn' already"):
        register("pixel_decoder", "fpn", Part(nn.Identity))
    register("pixel_decoder", "mine", Part(nn.Conv2d), exist_ok=True)
    assert part_of("pixel_decoder", "mine").build is nn.Conv2d
    assert is_own("pixel_decoder", "fpn")
    assert not is_own("pixel_decoder", "mine")


def test_what_cannot_be_registered():
    with pytest.raises(ValueError, match=r"no slot 'decoder' for parts, only \['pixel_decoder', 'transformer_decoder'"):
        register("decoder", "mine", Part(nn.Identity))
    with pytest.raises(TypeError, match=r"pixel_decoder 'mine' must be a `Part\(build, check, layers\)`, got type"):
        register("pixel_decoder", "mine", nn.Identity)
    with pytest.raises(ValueError, match=r"`assigner` must be one of \['hungarian'.*\], got 'fair'"):
        part_of("assigner", "fair")


@pytest.mark.parametrize("config_class", [MaskFormerConfig, MaskFormerVideoConfig, PerPixelBaselineConfig])
@pytest.mark.parametrize("field", SLOT_FIELDS)
def test_every_configuration_class_takes_names_from_the_table(config_class, field):
    with pytest.raises(ValueError, match=rf"`{field}` must be one of \[.*\], got 'nothing'"):
        config_class(**{field: "nothing"})
    slot = SLOT_FIELDS[field]
    register(slot, "mine", Part(nn.Identity))
    assert getattr(config_class(**{field: "mine"}), field) == "mine"


def test_a_part_refuses_what_it_does_not_fit():
    def check(config):
        if config.feature_size > 64:
            raise ValueError(
                f"`pixel_decoder='mine'` is as wide as 64 at most, `feature_size` is {config.feature_size}."
            )

    register("pixel_decoder", "mine", Part(nn.Identity, check))
    assert MaskFormerConfig(pixel_decoder="mine", feature_size=64).feature_size == 64
    with pytest.raises(ValueError, match=r"wide as 64 at most, `feature_size` is 96"):
        MaskFormerConfig(pixel_decoder="mine", feature_size=96)


def test_loss_terms_are_checked_by_name():
    with pytest.raises(
        ValueError, match=r"`loss_term` must be one of \['focal', 'cross_entropy', 'dice', 'boundary'\], got 'edge'"
    ):
        MaskFormerConfig(loss_terms={"edge": 1.0})
    with pytest.raises(ValueError, match=r"`loss_terms` names 'dice', which has a weight of its own"):
        MaskFormerConfig(loss_terms={"dice": 1.0})


def test_layers_of_outside_parts_are_found_for_fsdp():
    assert layer_names(tiny_config()) == ["DetrDecoderLayer", "TransformerEncoderLayer"]
    register("pixel_decoder", "mine", Part(nn.Identity, layers=("MyLayer",)))
    assert "MyLayer" in layer_names(tiny_config(pixel_decoder="mine"))
