"""The per-pixel baselines: the contract of every model, and what is true of both of them."""

import copy
import math
from typing import Any, ClassVar

import pytest
import torch
from torch.nn import functional as F
from torchvision import tv_tensors
from transformers import AutoImageProcessor

from builders import convnext, resnet
from maskformer_hf import MaskFormerForUniversalSegmentation, MaskFormerImageProcessor, MaskFormerModel
from maskformer_hf import PerPixelBaseline as Model
from maskformer_hf import PerPixelBaselineConfig as Config
from maskformer_hf.data import Collator
from maskformer_hf.models.image_geometry import ImageGeometry
from maskformer_hf.models.modeling_auto import MODEL_CLASSES
from maskformer_hf.models.semantic import per_pixel_scores, per_pixel_segmentation
from maskformer_hf.models.transformers_layout import MODEL_TYPES
from maskformer_hf.training.optimization import parameter_groups
from tests.models.contract import NUM_LABELS, NUM_LAYERS, AnyModelContract

RESNET, CONVNEXT = resnet(), convnext()
VOID = 255
LABELS = ["road", "sky", "tree"]


class PerPixelContract(AnyModelContract):
    """What both baselines keep."""

    kind = "per_pixel"
    auto_classes = ("AutoModelForSemanticSegmentation",)
    has_base_model = False
    logits = ("logits",)
    weights: ClassVar[dict[str, float]] = {"loss_sem_seg": 1}
    num_layers, num_predictions = 0, 1
    loss_names: tuple[str, ...] = ("loss_sem_seg",)

    def config(self, **fields) -> Config:
        return super().config(**{"labels": LABELS, **fields})

    @staticmethod
    def labels(height=64, width=96, batch_size=2) -> torch.Tensor:
        """A stripe of each class and one of void."""
        labels = torch.full((batch_size, height, width), VOID)
        for label in range(NUM_LABELS):
            labels[:, :, label * width // 4 : (label + 1) * width // 4] = label
        return labels

    @classmethod
    def targets(cls, height=64, width=96):
        return {"labels": cls.labels(height, width)}

    def logit_shapes(self, height, width):
        return {"logits": (2, NUM_LABELS, math.ceil(height / 4), math.ceil(width / 4))}

    def padded_size(self, height, width):
        """What the logits cover."""
        return [4 * math.ceil(height / 4), 4 * math.ceil(width / 4)]

    def trained_weight(self, model):
        return model.head.classifier.weight

    def test_every_parameter_gets_a_gradient_from_an_encoder_too(self):
        self.assert_gradients(self.model(pixel_decoder="transformer_fpn"))

    @pytest.mark.parametrize("size", [(64, 96), (70, 90), (97, 131)], ids=str)
    def test_segmentations_have_the_size_of_the_image(self, shared, size):
        pixel_mask = torch.zeros(2, *size, dtype=torch.int64)
        pixel_mask[0], pixel_mask[1, :40, :50] = 1, 1
        with torch.no_grad():
            outputs = shared(self.images(*size), pixel_mask=pixel_mask)
        segmentations = MaskFormerImageProcessor().post_process_semantic_segmentation(outputs)
        assert [tuple(segmentation.shape) for segmentation in segmentations] == [size, (40, 50)]

    def test_it_is_not_read_as_another_model(self, shared, tmp_path):
        shared.save_pretrained(tmp_path)
        MaskFormerImageProcessor().save_pretrained(tmp_path)
        assert type(AutoImageProcessor.from_pretrained(tmp_path)) is MaskFormerImageProcessor
        with pytest.raises(ValueError, match="is a 'maskformer_hf_per_pixel' model; only 'maskformer_hf' and"):
            MaskFormerForUniversalSegmentation.from_pretrained(tmp_path)

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
        groups = parameter_groups(model, learning_rate=3e-3, weight_decay=1e-4, multipliers={})
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

    def test_other_labels(self, shared, tmp_path, caplog):
        """What belongs to a class that the checkpoint knows by name is kept, also in another place."""
        shared.save_pretrained(tmp_path)
        names = {0: "sky", 1: "person", 2: "road", 3: "bird"}
        model = Model.from_pretrained(tmp_path, id2label=names, label2id={name: label for label, name in names.items()})
        assert "Kept: sky, road. Re-initialised, hence to be trained: person, bird." in caplog.text
        assert model.config.num_labels == model.config.num_queries == 4
        if not self.num_layers:
            with torch.no_grad():
                logits, expected = model(self.images()).logits, shared(self.images()).logits
            assert logits.shape[1] == 4
            torch.testing.assert_close(logits[:, [0, 2]], expected[:, [1, 0]])
        else:
            queries, expected = (m.model.transformer_decoder.query_position.weight for m in (model, shared))
            assert torch.equal(queries[[0, 2]], expected[[1, 0]])
        model(self.images(), labels=self.labels()).loss.backward()

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
    checkpointed_fields: ClassVar[dict[str, Any]] = {"pixel_decoder": "transformer_fpn"}

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
    fields: ClassVar[dict[str, Any]] = {"transformer_decoder": "detr"}
    num_layers = num_predictions = NUM_LAYERS

    def trained_weight(self, model):
        return model.head.mask_embedder.layers[-1].weight

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
        (
            {"transformer_decoder": "deformable"},
            r"`transformer_decoder` must be one of \[None, 'detr', 'masked', .*\], got 'deformable'",
        ),
        ({"transformer_decoder": "masked"}, r"`transformer_decoder='masked'` attends within masks of queries"),
        ({"task": "panoptic"}, r"`task` must be one of \['semantic'\], got 'panoptic'"),
        ({"num_labels": 847}, "`semantic_loss_ignore_index`=255 is one of the 847 labels"),
    ],
)
def test_impossible_configurations(fields, message):
    with pytest.raises(ValueError, match=message):
        Config(**fields)


def test_maskformer_needs_its_decoder():
    with pytest.raises(ValueError, match=r"`transformer_decoder` must be one of \['detr', 'masked', .*\], got None"):
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
        assert model_type in (model_class.config_class.model_type, *MODEL_TYPES)


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
