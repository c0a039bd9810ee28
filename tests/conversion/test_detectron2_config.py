"""Dumped configurations of Detectron2 become ours, or an error that names the setting."""

import json
from pathlib import Path

import pytest

from maskformer_hf.conversion.detectron2_config import config_from_detectron2

GOLDEN = Path(__file__).parent.parent / "fixtures" / "golden"
RESNET, SWIN = GOLDEN / "maskformer_r50_fpn", GOLDEN / "maskformer_swin_tenc"


def dumped(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())["MODEL"]


def test_configuration_of_a_resnet():
    config = config_from_detectron2(dumped(RESNET))
    assert (config.pixel_decoder, config.feature_size, config.hidden_size, config.num_queries) == ("fpn", 32, 32, 12)
    assert (config.num_labels, config.task, config.freeze_batch_norm) == (7, "semantic", True)
    assert config.backbone_config.hidden_sizes == [24, 48, 96, 192]
    assert config.backbone_config.embedding_size == 16


def test_configuration_of_a_swin():
    config = config_from_detectron2({"MODEL": dumped(SWIN), "INPUT": {"FORMAT": "RGB"}})
    assert (config.pixel_decoder, config.encoder_layers) == ("transformer_fpn", 2)
    assert (config.backbone_config.depths, config.backbone_config.window_size) == ([1, 1, 2, 1], 4)


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("SEM_SEG_HEAD", "NORM", "BN"),
        ("SEM_SEG_HEAD", "PIXEL_DECODER_NAME", "SemSegFPN"),
        ("MASK_FORMER", "TRANSFORMER_IN_FEATURE", "res4"),
        ("RESNETS", "DEPTH", 18),
        ("RESNETS", "RES5_DILATION", 2),
        ("RESNETS", "WIDTH_PER_GROUP", 7),
    ],
)
def test_a_setting_that_cannot_be_converted_is_named(section, name, value):
    cfg = dumped(RESNET)
    cfg[section][name] = value
    with pytest.raises(ValueError, match=rf"MODEL\.{section}\.{name} is {value!r}; only .+ can be converted"):
        config_from_detectron2(cfg)


def test_a_missing_setting_is_named():
    cfg = dumped(RESNET)
    del cfg["MASK_FORMER"]["PRE_NORM"]
    with pytest.raises(ValueError, match="has no PRE_NORM"):
        config_from_detectron2(cfg)
