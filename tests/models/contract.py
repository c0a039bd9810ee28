"""What every model keeps, whatever its parts: a subclass says what it is made of and what it differs in.

`class TestMine(ModelContract): fields = {"pixel_decoder": "mine"}` tests a new part. Other inputs, outputs or losses
are hooks: the attributes and methods above the tests.
"""

import copy
import math
from typing import Any, ClassVar

import pytest
import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedModel

from builders import SIZES, random_model, resnet, tiny_config
from maskformer_hf.models import dense_workspace, matcher
from maskformer_hf.models.at_once import AtOnce
from maskformer_hf.models.modeling_auto import model_class_of
from tensors import LargestTensor

NUM_LABELS, NUM_QUERIES, NUM_LAYERS = 3, 5, SIZES["decoder_layers"]
NUM_HEADS, WIDTH = SIZES["num_attention_heads"], SIZES["hidden_size"]


class AnyModelContract:
    """Models of any kind, on batches of two."""

    # A kind of `builders.tiny_config`, which `backbone` and `fields` are given to.
    kind = "maskformer"
    backbone: ClassVar[dict[str, Any]] = resnet()
    fields: ClassVar[dict[str, Any]] = {}
    auto_classes: tuple[str, ...] = ("AutoModelForUniversalSegmentation",)
    # Whether `AutoModel` gives the model without heads.
    has_base_model = True

    # Outputs: their names, and the sizes of maps that 64 x 96 pixels give.
    logits: tuple[str, ...] = ("class_queries_logits", "masks_queries_logits")
    stride = 4
    map_sizes: ClassVar[list[tuple[int, int]]] = [(16, 24), (8, 12), (4, 6), (2, 3)]
    memory_sizes: ClassVar[list[tuple[int, int]]] = [(2, 3)]
    # Where the decoder does not attend to the whole memory.
    attended_sizes: ClassVar[list[tuple[int, int]] | None] = None
    num_encoder_attentions = 0
    encoder_attention_size = (6, 6)
    # Layers of the transformer decoder, 0 if there is none. Mask2Former's learned queries are one more prediction.
    num_layers = NUM_LAYERS
    num_predictions = NUM_LAYERS
    # What lies between the batch and the channels: (T,) for clips.
    frames: tuple[int, ...] = ()

    # Terms of the loss and their weights.
    weights: ClassVar[dict[str, float]] = {"loss_ce": 1, "loss_mask": 20, "loss_dice": 1}
    # Parts of the names of weights that are not trained.
    untrained: tuple[str, ...] = ()
    exports_any_size = True
    # What gives a model without transformer layers one, so that there is something to checkpoint.
    checkpointed_fields: ClassVar[dict[str, Any]] = {}

    def config(self, **fields) -> Any:
        defaults = {"backbone_config": copy.deepcopy(self.backbone), "decoder_layers": self.num_layers or NUM_LAYERS}
        return tiny_config(self.kind, **{**defaults, **self.fields, **fields})

    def model(self, attn_implementation=None, **fields) -> PreTrainedModel:
        return random_model(self.config(**fields), attn_implementation=attn_implementation)

    @pytest.fixture(scope="class")
    @classmethod
    def shared(cls) -> PreTrainedModel:
        """Read only."""
        return cls().model()

    @classmethod
    def images(cls, height=64, width=96, batch_size=2) -> torch.Tensor:
        return torch.randn(batch_size, *cls.frames, 3, height, width, generator=torch.manual_seed(1))

    @classmethod
    def targets(cls, height=64, width=96) -> dict[str, Any]:
        """Two objects in the first image, none in the second."""
        masks = torch.zeros(2, *cls.frames, height, width, dtype=torch.bool)
        masks[0, ..., : height // 2, :] = masks[1, ..., width // 3 :] = True
        return {
            "mask_labels": [masks, masks[:0]],
            "class_labels": [torch.tensor([2, 0]), torch.zeros(0, dtype=torch.int64)],
        }

    def logit_shapes(self, height: int, width: int) -> dict[str, tuple[int, ...]]:
        """Shapes of the logits of two images of this size, by name."""
        cells = math.ceil(height / self.stride), math.ceil(width / self.stride)
        return {
            "class_queries_logits": (2, NUM_QUERIES, NUM_LABELS + 1),
            "masks_queries_logits": (2, NUM_QUERIES, *self.frames, *cells),
        }

    def padded_size(self, height: int, width: int) -> list[int]:
        return [height, width]

    def trained_weight(self, model: PreTrainedModel) -> torch.Tensor:
        """A weight that even a step in bfloat16 changes."""
        return model.head.class_predictor.weight

    @pytest.mark.parametrize("size", [(64, 96), (70, 90), (97, 131)], ids=str)
    def test_shapes(self, shared, size):
        height, width = size
        pixel_mask = torch.zeros(2, *self.frames, height, width, dtype=torch.int64)
        pixel_mask[0], pixel_mask[1, ..., :40, :50] = 1, 1
        images = self.images(height, width)
        before = images.clone()
        with torch.no_grad():
            outputs = shared(images, pixel_mask=pixel_mask)
        shapes = self.logit_shapes(height, width)
        assert tuple(shapes) == self.logits
        assert {name: tuple(outputs[name].shape) for name in shapes} == shapes
        assert outputs.image_sizes.tolist() == [[height, width], [40, 50]]
        assert outputs.padded_sizes.tolist() == [self.padded_size(height, width)] * 2
        assert outputs.image_sizes.dtype == outputs.padded_sizes.dtype == torch.int64
        unasked = {"loss", "loss_dict", "auxiliary_logits", "encoder_hidden_states", "cross_attentions"}
        assert not unasked & outputs.keys()
        assert torch.equal(images, before)

    def test_an_unknown_argument_is_an_error(self, shared):
        for model in (shared, shared.base_model):
            with pytest.raises(TypeError, match=r"unexpected keyword argument 'mask_lables'"):
                model(self.images(), mask_lables=None)

    def test_every_parameter_gets_a_gradient(self):
        self.assert_gradients(self.model())

    def assert_gradients(self, model: PreTrainedModel) -> None:
        model.train()
        model(self.images(70, 90), **self.targets(70, 90)).loss.backward()
        for name, parameter in self.trained(model).items():
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name

    def trained(self, model: PreTrainedModel) -> dict[str, nn.Parameter]:
        """All weights but the untrained ones, which are checked to need no gradient."""
        parameters = dict(model.named_parameters())
        untrained = {name for name in parameters if any(part in name for part in self.untrained)}
        assert bool(untrained) == bool(self.untrained)
        assert {name for name, parameter in parameters.items() if not parameter.requires_grad} == untrained
        assert all(parameters[name].grad is None for name in untrained)
        return {name: parameter for name, parameter in parameters.items() if name not in untrained}

    @pytest.mark.parametrize("use_auxiliary_loss", [True, False])
    def test_loss(self, use_auxiliary_loss):
        model = self.model(use_auxiliary_loss=use_auxiliary_loss)
        with torch.no_grad():
            outputs = model(self.images(), **self.targets())
        auxiliary = range(self.num_predictions - 1) if use_auxiliary_loss else ()
        weights = self.weights | {f"{term}_{i}": weight for i in auxiliary for term, weight in self.weights.items()}
        assert sorted(outputs.loss_dict) == sorted(weights)
        total = sum(weights[name] * term for name, term in outputs.loss_dict.items())
        torch.testing.assert_close(outputs.loss, total)

    def test_auxiliary_logits(self, shared):
        with torch.no_grad():
            outputs, plain = shared(self.images(), output_auxiliary_logits=True), shared(self.images())
        assert len(outputs.auxiliary_logits) == self.num_predictions - 1
        for name in self.logits:
            for layer in outputs.auxiliary_logits:
                # Models with one kind of logits list them without names.
                logits = layer if isinstance(layer, torch.Tensor) else layer[name]
                assert logits.shape == outputs[name].shape
                assert not torch.allclose(logits, outputs[name])
            torch.testing.assert_close(outputs[name], plain[name])

    def test_hidden_states(self, shared):
        with torch.no_grad():
            outputs, plain = shared(self.images(), output_hidden_states=True), shared(self.images())
        assert [tuple(state.shape[-2:]) for state in outputs.encoder_hidden_states] == self.map_sizes
        assert [tuple(state.shape[-2:]) for state in outputs.pixel_decoder_hidden_states] == self.memory_sizes
        embeddings = outputs.pixel_decoder_last_hidden_state
        assert tuple(embeddings.shape[-3:]) == (SIZES["mask_feature_size"], 64 // self.stride, 96 // self.stride)
        for state in (*outputs.encoder_hidden_states, *outputs.pixel_decoder_hidden_states, embeddings):
            assert tuple(state.shape[:-3]) == (2, *self.frames)
        assert torch.equal(outputs.encoder_hidden_states[-1], outputs.encoder_last_hidden_state)
        states = outputs.transformer_decoder_hidden_states or ()
        num_states = self.num_predictions if self.num_layers else 0
        assert [tuple(state.shape) for state in states] == [(2, self.config().num_queries, WIDTH)] * num_states
        if states:
            assert torch.equal(states[-1], outputs.transformer_decoder_last_hidden_state)
        for name in self.logits:
            torch.testing.assert_close(outputs[name], plain[name])

    def test_attentions(self, shared):
        eager = self.model(attn_implementation="eager")
        eager.load_state_dict(shared.state_dict())
        with torch.no_grad():
            outputs, plain = eager(self.images(), output_attentions=True), shared(self.images())
        levels = self.attended_sizes or self.memory_sizes
        sizes = [levels[layer % len(levels)] for layer in range(self.num_layers)]
        cells = [math.prod(self.frames) * height * width for height, width in sizes]
        num_queries = self.config().num_queries
        shapes = {
            "encoder_attentions": [(2, *self.frames, NUM_HEADS, *self.encoder_attention_size)]
            * self.num_encoder_attentions,
            "decoder_attentions": [(2, NUM_HEADS, num_queries, num_queries)] * self.num_layers,
            "cross_attentions": [(2, NUM_HEADS, num_queries, count) for count in cells],
        }
        for name, expected in shapes.items():
            attentions = outputs.get(name) or ()
            assert [tuple(weights.shape) for weights in attentions] == expected
            for weights in attentions:
                torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
        for name in self.logits:
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
        if with_targets:
            assert torch.equal(as_tuple[0], outputs.loss)
        assert torch.equal(as_tuple[2 if with_targets else 0], outputs[self.logits[0]])

    def test_round_trip(self, shared, tmp_path):
        shared.save_pretrained(tmp_path)
        assert model_class_of(tmp_path) is type(shared)
        again, info = type(shared).from_pretrained(tmp_path, output_loading_info=True)
        assert not any(info.values())
        assert again.state_dict().keys() == shared.state_dict().keys()
        for name, tensor in again.state_dict().items():
            assert torch.equal(tensor, shared.state_dict()[name]), name
        if self.has_base_model:
            assert type(AutoModel.from_pretrained(tmp_path)) is type(shared.model)
        automatic = [getattr(transformers, name).from_pretrained(tmp_path) for name in self.auto_classes]
        assert {type(model) for model in automatic} == {type(shared)}
        with torch.no_grad():
            expected = shared(self.images())
            for model in (again, *automatic):
                got = model(self.images())
                for name in self.logits:
                    # Equal weights at other addresses: oneDNN may take another path, and its sums another order.
                    torch.testing.assert_close(got[name], expected[name], rtol=1e-5, atol=1e-5)
        config = AutoConfig.from_pretrained(tmp_path)
        assert type(config) is type(shared.config)
        ignored = {"_name_or_path", "architectures", "dtype"}
        fields, fields_again = (
            {name: value for name, value in config.to_dict().items() if name not in ignored}
            for config in (self.config(), config)
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
        for name in self.logits:
            torch.testing.assert_close(together[name], torch.cat([output[name] for output in alone]))

    # From 5.23 on it is called activation_checkpointing_enable.
    @pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated")
    def test_gradient_checkpointing(self):
        gradients = []
        for checkpointing in (False, True):
            model = self.model(dropout=0.0, **self.checkpointed_fields).train()
            if checkpointing:
                model.gradient_checkpointing_enable()
                if self.num_layers:
                    assert model.model.transformer_decoder.layers[0].gradient_checkpointing
            model(self.images(), **self.targets()).loss.backward()
            gradients.append({name: parameter.grad for name, parameter in self.trained(model).items()})
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6, msg=name)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_half_precision_inference(self, shared, dtype):
        half = copy.deepcopy(shared).to(dtype)
        with torch.no_grad():
            expected, got = shared(self.images()), half(self.images())
        for name in self.logits:
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
        assert all(torch.isfinite(parameter.grad).all() for parameter in self.trained(model).values())
        before = self.trained_weight(model).detach().clone()
        optimizer.step()
        assert not torch.equal(self.trained_weight(model), before)
        assert all(torch.isfinite(parameter).all() for parameter in model.parameters())

    @pytest.mark.slow
    def test_export(self, shared):
        """The inference graph for any batch, height and width."""
        batch, rows, columns = torch.export.dims("batch", "rows", "columns", min=2, max=1024)
        lead = len(self.frames)
        sizes = {2 + lead: 32 * rows, 3 + lead: 32 * columns} if self.exports_any_size else {}
        exported = torch.export.export(
            _Logits(shared, self.logits), (self.images(64, 96),), dynamic_shapes={"pixel_values": {0: batch, **sizes}}
        ).module()
        for images in (self.images(96, 128, 3), self.images(128, 64, 4)) if sizes else (self.images(64, 96, 3),):
            with torch.no_grad():
                expected, got = shared(images), exported(images)
            for name, logits in zip(self.logits, got, strict=True):
                torch.testing.assert_close(logits, expected[name], rtol=1e-4, atol=1e-5)

    @pytest.mark.slow
    def test_compile(self, shared):
        torch.compiler.reset()
        compiled = torch.compile(shared, fullgraph=True, backend="eager")
        with torch.no_grad():
            expected, got = shared(self.images()), compiled(self.images())
        for name in self.logits:
            torch.testing.assert_close(got[name], expected[name], rtol=1e-4, atol=1e-5)


class _Logits(nn.Module):
    """An exported graph gives tensors and no ModelOutput."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]):
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs = self.model(pixel_values)
        return tuple(outputs[name] for name in self.names)


class ModelContract(AnyModelContract):
    """Models of queries, which are matched with targets."""

    # So many that their masks are larger than any map of the model.
    many_queries = 100

    def test_a_step_makes_the_masks_of_one_layer_at_a_time(self, monkeypatch):
        monkeypatch.setattr(matcher, "VALUES_AT_ONCE", AtOnce(2**14, 2**14))
        monkeypatch.setattr(dense_workspace, "PIXELS_AT_ONCE", AtOnce(2**14, 2**14))
        model = self.model(num_queries=self.many_queries, decoder_layers=3).train()
        with LargestTensor() as largest:
            outputs = model(self.images(128, 192), **self.targets(128, 192))
            outputs.loss.backward()
        assert largest.numel == outputs.masks_queries_logits.numel()


class Mask2FormerContract(ModelContract):
    """The prediction of the learned queries is one more; levels of strides 32, 16 and 8 in turn."""

    kind = "mask2former"
    weights: ClassVar[dict[str, float]] = {"loss_ce": 2, "loss_mask": 5, "loss_dice": 5}
    num_encoder_attentions = 1
    # 3 maps of 6, 24 and 96 cells, 4 points on each.
    encoder_attention_size = (126, 12)
    memory_sizes: ClassVar[list[tuple[int, int]]] = [(2, 3), (4, 6), (8, 12)]
    num_predictions = NUM_LAYERS + 1
    # Once is enough: torch's exporter takes its time to add up three maps of any size.
    exports_any_size = False
