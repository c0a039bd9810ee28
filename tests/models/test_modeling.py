"""Every combination of parts keeps the contract; a variant says only what differs."""

from typing import Any, ClassVar

import torch
import transformers
from transformers import AutoConfig, AutoModel

from builders import eomt_backbone, swin, timm_backbone, vit
from maskformer_hf import MaskFormerConfig, MaskFormerForUniversalSegmentation, MaskFormerModel
from tensors import LargestTensor
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


class TestEomt(ModelContract):
    """Queries among the tokens of a DINOv2."""

    kind = "eomt"
    backbone: ClassVar[dict[str, Any]] = eomt_backbone()
    weights: ClassVar[dict[str, float]] = {"loss_ce": 2, "loss_mask": 5, "loss_dice": 5}
    num_predictions = NUM_LAYERS + 1
    # The class token and two registers, then patches.
    memory_sizes: ClassVar[list[tuple[int, int]]] = [(1, 3), (4, 6)]
    map_sizes = memory_sizes

    def test_hidden_states(self, shared):
        with torch.no_grad():
            outputs = shared(self.images(), output_hidden_states=True)
        for states in (outputs.encoder_hidden_states, outputs.pixel_decoder_hidden_states):
            assert [tuple(state.shape[-2:]) for state in states] == self.memory_sizes
        assert outputs.pixel_decoder_last_hidden_state.shape == (2, 32, 4, 6)
        states = outputs.transformer_decoder_hidden_states
        assert [tuple(state.shape) for state in states] == [(2, 5, 32)] * self.num_predictions

    def test_attentions(self, shared):
        """Queries attend to queries, tokens in front, and patches."""
        eager = self.model(attn_implementation="eager")
        with torch.no_grad():
            outputs = eager(self.images(), output_attentions=True)
        assert [tuple(weights.shape) for weights in outputs.decoder_attentions] == [(2, 4, 5, 5 + 3 + 24)] * NUM_LAYERS
        for weights in outputs.decoder_attentions:
            torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 5))
        assert outputs.cross_attentions is None

    def test_a_step_makes_the_masks_of_one_layer_at_a_time(self):
        """Nothing as large as the masks of two layers is made."""
        model = self.model(num_queries=100, decoder_layers=3).train()
        with LargestTensor() as largest:
            outputs = model(self.images(128, 192), **self.targets(128, 192))
            outputs.loss.backward()
        assert largest.numel < 2 * outputs.masks_queries_logits.numel()


class TestEomtDinov3(TestEomt):
    """DINOv3 turns queries and keys, and keys have no bias."""

    backbone: ClassVar[dict[str, Any]] = eomt_backbone("dinov3_vit")


def test_auto_classes(tiny_checkpoint, tiny_model):
    assert isinstance(AutoConfig.from_pretrained(tiny_checkpoint), MaskFormerConfig)
    assert isinstance(AutoModel.from_pretrained(tiny_checkpoint), MaskFormerModel)
    for task in ("UniversalSegmentation", "InstanceSegmentation", "SemanticSegmentation", "ImageSegmentation"):
        model = getattr(transformers, f"AutoModelFor{task}").from_pretrained(tiny_checkpoint)
        assert isinstance(model, MaskFormerForUniversalSegmentation)
        assert torch.equal(model.head.class_predictor.weight, tiny_model.head.class_predictor.weight)
