"""Panoptic SegFormer as a model of this package: the contract of all models, its classes, and what it refuses."""

from typing import Any, ClassVar

import pytest
import torch

from builders import random_model, resnet, tiny_config
from maskformer_hf.models.boxes import boxes_of_masks, generalized_iou, to_centers, to_edges
from maskformer_hf.presets import PANOPTIC_SEGFORMER
from tests.models.contract import NUM_LABELS, NUM_LAYERS, NUM_QUERIES, AnyModelContract

FIELDS = {
    **PANOPTIC_SEGFORMER,
    "label_ids_to_fuse": [1],
    "num_queries": NUM_QUERIES - 1,
    "thing_mask_layers": 1,
    "stuff_mask_layers": 2,
    "ffn_dim": 48,
}


class TestContract(AnyModelContract):
    """One stuff query behind four of things. Masks have stride 8, boxes and classes an auxiliary layer."""

    fields: ClassVar[dict[str, Any]] = FIELDS
    stride = 8
    map_sizes: ClassVar = [(8, 12), (4, 6), (2, 3)]
    memory_sizes: ClassVar = [(1, 2), (2, 3), (4, 6), (8, 12)]
    num_encoder_attentions = 1
    exports_any_size = False

    def test_loss(self):  # pyrefly: ignore[bad-override]
        for use_auxiliary_loss in (True, False):
            model = self.model(use_auxiliary_loss=use_auxiliary_loss).train()
            outputs = model(self.images(), **self.targets())
            weights = {"loss_class": 2, "loss_box": 5, "loss_giou": 2, "thing_loss_dice": 2, "stuff_loss_dice": 2}
            weights |= {"stuff_loss_class_0": 4}
            if use_auxiliary_loss:
                weights |= {f"loss_{name}_0": weight for name, weight in (("class", 2), ("box", 5), ("giou", 2))}
                weights |= {"thing_loss_dice_0": 2, "stuff_loss_dice_0": 2, "stuff_loss_dice_1": 2}
                weights |= {"stuff_loss_class_1": 4}
            assert sorted(outputs.loss_dict) == sorted(weights)
            total = sum(weights[name] * term for name, term in outputs.loss_dict.items())
            torch.testing.assert_close(outputs.loss, total)

    def test_auxiliary_logits(self, shared):
        """The result has one layer: boxes of earlier ones are no masks."""
        with torch.no_grad():
            outputs = shared(self.images(), output_auxiliary_logits=True)
        assert outputs.auxiliary_logits == []

    def test_hidden_states(self, shared):
        with torch.no_grad():
            outputs = shared(self.images(), output_hidden_states=True)
        assert [tuple(state.shape[-2:]) for state in outputs.encoder_hidden_states] == self.map_sizes
        assert [tuple(state.shape[-2:]) for state in outputs.pixel_decoder_hidden_states] == self.memory_sizes
        states = outputs.transformer_decoder_hidden_states
        assert [tuple(state.shape) for state in states] == [(2, NUM_QUERIES - 1, 32)] * NUM_LAYERS

    def test_attentions(self, shared):
        eager = self.model(attn_implementation="eager")
        eager.load_state_dict(shared.state_dict())
        with torch.no_grad():
            outputs, plain = eager(self.images(), output_attentions=True), shared(self.images())
        assert [w.shape for w in outputs.decoder_attentions] == [(2, 4, NUM_QUERIES - 1, NUM_QUERIES - 1)] * NUM_LAYERS
        # 4 points on each of 4 maps.
        assert [w.shape for w in outputs.cross_attentions] == [(2, 4, NUM_QUERIES - 1, 16)] * NUM_LAYERS
        for weights in (*outputs.decoder_attentions, *outputs.cross_attentions):
            torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
        torch.testing.assert_close(outputs.masks_queries_logits, plain.masks_queries_logits, rtol=1e-4, atol=1e-5)

    def test_a_batch_changes_nothing(self, shared):
        """Logits of masks are values times 8, and so are their rounding errors."""
        images = self.images(70, 90)
        with torch.no_grad():
            together, alone = shared(images), [shared(image[None]) for image in images]
        for name in self.logits:
            expected = torch.cat([output[name] for output in alone])
            torch.testing.assert_close(together[name], expected, rtol=1e-5, atol=1e-4)

    def trained_weight(self, model):
        return model.model.transformer_decoder.class_predictors[0].weight

    def test_a_mask_without_padding_changes_nothing_and_padding_does(self, shared):
        images = self.images()
        ones = torch.ones(2, 64, 96, dtype=torch.int64)
        part = ones.clone()
        part[:, 40:] = 0
        with torch.no_grad():
            plain, whole, padded = (shared(images, pixel_mask=mask) for mask in (None, ones, part))
        torch.testing.assert_close(whole.class_queries_logits, plain.class_queries_logits, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(padded.class_queries_logits, plain.class_queries_logits)


def model_of(**fields):
    return random_model(tiny_config(**{**FIELDS, "num_labels": NUM_LABELS, **fields}))


def test_a_query_has_only_its_kind_of_classes():
    with torch.no_grad():
        scores = model_of()(torch.randn(1, 3, 64, 96)).class_queries_logits.sigmoid()[0]
    assert (scores[:-1, [0, 2]] > 0).all()
    assert (scores[:-1, [1, 3]] == 0).all()
    assert (scores[-1, 1] > 0).all()
    assert (scores[-1, [0, 2, 3]] == 0).all()


def test_no_gradient_of_boxes_reaches_stuff():
    model = model_of().train()
    decoder = model.model.transformer_decoder
    masks = torch.zeros(1, 64, 96, dtype=torch.bool)
    masks[0, :32] = True
    outputs = model(torch.randn(1, 3, 64, 96), mask_labels=[masks], class_labels=[torch.tensor([2])])
    outputs.loss.backward()
    # No stuff in the image: its classes are taught absence, its masks nothing.
    assert decoder.stuff_masks.last.maps.join.weight.grad.abs().max() == 0
    assert decoder.box_predictors[0].layers[-1].weight.grad.abs().max() > 0
    assert decoder.thing_box_predictors[0].layers[0].weight.grad.abs().max() == 0


def test_classes_change_with_their_kind(tmp_path):
    model = model_of(id2label={0: "car", 1: "sky", 2: "person"}, label2id=None)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(
        tmp_path, id2label={0: "road", 1: "person", 2: "sky", 3: "dog"}, label_ids_to_fuse=[0, 2]
    )
    old, new = model.model.transformer_decoder, again.model.transformer_decoder
    assert (new.things, new.stuff) == ([1, 3], [0, 2])
    assert torch.equal(new.class_predictors[0].weight[0], old.class_predictors[0].weight[1])
    assert torch.equal(new.stuff_features.weight[1], old.stuff_features.weight[0])
    masks = torch.zeros(2, 64, 96, dtype=torch.bool)
    masks[0, :32] = masks[1, 32:] = True
    outputs = again.train()(torch.randn(1, 3, 64, 96), mask_labels=[masks], class_labels=[torch.tensor([3, 0])])
    assert torch.isfinite(outputs.loss)
    assert outputs.class_queries_logits.shape == (1, NUM_QUERIES - 1 + 2, 5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"label_ids_to_fuse": None}, "needs both: `label_ids_to_fuse` names 0 of 3 classes as stuff"),
        ({"label_ids_to_fuse": [0, 1, 2]}, "needs both: `label_ids_to_fuse` names 3 of 3 classes as stuff"),
        ({"pixel_decoder": "fpn"}, "needs `pixel_decoder='encoder'` of its own width: got 'fpn'"),
        ({"criterion": None}, "needs `criterion='panoptic_segformer'`, which knows boxes, got None"),
        ({"transformer_decoder": "detr"}, "`pixel_decoder='encoder'` makes no map of stride 4"),
        ({"query_source": "denoising"}, "neither a `query_source` nor `pre_norm`"),
        ({"thing_mask_layers": 0}, "`thing_mask_layers` must be at least 1, got 0"),
        ({"loss_terms": {"cross_entropy": 1.0}}, "has no `loss_terms` but its own"),
        ({"encoder_norm_groups": 7}, "`feature_size` must be a multiple of `encoder_norm_groups`, got 32 and 7"),
    ],
)
def test_what_cannot_be_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**{**FIELDS, "backbone_config": resnet(), **fields})


def test_boxes():
    masks = torch.zeros(3, 6, 8, dtype=torch.bool)
    masks[0, 1:3, 2:7] = True
    masks[1, 5, 0] = True
    assert boxes_of_masks(masks).tolist() == [[2, 1, 7, 3], [0, 5, 1, 6], [0, 0, 0, 0]]
    assert boxes_of_masks(masks[:0]).shape == (0, 4)
    edges = boxes_of_masks(masks[:2])
    torch.testing.assert_close(to_edges(to_centers(edges)), edges)
    # Areas 10 and 1, no overlap, a hull of 7 x 5.
    giou = generalized_iou(edges[:, None], edges)
    torch.testing.assert_close(giou, torch.tensor([[1.0, -(35 - 11) / 35], [-(35 - 11) / 35, 1.0]]))
