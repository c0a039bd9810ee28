"""One contract for every combination of parts; a variant says only what differs."""

import copy
import math

import pytest
import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModel

from builders import resnet, swin, timm_backbone
from maskformer_hf import MaskFormerConfig, MaskFormerForUniversalSegmentation, MaskFormerModel
from maskformer_hf.models import dense_workspace, matcher
from maskformer_hf.models.at_once import AtOnce
from maskformer_hf.presets import MASK2FORMER
from tensors import LargestTensor

RESNET, SWIN, TIMM = resnet(), swin(drop_path_rate=0.0), timm_backbone()
LOGITS = ("class_queries_logits", "masks_queries_logits")
NUM_LABELS, NUM_QUERIES, NUM_LAYERS, NUM_HEADS, WIDTH = 3, 5, 2, 4, 32


class ModelContract:
    """What every variant keeps. `backbone` and `fields` are what a variant says."""

    backbone = RESNET
    fields: dict = {}  # noqa: RUF012
    num_encoder_attentions = 0
    exports_any_size = True
    weights = {"ce": 1, "mask": 20, "dice": 1}  # noqa: RUF012
    memory_sizes = [(2, 3)]  # noqa: RUF012
    # Where the decoder does not attend to the whole memory.
    attended_sizes: list[tuple[int, int]] | None = None
    encoder_attention_size = (6, 6)
    num_layers = NUM_LAYERS
    num_predictions = NUM_LAYERS

    def config(self, **fields) -> MaskFormerConfig:
        base = {
            "backbone_config": copy.deepcopy(self.backbone),
            "feature_size": WIDTH,
            "mask_feature_size": 16,
            "hidden_size": WIDTH,
            "num_attention_heads": NUM_HEADS,
            "ffn_dim": 48,
            "encoder_layers": 1,
            "decoder_layers": self.num_layers,
            "num_queries": NUM_QUERIES,
            "num_labels": NUM_LABELS,
        }
        return MaskFormerConfig(**{**base, **self.fields, **fields})

    def model(self, attn_implementation=None, **fields) -> MaskFormerForUniversalSegmentation:
        torch.manual_seed(0)
        config = self.config(**fields)
        config._attn_implementation = attn_implementation
        return MaskFormerForUniversalSegmentation(config).eval()

    @pytest.fixture(scope="class")
    @classmethod
    def shared(cls) -> MaskFormerForUniversalSegmentation:
        """Read only."""
        return cls().model()

    @staticmethod
    def images(height=64, width=96, batch_size=2) -> torch.Tensor:
        return torch.randn(batch_size, 3, height, width, generator=torch.manual_seed(1))

    @staticmethod
    def targets(height=64, width=96) -> dict[str, list[torch.Tensor]]:
        """Two objects in the first image, none in the second."""
        masks = torch.zeros(2, height, width, dtype=torch.bool)
        masks[0, : height // 2] = masks[1, :, width // 3 :] = True
        return {
            "mask_labels": [masks, masks[:0]],
            "class_labels": [torch.tensor([2, 0]), torch.zeros(0, dtype=torch.int64)],
        }

    @pytest.mark.parametrize("size", [(64, 96), (70, 90), (97, 131)], ids=str)
    def test_shapes(self, shared, size):
        height, width = size
        pixel_mask = torch.zeros(2, height, width, dtype=torch.int64)
        pixel_mask[0], pixel_mask[1, :40, :50] = 1, 1
        images = self.images(height, width)
        before = images.clone()
        with torch.no_grad():
            outputs = shared(images, pixel_mask=pixel_mask)
        assert outputs.class_queries_logits.shape == (2, NUM_QUERIES, NUM_LABELS + 1)
        assert outputs.masks_queries_logits.shape == (2, NUM_QUERIES, math.ceil(height / 4), math.ceil(width / 4))
        assert outputs.image_sizes.tolist() == [[height, width], [40, 50]]
        assert outputs.padded_sizes.tolist() == [[height, width]] * 2
        assert outputs.image_sizes.dtype == outputs.padded_sizes.dtype == torch.int64
        unasked = {"loss", "loss_dict", "auxiliary_logits", "encoder_hidden_states", "cross_attentions"}
        assert not unasked & outputs.keys()
        assert torch.equal(images, before)

    def test_every_parameter_gets_a_gradient(self):
        model = self.model().train()
        model(self.images(70, 90), **self.targets(70, 90)).loss.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name

    def test_a_step_makes_the_masks_of_one_layer_at_a_time(self, monkeypatch):
        monkeypatch.setattr(matcher, "VALUES_AT_ONCE", AtOnce(2**14, 2**14))
        monkeypatch.setattr(dense_workspace, "PIXELS_AT_ONCE", AtOnce(2**14, 2**14))
        model = self.model(num_queries=100, decoder_layers=3).train()
        with LargestTensor() as largest:
            outputs = model(self.images(128, 192), **self.targets(128, 192))
            outputs.loss.backward()
        assert largest.numel == outputs.masks_queries_logits.numel()

    @pytest.mark.parametrize("use_auxiliary_loss", [True, False])
    def test_loss(self, use_auxiliary_loss):
        model = self.model(use_auxiliary_loss=use_auxiliary_loss)
        with torch.no_grad():
            outputs = model(self.images(), **self.targets())
        terms = ["loss_ce", "loss_mask", "loss_dice"]
        auxiliary = range(self.num_predictions - 1) if use_auxiliary_loss else ()
        expected = terms + [f"{term}_{i}" for i in auxiliary for term in terms]
        assert sorted(outputs.loss_dict) == sorted(expected)
        total = sum(self.weights[name.split("_")[1]] * term for name, term in outputs.loss_dict.items())
        torch.testing.assert_close(outputs.loss, total)

    def test_auxiliary_logits(self, shared):
        with torch.no_grad():
            outputs, plain = shared(self.images(), output_auxiliary_logits=True), shared(self.images())
        assert len(outputs.auxiliary_logits) == self.num_predictions - 1
        for name in LOGITS:
            for layer in outputs.auxiliary_logits:
                assert layer[name].shape == outputs[name].shape
                assert not torch.allclose(layer[name], outputs[name])
            torch.testing.assert_close(outputs[name], plain[name])

    def test_hidden_states(self, shared):
        with torch.no_grad():
            outputs, plain = shared(self.images(), output_hidden_states=True), shared(self.images())
        maps = [tuple(state.shape[-2:]) for state in outputs.encoder_hidden_states]
        assert maps == [(16, 24), (8, 12), (4, 6), (2, 3)]
        assert [tuple(state.shape[-2:]) for state in outputs.pixel_decoder_hidden_states] == self.memory_sizes
        states = outputs.transformer_decoder_hidden_states
        assert [tuple(state.shape) for state in states] == [(2, NUM_QUERIES, WIDTH)] * self.num_predictions
        assert torch.equal(states[-1], outputs.transformer_decoder_last_hidden_state)
        assert torch.equal(outputs.encoder_hidden_states[-1], outputs.encoder_last_hidden_state)
        for name in LOGITS:
            torch.testing.assert_close(outputs[name], plain[name])

    def test_attentions(self, shared):
        eager = self.model(attn_implementation="eager")
        eager.load_state_dict(shared.state_dict())
        with torch.no_grad():
            outputs, plain = eager(self.images(), output_attentions=True), shared(self.images())
        levels = self.attended_sizes or self.memory_sizes
        cells = [levels[layer % len(levels)] for layer in range(self.num_layers)]
        shapes = {
            "encoder_attentions": [self.encoder_attention_size] * self.num_encoder_attentions,
            "decoder_attentions": [(NUM_QUERIES, NUM_QUERIES)] * self.num_layers,
            "cross_attentions": [(NUM_QUERIES, height * width) for height, width in cells],
        }
        for name, sizes in shapes.items():
            attentions = outputs.get(name) or ()
            assert [tuple(weights.shape) for weights in attentions] == [(2, NUM_HEADS, *size) for size in sizes]
            for weights in attentions:
                torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
        for name in LOGITS:
            torch.testing.assert_close(outputs[name], plain[name], rtol=1e-4, atol=1e-5)
        with pytest.raises(ValueError, match="`output_attentions=True` needs `attn_implementation='eager'`"):
            shared(self.images(), output_attentions=True)

    @pytest.mark.parametrize("with_targets", [False, True])
    def test_tuples(self, shared, with_targets):
        targets = self.targets() if with_targets else {}
        with torch.no_grad():
            outputs = shared(self.images(), **targets)
            as_tuple = shared(self.images(), **targets, return_dict=False)
        assert isinstance(as_tuple, tuple)
        assert len(as_tuple) == len(outputs)
        for value, expected in zip(as_tuple, outputs.values(), strict=True):
            assert type(value) is type(expected)
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, expected)
        assert torch.equal(as_tuple[2 if with_targets else 0], outputs.class_queries_logits)

    def test_round_trip(self, shared, tmp_path):
        shared.save_pretrained(tmp_path)
        again, info = MaskFormerForUniversalSegmentation.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(info.values())
        assert again.state_dict().keys() == shared.state_dict().keys()
        for name, tensor in again.state_dict().items():
            assert torch.equal(tensor, shared.state_dict()[name]), name
        with torch.no_grad():
            expected, got = shared(self.images()), again(self.images())
        for name in LOGITS:
            # Equal weights at other addresses: oneDNN may take another path, and its sums another order.
            torch.testing.assert_close(got[name], expected[name], rtol=1e-5, atol=1e-5)
        ignored = {"_name_or_path", "architectures", "dtype"}
        fields, fields_again = (
            {name: value for name, value in config.to_dict().items() if name not in ignored}
            for config in (self.config(), MaskFormerConfig.from_pretrained(tmp_path))
        )
        # What timm itself knows of the backbone is added when it is built.
        for config in (fields, fields_again):
            config["backbone_config"] = config["backbone_config"]["model_type"]
        assert fields_again == fields

    def test_a_batch_changes_nothing(self, shared):
        images = self.images(70, 90)
        with torch.no_grad():
            together = shared(images)
            alone = [shared(image[None]) for image in images]
        for name in LOGITS:
            torch.testing.assert_close(together[name], torch.cat([output[name] for output in alone]))

    # From 5.23 on it is called activation_checkpointing_enable.
    @pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated")
    def test_gradient_checkpointing(self):
        gradients = []
        for checkpointing in (False, True):
            model = self.model(dropout=0.0).train()
            if checkpointing:
                model.gradient_checkpointing_enable()
                assert model.model.transformer_decoder.layers[0].gradient_checkpointing
            model(self.images(), **self.targets()).loss.backward()
            gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6, msg=name)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_half_precision_inference(self, shared, dtype):
        half = copy.deepcopy(shared).to(dtype)
        with torch.no_grad():
            expected, got = shared(self.images()), half(self.images())
        for name in LOGITS:
            assert got[name].dtype == dtype
            scale = expected[name].abs().mean()
            assert (got[name].float() - expected[name]).abs().mean() < 0.1 * scale

    @pytest.mark.parametrize("autocast", [False, True], ids=["bfloat16 weights", "autocast"])
    def test_bfloat16_training(self, autocast):
        model = self.model().train()
        if not autocast:
            model.to(torch.bfloat16)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            outputs = model(self.images(), **self.targets())
        assert outputs.loss.dtype == torch.float32
        outputs.loss.backward()
        before = model.head.class_predictor.weight.detach().clone()
        optimizer.step()
        assert not torch.equal(model.head.class_predictor.weight, before)
        assert all(torch.isfinite(parameter).all() for parameter in model.parameters())

    def test_export(self, shared):
        """The inference graph for any batch, height and width."""
        batch, rows, columns = torch.export.dims("batch", "rows", "columns", min=2, max=1024)
        sizes = {2: 32 * rows, 3: 32 * columns} if self.exports_any_size else {}
        exported = torch.export.export(
            _Logits(shared), (self.images(64, 96),), dynamic_shapes={"pixel_values": {0: batch, **sizes}}
        ).module()
        for images in (self.images(96, 128, 3), self.images(128, 64, 4)) if sizes else (self.images(64, 96, 3),):
            with torch.no_grad():
                expected, got = shared(images), exported(images)
            for name, logits in zip(LOGITS, got, strict=True):
                torch.testing.assert_close(logits, expected[name], rtol=1e-4, atol=1e-5)

    def test_compile(self, shared):
        torch.compiler.reset()
        compiled = torch.compile(shared, fullgraph=True, backend="eager")
        with torch.no_grad():
            expected, got = shared(self.images()), compiled(self.images())
        for name in LOGITS:
            torch.testing.assert_close(got[name], expected[name], rtol=1e-4, atol=1e-5)


class _Logits(nn.Module):
    """An exported graph gives tensors and no ModelOutput."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        outputs = self.model(pixel_values)
        return outputs.class_queries_logits, outputs.masks_queries_logits


class TestResNet(ModelContract):
    pass


class TestResNetWithEncoder(ModelContract):
    fields = {"pixel_decoder": "transformer_fpn"}  # noqa: RUF012
    num_encoder_attentions = 1


class TestPreNorm(ModelContract):
    fields = {  # noqa: RUF012
        "pixel_decoder": "transformer_fpn",
        "pre_norm": True,
        "decoder_encoder_layers": 1,
        "enforce_input_projection": True,
    }
    num_encoder_attentions = 1


class TestPointLoss(ModelContract):
    fields = {"mask_loss": "points", "num_points": 64}  # noqa: RUF012


class TestSwin(ModelContract):
    backbone = SWIN
    # transformers' Swin branches on sizes, and keeps torch's exporter busy for minutes; `maskformer_hf.export` takes
    # the branches out.
    exports_any_size = False


class TestTimm(ModelContract):
    backbone = TIMM


class Mask2FormerContract(ModelContract):
    """The prediction of the learned queries is one more; levels of strides 32, 16 and 8 in turn."""

    fields = {**MASK2FORMER, "encoder_ffn_dim": 40, "decoder_layers": NUM_LAYERS, "num_points": 64}  # noqa: RUF012
    weights = {"ce": 2, "mask": 5, "dice": 5}  # noqa: RUF012
    num_encoder_attentions = 1
    # 3 maps of 6, 24 and 96 cells, 4 points on each.
    encoder_attention_size = (126, 12)
    memory_sizes = [(2, 3), (4, 6), (8, 12)]  # noqa: RUF012
    num_predictions = NUM_LAYERS + 1
    # Once is enough: torch's exporter takes its time to add up three maps of any size.
    exports_any_size = False


class TestMask2Former(Mask2FormerContract):
    exports_any_size = True


class TestMask2FormerWithDropout(Mask2FormerContract):
    """Which released ones have not, nor other widths and orders of norms than in the paper."""

    fields = {  # noqa: RUF012
        **Mask2FormerContract.fields,
        "dropout": 0.1,
        "feature_size": 64,
        "pre_norm": True,
        # As many as there are levels, which each have a projection here.
        "decoder_layers": 3,
    }
    num_layers, num_predictions = 3, 4


class TestMask2FormerSwin(Mask2FormerContract):
    backbone = SWIN


class TestTwoDeformableLevels(Mask2FormerContract):
    """The finest level of the memory comes from the pyramid."""

    fields = {**Mask2FormerContract.fields, "encoder_levels": 2}  # noqa: RUF012
    encoder_attention_size = (30, 8)


class TestMaskedDecoderOnFPN(ModelContract):
    """Any pixel decoder and any transformer decoder make a model."""

    fields = {"transformer_decoder": "masked"}  # noqa: RUF012
    num_predictions = NUM_LAYERS + 1


class TestDetrDecoderOnDeformable(ModelContract):
    fields = {"pixel_decoder": "deformable"}  # noqa: RUF012
    exports_any_size = False
    num_encoder_attentions = 1
    encoder_attention_size = (126, 12)
    memory_sizes = [(2, 3), (4, 6), (8, 12)]  # noqa: RUF012
    attended_sizes = [(2, 3)]  # noqa: RUF012


def test_auto_classes(tiny_checkpoint, tiny_model):
    assert isinstance(AutoConfig.from_pretrained(tiny_checkpoint), MaskFormerConfig)
    assert isinstance(AutoModel.from_pretrained(tiny_checkpoint), MaskFormerModel)
    for task in ("UniversalSegmentation", "InstanceSegmentation", "SemanticSegmentation", "ImageSegmentation"):
        model = getattr(transformers, f"AutoModelFor{task}").from_pretrained(tiny_checkpoint)
        assert isinstance(model, MaskFormerForUniversalSegmentation)
        assert torch.equal(model.head.class_predictor.weight, tiny_model.head.class_predictor.weight)
