"""Every combination of parts keeps the contract; a variant says only what differs."""

from typing import Any, ClassVar

import torch
import transformers
from transformers import AutoConfig, AutoModel

from builders import swin, timm_backbone, vit
from maskformer_hf import MaskFormerConfig, MaskFormerForUniversalSegmentation, MaskFormerModel
from tests.models.contract import NUM_LAYERS, Mask2FormerContract, ModelContract


class TestResNet(ModelContract):
    pass


class TestResNetWithEncoder(ModelContract):
    fields: ClassVar[dict[str, Any]] = {"pixel_decoder": "transformer_fpn"}
    num_encoder_attentions = 1


class TestPreNorm(ModelContract):
    fields: ClassVar[dict[str, Any]] = {
        "pixel_decoder": "transformer_fpn",
        "pre_norm": True,
        "decoder_encoder_layers": 1,
        "enforce_input_projection": True,
    }
    num_encoder_attentions = 1


class TestPointLoss(ModelContract):
    fields: ClassVar[dict[str, Any]] = {"mask_loss": "points", "num_points": 64}


class TestSwin(ModelContract):
    backbone: ClassVar[dict[str, Any]] = swin(drop_path_rate=0.0)
    # transformers' Swin branches on sizes, and keeps torch's exporter busy for minutes; `maskformer_hf.export` takes
    # the branches out.
    exports_any_size = False


class TestTimm(ModelContract):
    backbone: ClassVar[dict[str, Any]] = timm_backbone()


class TestPlainTransformer(ModelContract):
    """DINOv2, whose patches have 14 pixels, below a pyramid."""

    backbone: ClassVar[dict[str, Any]] = vit("dinov2")
    fields: ClassVar[dict[str, Any]] = {"backbone_pyramid": "simple"}
    untrained = ("mask_token",)
    # transformers checks sizes against those of the positions, which a graph of any size cannot.
    exports_any_size = False


class TestFrozenTransformer(Mask2FormerContract):
    """DINOv3, frozen: its training adds noise to positions, which would show."""

    backbone: ClassVar[dict[str, Any]] = vit("dinov3_vit", patch_size=16)
    fields: ClassVar[dict[str, Any]] = {"backbone_pyramid": "simple", "freeze_backbone": True}
    untrained = ("backbone.body.",)


class TestMask2Former(Mask2FormerContract):
    exports_any_size = True


class TestMask2FormerWithDropout(Mask2FormerContract):
    """Dropout, widths and an order of norms that no released model has."""

    fields: ClassVar[dict[str, Any]] = {
        "dropout": 0.1,
        "feature_size": 64,
        "pre_norm": True,
    }
    # As many as there are levels, which each have a projection here.
    num_layers, num_predictions = 3, 4


class TestMask2FormerSwin(Mask2FormerContract):
    backbone: ClassVar[dict[str, Any]] = swin(drop_path_rate=0.0)


class TestTwoDeformableLevels(Mask2FormerContract):
    """The finest level of the memory comes from the pyramid."""

    fields: ClassVar[dict[str, Any]] = {"encoder_levels": 2}
    encoder_attention_size = (30, 8)


class TestMaskedDecoderOnFPN(ModelContract):
    """Any pixel decoder and any transformer decoder make a model."""

    fields: ClassVar[dict[str, Any]] = {"transformer_decoder": "masked"}
    num_predictions = NUM_LAYERS + 1


class TestDetrDecoderOnDeformable(ModelContract):
    fields: ClassVar[dict[str, Any]] = {"pixel_decoder": "deformable"}
    exports_any_size = False
    num_encoder_attentions = 1
    encoder_attention_size = (126, 12)
    memory_sizes: ClassVar[list[tuple[int, int]]] = [(2, 3), (4, 6), (8, 12)]
    attended_sizes: ClassVar[list[tuple[int, int]]] = [(2, 3)]


def test_auto_classes(tiny_checkpoint, tiny_model):
    assert isinstance(AutoConfig.from_pretrained(tiny_checkpoint), MaskFormerConfig)
    assert isinstance(AutoModel.from_pretrained(tiny_checkpoint), MaskFormerModel)
    for task in ("UniversalSegmentation", "InstanceSegmentation", "SemanticSegmentation", "ImageSegmentation"):
        model = getattr(transformers, f"AutoModelFor{task}").from_pretrained(tiny_checkpoint)
        assert isinstance(model, MaskFormerForUniversalSegmentation)
        assert torch.equal(model.head.class_predictor.weight, tiny_model.head.class_predictor.weight)
