"""Options for outlines and relations: each starts as the model without it, and learns."""

from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from builders import random_model, tiny_config
from maskformer_hf import MaskFormerConfig
from maskformer_hf.models import assembly, dense_workspace, matcher, parts
from maskformer_hf.models.at_once import AtOnce
from maskformer_hf.models.interfaces import Ask, Attended, ExtraQueries, PixelDecoderOutput
from maskformer_hf.models.mask_head_dynamic import SHAPES, SIZES, DynamicMaskHead, DynamicMasks, Networks, middles
from maskformer_hf.models.masks import DenseMasks
from maskformer_hf.models.modeling_auto import MODEL_CLASSES
from maskformer_hf.models.part import Part
from maskformer_hf.models.query_relations import BoxRelations, MaskRelations, box_relations, mask_relations, soft_boxes
from tensors import LargestTensor
from tests.models.contract import NUM_LAYERS, Mask2FormerContract, ModelContract

# Fields that add to a model, and the kinds of models that they are tested in.
OPTIONS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "boundary_blocks": ({"boundary_blocks": 2}, ("maskformer", "mask2former", "video", "per_pixel")),
    "boxes": ({"query_relations": "boxes"}, ("mask2former", "video")),
    "masks": ({"query_relations": "masks"}, ("mask2former", "video")),
    "dynamic": ({"mask_head": "dynamic"}, ("maskformer", "mask2former", "video")),
}
CASES = [(name, kind) for name, (_, kinds) in OPTIONS.items() for kind in kinds]


def inputs(kind, height=64, width=96) -> torch.Tensor:
    frames = (2,) if kind == "video" else ()
    return torch.randn(2, *frames, 3, height, width, generator=torch.manual_seed(1))


def targets(kind, height=64, width=96) -> dict[str, Any]:
    if kind == "per_pixel":
        return {"labels": (torch.arange(width) // 40).clamp(max=2).expand(2, height, width)}
    frames = (2,) if kind == "video" else ()
    masks = torch.zeros(2, *frames, height, width, dtype=torch.bool)
    masks[0, ..., : height // 2, :] = masks[1, ..., width // 3 :] = True
    return {"mask_labels": [masks, masks[:1]], "class_labels": [torch.tensor([2, 0]), torch.tensor([1])]}


def logits(model, kind) -> list[torch.Tensor]:
    with torch.no_grad():
        outputs = model(inputs(kind))
    return [outputs[name] for name in outputs if name.endswith("logits")]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_checkpoint_gives_the_same_results_to_the_bit(name, kind, tmp_path):
    plain = random_model(tiny_config(kind))
    plain.save_pretrained(tmp_path)
    model, info = type(plain).from_pretrained(tmp_path, **OPTIONS[name][0], output_loading_info=True)
    assert info["missing_keys"]
    assert not info["unexpected_keys"] | info["mismatched_keys"]
    assert plain.state_dict().keys() | info["missing_keys"] == model.state_dict().keys()
    for expected, got in zip(logits(plain, kind), logits(model.eval(), kind), strict=True):
        assert torch.equal(expected, got)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_new_weights_learn(name, kind, tmp_path):
    """Two steps, because some weights stand behind a zero in the first."""
    plain = random_model(tiny_config(kind))
    model = random_model(tiny_config(kind, **OPTIONS[name][0])).train()
    before = {key: weight.clone() for key, weight in model.state_dict().items() if key not in plain.state_dict()}
    assert before
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    for _ in range(2):
        optimizer.zero_grad()
        model(inputs(kind), **targets(kind)).loss.backward()
        optimizer.step()
    for key, weight in before.items():
        assert not torch.equal(model.state_dict()[key], weight), key
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    for expected, got in zip(logits(model.eval(), kind), logits(again, kind), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_step_makes_no_larger_tensors(name, kind, monkeypatch):
    monkeypatch.setattr(matcher, "VALUES_AT_ONCE", AtOnce(2**14, 2**14))
    monkeypatch.setattr(dense_workspace, "PIXELS_AT_ONCE", AtOnce(2**14, 2**14))
    sizes = []
    for fields in ({}, OPTIONS[name][0]):
        model = random_model(tiny_config(kind, num_queries=50, **fields)).train()
        with LargestTensor() as largest:
            model(inputs(kind, 128, 192), **targets(kind, 128, 192)).loss.backward()
        sizes.append(largest.numel)
    assert sizes[1] <= 1.2 * sizes[0]


def test_off_they_leave_no_trace():
    for kind, model_class in (("maskformer", "maskformer_hf"), ("video", "maskformer_hf_video")):
        names = MODEL_CLASSES[model_class](tiny_config(kind)).state_dict()
        assert not [name for name in names if "blocks" in name or "relation" in name or "network" in name]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"query_relations": "boxes"},
            r"`query_relations`='boxes' is made of the masks before each layer of .*'masked', got 'detr': choose that",
        ),
        ({"query_relations": "graph"}, r"`query_relations` must be one of \[None, 'boxes', 'masks'\], got 'graph'"),
        ({"boundary_blocks": -1}, r"`boundary_blocks` must be 0 \(none\) or more, got -1"),
        (
            {"pixel_decoder": "fapn", "fapn_form": "pyramid"},
            r"`fapn_form` must be one of \['maskformer', 'detection', 'detection_norm'\], got 'pyramid'",
        ),
        (
            {"pixel_decoder": "fapn", "fapn_form": "detection"},
            "`fapn_form`='detection' has a memory of 3 levels, .*'detr' with 6 layers leaves some unread",
        ),
    ],
)
def test_contradictions(fields, message):
    with pytest.raises(ValueError, match=message):
        MaskFormerConfig(**fields)


# --- boundary blocks


class TestBoundaryBlocks(ModelContract):
    fields: ClassVar[dict[str, Any]] = {"boundary_blocks": 1, "transformer_decoder": "masked"}
    num_predictions = NUM_LAYERS + 1


# --- relations between queries


class TestBoxRelations(Mask2FormerContract):
    fields: ClassVar[dict[str, Any]] = {"query_relations": "boxes"}


class TestMaskRelations(Mask2FormerContract):
    fields: ClassVar[dict[str, Any]] = {"query_relations": "masks"}


def rectangles(scale=1, down=0, right=0) -> torch.Tensor:
    """Masks (1, 4, 40, 60): two that touch, one inside of another, one far away."""
    masks = torch.zeros(1, 4, 40, 60, dtype=torch.bool)
    for number, (top, bottom, left, end) in enumerate([(1, 7, 2, 5), (1, 7, 5, 11), (2, 4, 3, 5), (9, 11, 14, 18)]):
        rows, columns = (slice(scale * a + b, scale * c + b) for a, b, c in ((top, down, bottom), (left, right, end)))
        masks[0, number, rows, columns] = True
    return masks


@pytest.fixture(params=[BoxRelations, MaskRelations])
def relations(request):
    torch.manual_seed(0)
    module = request.param(4)
    nn.init.normal_(module.gain)
    return module


def bias_of(relations, masks) -> torch.Tensor:
    with torch.no_grad():
        return relations(masks.flatten(2), masks.shape[2:]).mask


def test_relations_do_not_depend_on_where_all_masks_are(relations):
    expected = bias_of(relations, rectangles())
    assert expected.shape == (1, 4, 4, 4)
    assert expected.std() > 0.01
    torch.testing.assert_close(bias_of(relations, rectangles(down=11, right=7)), expected, rtol=1e-4, atol=1e-4)


def test_relations_follow_the_order_of_queries(relations):
    order = torch.tensor([2, 0, 3, 1])
    expected = bias_of(relations, rectangles())[:, :, order][..., order]
    torch.testing.assert_close(bias_of(relations, rectangles()[:, order]), expected, rtol=1e-4, atol=1e-4)


def test_queries_that_must_not_be_seen_are_not(relations):
    masks, attended = rectangles(), torch.ones(1, 4, 4, dtype=torch.bool)
    attended[0, 1:, 0] = False
    with torch.no_grad():
        bias = relations(masks.flatten(2), masks.shape[2:], Attended(attended, 1)).mask
    assert torch.equal(torch.isinf(bias), ~attended.expand(1, 4, 4, 4))


def test_boxes_do_not_depend_on_the_scale():
    middle, sides = soft_boxes(rectangles())
    assert torch.allclose(sides[0], torch.tensor([[3.0, 6], [6, 6], [2, 2], [4, 2]]), atol=1e-5)
    assert torch.allclose(middle[0, 0], torch.tensor([3.0, 3.5]), atol=1e-5)
    scaled = soft_boxes(rectangles(scale=3, down=2))
    for got, expected in zip(box_relations(*scaled), box_relations(middle, sides), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    video = rectangles()[:, :, None].expand(-1, -1, 3, -1, -1)
    torch.testing.assert_close(soft_boxes(video)[1], sides)


def test_overlap_does_not_depend_on_the_scale_and_far_masks_do_not_touch():
    overlap, within, touching = mask_relations(rectangles())
    assert torch.allclose(overlap[0, 0], torch.tensor([1, 0, 4 / 18, 0]))
    assert torch.allclose(within[0, 2], torch.tensor([1, 0, 1.0, 0]))
    assert torch.allclose(touching[0, 0], torch.tensor([0, 6 / 22, 0, 0]))
    assert touching[0, 3].count_nonzero() == 0
    for number, values in enumerate(mask_relations(rectangles(scale=3))):
        # The ring around a mask is one cell wide whatever the scale, and has four corners.
        tolerance = 0.07 if number == 2 else 1e-6
        torch.testing.assert_close(values, (overlap, within, touching)[number], rtol=0, atol=tolerance)


@pytest.mark.parametrize("is_apart", [False, True])
@pytest.mark.parametrize("kind", ["boxes", "masks"])
def test_extra_queries_keep_their_masks_of_attention(kind, is_apart):
    """A query that may not see another is not told how it lies to it."""
    model = random_model(tiny_config("mask2former", query_relations=kind))
    nn.init.ones_(model.model.transformer_decoder.relations.gain)
    features = torch.randn(2, 3, 32, generator=torch.manual_seed(2))
    attended = torch.ones(8, 8, dtype=torch.bool)
    attended[3:, :3] = False
    with torch.no_grad():
        encoded = model.model.encode(inputs("mask2former"), Ask())
        plain = model.model.decode(encoded, Ask()).outputs[-1].queries[-1]
        extra = ExtraQueries(features, features, (), attended, is_apart=is_apart)
        seen = model.model.decode(encoded, Ask(), extra).outputs[-1].queries[-1][:, 3:]
    torch.testing.assert_close(seen, plain, rtol=1e-4, atol=1e-5)


# --- dynamic masks


class TestDynamicMasks(ModelContract):
    fields: ClassVar[dict[str, Any]] = {"mask_head": "dynamic"}


class TestDynamicMasksAtPoints(Mask2FormerContract):
    fields: ClassVar[dict[str, Any]] = {"mask_head": "dynamic"}


def dynamic_masks(num_frames=None) -> DynamicMasks:
    """Masks of two layers, two images or clips and five queries, with networks that do something."""
    head = random_model(tiny_config(mask_head="dynamic")).head.mask_embedder
    nn.init.normal_(head.last_layer.weight, std=0.5, generator=torch.manual_seed(3))
    frames = num_frames or 1
    pixels = PixelDecoderOutput(torch.randn(2 * frames, 16, 9, 12, generator=torch.manual_seed(4)), ())
    queries = torch.randn(2, 2, 5, 32, generator=torch.manual_seed(5))
    with torch.no_grad():
        return head.masks(head(queries), pixels, Ask(num_frames=num_frames))


def test_dynamic_masks_need_products():
    config = tiny_config()
    config.transformer_decoder = "joint"
    with pytest.raises(ValueError, match=r"`mask_head`='dynamic' adds to products, .*'joint' has masks of its own"):
        DynamicMaskHead.check(config)


@pytest.mark.parametrize("num_frames", [None, 3])
def test_dynamic_masks_are_the_same_however_they_are_read(num_frames):
    masks = dynamic_masks(num_frames)
    dense = DenseMasks(torch.stack([masks.layer(0), masks.layer(1)]))
    assert masks.shape == dense.shape == (2, 2, 5, *((num_frames,) if num_frames else ()), 9, 12)
    assert not torch.allclose(masks.layer(0), masks.products.layer(0), atol=0.1)
    chosen = torch.tensor([4, 1])
    query_LM = torch.tensor([[0, 3, 2], [1, 1, 4]])
    pairs = [
        (masks.image(-1, 1, chosen), dense.image(-1, 1, chosen)),
        (masks[0][1:3], dense[0][1:3]),
        (masks.matched(slice(None), query_LM, [2, 1]), dense.matched(slice(None), query_LM, [2, 1])),
        (masks.matched(slice(1, 2), query_LM[1:, :0], [0, 0]), dense.matched(slice(1, 2), query_LM[1:, :0], [0, 0])),
        (masks.part(slice(-1, None), slice(1, 4)).layer(0), dense.part(slice(-1, None), slice(1, 4)).layer(0)),
        (masks.float().layer(0), dense.float().layer(0)),
    ]
    for got, expected in pairs:
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_frames", [None, 3])
def test_dynamic_masks_are_matched_as_they_are(num_frames):
    """At every cell, and at points, which lie on centres of cells here."""
    masks = dynamic_masks(num_frames)
    dense = DenseMasks(torch.stack([masks.layer(0), masks.layer(1)]))
    points_P2 = torch.tensor([[(3 + 0.5) / 12, (2 + 0.5) / 9], [(11 + 0.5) / 12, (8 + 0.5) / 9]])
    for points in (None, points_P2.expand(2, -1, -1)):
        parts = list(zip(masks.values(1, points), dense.values(1, points), strict=True))
        assert len(parts) == (1 if points is None else 2)
        for got, expected in parts:
            assert got[:3] == expected[:3]
            some = slice(1, got.num_values)
            values = [torch.empty(x.num_rows, x.num_values - 1) for x in (got, expected)]
            with torch.no_grad():
                got.read_negated(some, values[0])
            expected.read_negated(some, values[1])
            torch.testing.assert_close(*values, rtol=1e-4, atol=1e-5)


def test_a_network_without_a_middle_layer_is_a_product():
    """Rank 8: the last layer alone, of channels that are not negative."""
    seen = torch.rand(1, 10, 30, generator=torch.manual_seed(0))
    weights = torch.zeros(1, 2, 169)
    w1, _, w2, _, w3, _ = (
        part.unflatten(-1, shape) for part, shape in zip(weights.split(SIZES, -1), SHAPES, strict=True)
    )
    w1[..., :8] = w2[...] = torch.eye(8)
    w3[0, :, 0] = torch.randn(2, 8, generator=torch.manual_seed(1))
    assert weights.count_nonzero() == 2 * 3 * 8
    got = Networks(weights, torch.zeros(1, 2, 2))(seen)
    torch.testing.assert_close(got, w3[:, :, 0] @ seen[:, :8])


def test_a_network_moves_with_its_mask():
    """Coordinates are relative to the middle of a mask."""
    xy = torch.stack(torch.meshgrid(torch.arange(12.0), torch.arange(9.0), indexing="xy")).flatten(1).T[None]
    masks = torch.full((1, 2, 9, 12), -50.0)
    masks[0, 0, 1:4, 2:5] = masks[0, 1, 4:7, 6:9] = 50.0
    middle = middles(masks.flatten(2), xy)
    torch.testing.assert_close(middle, torch.tensor([[[3.0, 2.0], [7.0, 5.0]]]))
    weights = torch.randn(1, 1, 169, generator=torch.manual_seed(0)).expand(1, 2, 169)
    seen = torch.cat((torch.zeros(1, 8, 108), xy.mT), dim=1)
    first, second = Networks(weights, middle)(seen)[0].unflatten(-1, (9, 12))
    torch.testing.assert_close(first[1:4, 2:5], second[4:7, 6:9])


# --- FaPN


class TestFaPN(ModelContract):
    fields: ClassVar[dict[str, Any]] = {"pixel_decoder": "fapn"}
    # The map of offsets has 216 channels.
    many_queries = 220


class TestDetectionFaPN(ModelContract):
    """With the three levels of its pyramid as memory."""

    fields: ClassVar[dict[str, Any]] = {
        "pixel_decoder": "fapn",
        "fapn_form": "detection",
        "transformer_decoder": "masked",
    }
    memory_sizes: ClassVar[list[tuple[int, int]]] = [(2, 3), (4, 6), (8, 12)]
    num_layers, num_predictions = 3, 4
    many_queries = 220
    exports_any_size = False


def test_fapn_takes_the_weights_of_a_plain_pyramid(tmp_path):
    plain = random_model(tiny_config())
    plain.save_pretrained(tmp_path)
    _, info = type(plain).from_pretrained(tmp_path, pixel_decoder="fapn", output_loading_info=True)
    assert info["missing_keys"]
    assert all(".alignments." in name for name in info["missing_keys"])
    assert not info["unexpected_keys"]


def test_fapn_samples_every_tap_where_it_is_at_first():
    """At zero offsets a deformable convolution is a convolution, of which each tap counts half."""
    alignment = random_model(tiny_config(pixel_decoder="fapn")).model.pixel_decoder.alignments[0]
    lateral, coarser = torch.randn(2, 2, 32, 6, 8, generator=torch.manual_seed(0))
    with torch.no_grad():
        got = alignment(lateral, coarser, nn.Identity())
        expected = lateral + torch.relu(0.5 * alignment.convolution(coarser))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_boundary_blocks_need_a_last_convolution(monkeypatch):
    monkeypatch.setitem(parts._TABLE["pixel_decoder"], "other", Part(lambda config, facts: nn.Identity()))
    config = tiny_config(pixel_decoder="other", boundary_blocks=1)
    with pytest.raises(ValueError, match=r"`boundary_blocks`=1 stand before .*`mask_projection`, which Identity lacks"):
        assembly.make_pixel_decoder(config, facts=None)
    config = tiny_config(pixel_decoder="hybrid", feature_size=48, encoder_layers=1, boundary_blocks=1)
    with pytest.raises(ValueError, match=r"need maps of a multiple of 32 channels .*, HybridPixelDecoder has 48"):
        random_model(config)
