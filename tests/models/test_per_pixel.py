"""The per-pixel baselines: one contract for both."""

import copy
import math

import pytest
import torch
from torch.nn import functional as F
from torchvision import tv_tensors
from transformers import AutoConfig, AutoImageProcessor, AutoModelForSemanticSegmentation

from builders import convnext, resnet
from maskformer_hf import MaskFormerForUniversalSegmentation, MaskFormerImageProcessor, MaskFormerModel
from maskformer_hf import PerPixelBaseline as Model
from maskformer_hf import PerPixelBaselineConfig as Config
from maskformer_hf.data import Collator
from maskformer_hf.models.image_geometry import ImageGeometry
from maskformer_hf.models.modeling_auto import MODEL_CLASSES, model_class_of
from maskformer_hf.models.semantic import per_pixel_scores, per_pixel_segmentation
from maskformer_hf.training.optimization import parameter_groups

RESNET, CONVNEXT = resnet(), convnext()
NUM_LABELS, NUM_LAYERS, VOID = 3, 2, 255
LABELS = ["road", "sky", "tree"]


class PerPixelContract:
    """What both baselines keep. `transformer_decoder` tells them apart."""

    transformer_decoder: str | None = None
    loss_names = ("loss_sem_seg",)

    def config(self, **fields) -> Config:
        base = {
            "backbone_config": copy.deepcopy(RESNET),
            "feature_size": 32,
            "mask_feature_size": 16,
            "hidden_size": 32,
            "num_attention_heads": 4,
            "ffn_dim": 48,
            "encoder_layers": 1,
            "decoder_layers": NUM_LAYERS,
            "transformer_decoder": self.transformer_decoder,
            "id2label": dict(enumerate(LABELS)),
            "label2id": {label: index for index, label in enumerate(LABELS)},
        }
        return Config(**{**base, **fields})

    def model(self, **fields) -> Model:
        torch.manual_seed(0)
        return Model(self.config(**fields)).eval()

    @pytest.fixture(scope="class")
    @classmethod
    def shared(cls) -> Model:
        """Read only."""
        return cls().model()

    @staticmethod
    def images(height=64, width=96, batch_size=2) -> torch.Tensor:
        return torch.randn(batch_size, 3, height, width, generator=torch.manual_seed(1))

    @staticmethod
    def labels(height=64, width=96, batch_size=2) -> torch.Tensor:
        """A stripe of each class and one of void."""
        labels = torch.full((batch_size, height, width), VOID)
        for label in range(NUM_LABELS):
            labels[:, :, label * width // 4 : (label + 1) * width // 4] = label
        return labels

    @pytest.mark.parametrize("size", [(64, 96), (70, 90), (97, 131)], ids=str)
    def test_shapes(self, shared, size):
        height, width = size
        pixel_mask = torch.zeros(2, height, width, dtype=torch.int64)
        pixel_mask[0], pixel_mask[1, :40, :50] = 1, 1
        with torch.no_grad():
            outputs = shared(self.images(height, width), pixel_mask=pixel_mask)
        cells = (math.ceil(height / 4), math.ceil(width / 4))
        assert outputs.logits.shape == (2, NUM_LABELS, *cells)
        assert outputs.image_sizes.tolist() == [[height, width], [40, 50]]
        assert outputs.padded_sizes.tolist() == [[4 * cells[0], 4 * cells[1]]] * 2
        assert outputs.image_sizes.dtype == outputs.padded_sizes.dtype == torch.int64
        assert not {"loss", "loss_dict", "auxiliary_logits", "encoder_hidden_states"} & outputs.keys()
        segmentations = MaskFormerImageProcessor().post_process_semantic_segmentation(outputs)
        assert [tuple(segmentation.shape) for segmentation in segmentations] == [(height, width), (40, 50)]

    @pytest.mark.parametrize("backbone", [RESNET, CONVNEXT], ids=lambda backbone: backbone["model_type"])
    @pytest.mark.parametrize("size", [(64, 96), (70, 90), (97, 131)], ids=str)
    def test_loss_is_the_plain_one(self, backbone, size):
        """Cross-entropy of the logits times four, cut to the size of the labels where that is no multiple of four."""
        model = self.model(backbone_config=copy.deepcopy(backbone))
        images, labels = self.images(*size), self.labels(*size)
        with torch.no_grad():
            outputs = model(images, labels=labels, output_auxiliary_logits=True)
        assert tuple(outputs.loss_dict) == self.loss_names
        layers = [*outputs.auxiliary_logits, outputs.logits]
        assert len(layers) == len(self.loss_names)
        for name, logits in zip(self.loss_names, layers, strict=True):
            if 4 * logits.shape[-2] < size[0] or 4 * logits.shape[-1] < size[1]:
                upsampled = [max(4 * cells, pixels) for cells, pixels in zip(logits.shape[-2:], size, strict=True)]
                logits = F.interpolate(logits, size=upsampled, mode="bilinear", align_corners=False)
            else:
                logits = F.interpolate(logits, scale_factor=4, mode="bilinear", align_corners=False)
            logits = logits[..., : size[0], : size[1]]
            seen = labels != VOID
            picked = logits.log_softmax(1).gather(1, labels.where(seen, 0)[:, None])[:, 0]
            torch.testing.assert_close(outputs.loss_dict[name], -picked[seen].mean())
        torch.testing.assert_close(outputs.loss, sum(outputs.loss_dict.values()))

    def test_masks_are_labels(self, shared):
        labels = self.labels()
        masks = [torch.stack([image == label for label in range(NUM_LABELS)]) for image in labels]
        classes = [torch.arange(NUM_LABELS)] * 2
        # A mask below another one is hidden.
        masks[0] = torch.cat([torch.ones_like(masks[0][:1]), masks[0]])
        classes[0] = torch.tensor([2, 0, 1, 2])
        expected = labels.clone()
        expected[0][expected[0] == VOID] = 2
        with torch.no_grad():
            by_labels = shared(self.images(), labels=expected).loss
            by_masks = shared(self.images(), mask_labels=masks, class_labels=classes).loss
            as_numbers = shared(self.images(), mask_labels=[m.float() for m in masks], class_labels=classes).loss
        assert by_labels == by_masks == as_numbers

    @pytest.mark.parametrize("form", ["labels", "masks"])
    def test_nothing_but_void(self, form):
        """A loss of 0 with a gradient, so that distributed training goes on."""
        model = self.model().train()
        targets = {
            "labels": {"labels": torch.full((2, 64, 96), VOID)},
            "masks": {
                "mask_labels": [torch.zeros(0, 64, 96, dtype=torch.bool)] * 2,
                "class_labels": [torch.zeros(0, dtype=torch.int64)] * 2,
            },
        }
        loss = model(self.images(), **targets[form]).loss
        loss.backward()
        assert loss.item() == 0
        assert all(parameter.grad is not None for parameter in model.parameters())

    @pytest.mark.parametrize("pixel_decoder", ["fpn", "transformer_fpn"])
    def test_every_parameter_gets_a_gradient(self, pixel_decoder):
        model = self.model(pixel_decoder=pixel_decoder).train()
        model(self.images(70, 90), labels=self.labels(70, 90)).loss.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name

    def test_trained_by_the_batches_of_the_data_module(self):
        model = self.model().train()
        samples = []
        for index in range(2):
            present, segments_HW = self.labels(60, 90, 1)[0].unique(return_inverse=True)
            segments_HW = torch.where(present[segments_HW] == VOID, -1, segments_HW + 1)
            present = present[present != VOID]
            samples.append(
                {
                    "image": tv_tensors.Image(torch.randint(256, (3, 60, 90), dtype=torch.uint8)),
                    "planes": tv_tensors.Mask(segments_HW[None].int()),
                    "labels": present,
                    "is_crowd": torch.zeros(len(present), dtype=torch.bool),
                    "name": str(index),
                }
            )
        batch = Collator([0.5] * 3, [0.25] * 3)(samples)
        groups = parameter_groups(model, learning_rate=3e-3, weight_decay=1e-4, backbone_multiplier=1.0)
        optimizer = torch.optim.AdamW(
            [{name: group[name] for name in ("params", "lr", "weight_decay")} for group in groups]
        )
        losses = []
        for _ in range(12):
            loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        assert losses[-1] < 0.8 * losses[0]

    def test_round_trip(self, shared, tmp_path):
        shared.save_pretrained(tmp_path)
        MaskFormerImageProcessor().save_pretrained(tmp_path)
        again, info = Model.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(info.values())
        ignored = {"_name_or_path", "architectures", "dtype"}
        fields, fields_again = (
            {name: value for name, value in config.to_dict().items() if name not in ignored}
            for config in (self.config(), again.config)
        )
        # What the loaded weights are, is noted in it.
        for fields_of_one in (fields, fields_again):
            fields_of_one["backbone_config"] = fields_of_one["backbone_config"]["model_type"]
        assert fields_again == fields
        assert type(AutoConfig.from_pretrained(tmp_path)) is Config
        assert type(AutoImageProcessor.from_pretrained(tmp_path)) is MaskFormerImageProcessor
        automatic = AutoModelForSemanticSegmentation.from_pretrained(tmp_path)
        assert type(automatic) is model_class_of(tmp_path) is Model
        with torch.no_grad():
            expected = shared(self.images()).logits
            for model in (again, automatic):
                assert torch.equal(model(self.images()).logits, expected)
        with pytest.raises(ValueError, match="is a 'maskformer_hf_per_pixel' model; only 'maskformer_hf' and"):
            MaskFormerForUniversalSegmentation.from_pretrained(tmp_path)

    def test_other_labels(self, shared, tmp_path, caplog):
        """What belongs to a class that the checkpoint knows by name is kept, also in another place."""
        shared.save_pretrained(tmp_path)
        names = {0: "sky", 1: "person", 2: "road", 3: "bird"}
        model = Model.from_pretrained(tmp_path, id2label=names, label2id={name: label for label, name in names.items()})
        assert "Kept: sky, road. Re-initialised, hence to be trained: person, bird." in caplog.text
        assert model.config.num_labels == model.config.num_queries == 4
        if self.transformer_decoder is None:
            with torch.no_grad():
                logits, expected = model(self.images()).logits, shared(self.images()).logits
            assert logits.shape[1] == 4
            torch.testing.assert_close(logits[:, [0, 2]], expected[:, [1, 0]])
        else:
            queries, expected = (m.model.transformer_decoder.query_position.weight for m in (model, shared))
            assert torch.equal(queries[[0, 2]], expected[[1, 0]])
        model(self.images(), labels=self.labels()).loss.backward()

    def test_hidden_states(self, shared):
        with torch.no_grad():
            outputs, plain = shared(self.images(), output_hidden_states=True), shared(self.images())
        maps = [tuple(state.shape[-2:]) for state in outputs.encoder_hidden_states]
        assert maps == [(16, 24), (8, 12), (4, 6), (2, 3)]
        assert outputs.pixel_decoder_last_hidden_state.shape == (2, 16, 16, 24)
        assert torch.equal(outputs.logits, plain.logits)

    def test_tuples(self, shared):
        with torch.no_grad():
            outputs = shared(self.images(), labels=self.labels())
            as_tuple = shared(self.images(), labels=self.labels(), return_dict=False)
        assert isinstance(as_tuple, tuple)
        assert torch.equal(as_tuple[0], outputs.loss)
        assert torch.equal(as_tuple[2], outputs.logits)

    def test_a_batch_changes_nothing(self, shared):
        images = self.images(70, 90)
        with torch.no_grad():
            together = shared(images).logits
            alone = torch.cat([shared(image[None]).logits for image in images])
        torch.testing.assert_close(together, alone)

    @pytest.mark.parametrize("autocast", [False, True], ids=["bfloat16 weights", "autocast"])
    def test_bfloat16_training(self, autocast):
        model = self.model().train()
        if not autocast:
            model.to(torch.bfloat16)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = model(self.images(), labels=self.labels()).loss
        assert loss.dtype == torch.float32
        loss.backward()
        assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())

    @pytest.mark.parametrize(
        ("targets", "message"),
        [
            (
                {"labels": torch.zeros(2, 16, 24, dtype=torch.int64)},
                r"must have shape \(2, 64, 96\).* pad them with 255",
            ),
            ({"labels": torch.full((2, 64, 96), 3)}, r"`labels` of image 0 .* hold 3, but the model knows 0 to 2"),
            ({"labels": torch.full((2, 64, 96), -1)}, "hold -1"),
            ({"mask_labels": [torch.zeros(1, 64, 96)] * 2}, "come together"),
            (
                {"mask_labels": [torch.zeros(1, 64, 96)] * 2, "class_labels": [torch.tensor([3])] * 2},
                "class label 3, but the model knows 0 to 2",
            ),
            (
                {"mask_labels": [torch.full((1, 64, 96), 7)] * 2, "class_labels": [torch.tensor([1])] * 2},
                "hold the value 7",
            ),
            ({"mask_labels": [torch.zeros(1, 16, 24)] * 2, "class_labels": [torch.tensor([1])] * 2}, "have size"),
            (
                {
                    "labels": torch.zeros(2, 64, 96, dtype=torch.int64),
                    "mask_labels": [torch.zeros(1, 64, 96)] * 2,
                    "class_labels": [torch.tensor([1])] * 2,
                },
                "two forms of the same targets",
            ),
        ],
    )
    def test_wrong_targets_are_named(self, shared, targets, message):
        with pytest.raises(ValueError, match=message):
            shared(self.images(), **targets)


class TestPerPixelBaseline(PerPixelContract):
    def test_there_are_no_queries(self, shared):
        assert shared.model.transformer_decoder is None
        with torch.no_grad():
            outputs = shared(self.images(), output_hidden_states=True, output_auxiliary_logits=True)
        assert outputs.auxiliary_logits == ()
        assert outputs.transformer_decoder_hidden_states is None

    def test_initialisation_of_the_classifier(self):
        """He et al. by fan-out, Detectron2's `c2_msra_fill`."""
        classifier = self.model(mask_feature_size=256, num_labels=150, id2label=None, label2id=None).head.classifier
        assert classifier.weight.std().item() == pytest.approx((2 / 150) ** 0.5, rel=0.02)
        assert abs(classifier.weight.mean().item()) < 2e-3
        assert not classifier.bias.any()


class TestPerPixelBaselinePlus(PerPixelContract):
    transformer_decoder = "detr"
    loss_names = ("loss_sem_seg_0", "loss_sem_seg")

    def test_it_is_maskformer_without_classes_and_matching(self, shared):
        """The same weights in MaskFormer with a query a class: its masks are the logits."""
        fields = {name: getattr(shared.config, name) for name in ("feature_size", "mask_feature_size", "hidden_size")}
        fields |= {name: getattr(shared.config, name) for name in ("num_attention_heads", "ffn_dim", "decoder_layers")}
        config = MaskFormerForUniversalSegmentation.config_class(
            backbone_config=copy.deepcopy(RESNET), num_queries=NUM_LABELS, num_labels=NUM_LABELS, **fields
        )
        maskformer = MaskFormerForUniversalSegmentation(config).eval()
        loaded = maskformer.load_state_dict(shared.state_dict(), strict=False)
        assert loaded.missing_keys == ["head.class_predictor.weight", "head.class_predictor.bias"]
        assert not loaded.unexpected_keys
        with torch.no_grad():
            assert torch.equal(shared(self.images()).logits, maskformer(self.images()).masks_queries_logits)

    def test_without_deep_supervision(self):
        model = self.model(use_auxiliary_loss=False)
        outputs = model(self.images(), labels=self.labels(), output_auxiliary_logits=True)
        assert tuple(outputs.loss_dict) == ("loss_sem_seg",)
        assert len(outputs.auxiliary_logits) == NUM_LAYERS - 1

    def test_queries_follow_labels_that_are_set_late(self):
        config = self.config(num_queries=100)
        assert config.num_queries == NUM_LABELS
        config.num_labels = 5
        assert Model(config)(self.images()).logits.shape[1] == 5


# --- configuration


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"transformer_decoder": "deformable"}, r"`transformer_decoder` must be one of \[None, 'detr', 'masked'\]"),
        ({"transformer_decoder": "masked"}, r"`transformer_decoder='masked'` attends within masks of queries"),
        ({"task": "panoptic"}, r"`task` must be one of \['semantic'\], got 'panoptic'"),
        ({"num_labels": 847}, "`semantic_loss_ignore_index`=255 is one of the 847 labels"),
    ],
)
def test_impossible_configurations(fields, message):
    with pytest.raises(ValueError, match=message):
        Config(**fields)


def test_maskformer_needs_its_decoder():
    with pytest.raises(ValueError, match=r"`transformer_decoder` must be one of \['detr', 'masked'\], got None"):
        MaskFormerModel.config_class(transformer_decoder=None)


def test_other_models_are_not_read_as_baselines():
    for model_type in ("maskformer", "maskformer_hf"):
        with pytest.raises(ValueError, match=f"is a '{model_type}' model; only 'maskformer_hf_per_pixel' can be read"):
            Config.from_dict({"model_type": model_type})


def test_more_labels_than_bytes():
    config = Config(num_labels=300, semantic_loss_ignore_index=65535, backbone_config=RESNET)
    model = Model(config)
    labels = torch.full((1, 32, 32), 65535)
    labels[:, :16] = 255
    loss = model(torch.zeros(1, 3, 32, 32), labels=labels).loss
    assert loss.item() > 0


def test_the_table_of_models_is_complete():
    for model_type, model_class in MODEL_CLASSES.items():
        assert model_type in (model_class.config_class.model_type, "maskformer", "mask2former")


# --- post-processing


@pytest.mark.parametrize("num_labels", [1, 2, 40])
@pytest.mark.parametrize(
    "geometry",
    [
        ImageGeometry((64, 96), (64, 96), (64, 96)),
        ImageGeometry((64, 96), (61, 70), (61, 70)),
        ImageGeometry((64, 96), (61, 70), (128, 131)),
        ImageGeometry((64, 96), (60, 96), (23, 41)),
    ],
    ids=str,
)
def test_segmentation_is_the_plain_one(num_labels, geometry):
    logits = 5 * torch.randn(num_labels, 16, 24, generator=torch.manual_seed(0))
    _, (height, width), target = geometry
    plain = F.interpolate(logits[None], scale_factor=4, mode="bilinear", align_corners=False)[..., :height, :width]
    plain = F.interpolate(plain, size=target, mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(per_pixel_scores(logits, geometry), plain, rtol=0, atol=1e-5)
    segmentation = per_pixel_segmentation(logits, geometry)
    assert segmentation.shape == target
    assert segmentation.dtype == torch.int64
    best = plain.max(0).values
    picked = plain.gather(0, segmentation[None])[0]
    torch.testing.assert_close(picked, best, rtol=0, atol=1e-4)
    assert (segmentation == plain.argmax(0)).float().mean() > 0.999


def test_instances_of_a_per_pixel_model_are_refused():
    outputs = Model(Config(backbone_config=RESNET))(torch.zeros(1, 3, 32, 32))
    processor = MaskFormerImageProcessor()
    for task in ("instance", "panoptic"):
        with pytest.raises(ValueError, match="only `post_process_semantic_segmentation` can read them"):
            getattr(processor, f"post_process_{task}_segmentation")(outputs)
