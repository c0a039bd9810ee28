"""Assigners and query sources against matching that wavers: what they assign, and that nothing of them is left."""

from typing import ClassVar

import pytest
import torch
from scipy.optimize import linear_sum_assignment

from builders import random_model, tiny_config
from maskformer_hf import MaskFormerForUniversalSegmentation
from maskformer_hf.models.assembly import Assigners
from maskformer_hf.models.interfaces import Ask
from maskformer_hf.models.masks import DenseMasks
from maskformer_hf.models.matcher import CostWeights, matching_costs
from maskformer_hf.models.prediction_head import PredictionSet
from maskformer_hf.models.resize import resize_nearest
from maskformer_hf.models.targets import Targets
from tests.models.contract import Mask2FormerContract, ModelContract

NUM_LABELS, NUM_QUERIES = 3, 6


def predictions(num_layers=2, num_queries=NUM_QUERIES) -> PredictionSet:
    generator = torch.manual_seed(0)
    classes = torch.randn(num_layers, 2, num_queries, NUM_LABELS + 1, generator=generator)
    return PredictionSet(classes, DenseMasks(3 * torch.randn(num_layers, 2, num_queries, 8, 12, generator=generator)))


def targets() -> Targets:
    masks = torch.zeros(3, 32, 48, dtype=torch.bool)
    masks[0, :16] = masks[1, :, 20:] = masks[2, 10:20, 10:20] = True
    return Targets([masks, masks[:1]], [torch.tensor([2, 0, 1]), torch.tensor([1])])


def assign(name="hungarian", num_queries=NUM_QUERIES, **fields):
    config = tiny_config(num_queries=num_queries, assigner=name, **fields)
    return Assigners(config)[name](predictions(num_queries=num_queries), targets())


def pairs(assignment) -> list:
    return [[list(zip(*(x.tolist() for x in image), strict=True)) for image in layer] for layer in assignment.matches]


class TestAssigners:
    def test_shared_is_the_last_layers(self):
        hungarian, shared = pairs(assign()), pairs(assign("shared"))
        assert hungarian[0] != hungarian[1]
        assert shared == [hungarian[1]] * 2

    def test_stable_scales_the_class_by_the_iou(self):
        """Against the formula, pixel by pixel."""
        found, made = predictions(), targets()
        weights = CostWeights(2.0, 5.0, 3.0, "cross_entropy")
        plain, scaled = (
            matching_costs(found.class_logits, found.masks, made, weights._replace(iou_exponent=exponent))
            for exponent in (0.0, 0.5)
        )
        p = found.masks.logits_LBQhw.sigmoid().flatten(3)
        t = resize_nearest(made.masks[0], (8, 12)).float().flatten(1)
        overlap = p[:, 0] @ t.T
        iou = overlap / (p[:, 0].sum(-1, keepdim=True) + t.sum(-1) - overlap)
        classes = 2.0 * found.class_logits[:, 0].softmax(-1)[..., made.labels[0]]
        expected = plain[:, 0] + classes - classes * iou.sqrt()
        torch.testing.assert_close(scaled[:, 0], expected, rtol=1e-4, atol=1e-4)
        assert pairs(assign("stable", class_weight=50.0)) != pairs(assign(class_weight=50.0))

    def test_one_to_many_is_the_cheapest_assignment_of_copies(self):
        config = tiny_config(num_queries=NUM_QUERIES, one_to_many_copies=2)
        found, made = predictions(num_queries=7), targets()
        assigner = Assigners(config)["one_to_many"]
        assignment = assigner(found, made)
        assert assignment.num_targets == 8
        costs = assigner.costs(found, made)
        for layer, images in enumerate(assignment.matches):
            for image, (query, target) in enumerate(images):
                own = costs[layer, image, :, : made.counts[image]]
                assert sorted(target) == sorted(list(range(made.counts[image])) * 2)
                assert len(set(query)) == len(query)
                rows, columns = linear_sum_assignment(torch.cat([own, own], dim=1).numpy())
                best = torch.cat([own, own], dim=1)[rows, columns].sum()
                assert own[query, target].sum() == pytest.approx(best.item(), abs=1e-4)
        empty = Targets([made.masks[0][:0]] * 2, [made.labels[0][:0]] * 2)
        assert [len(query) for query, _ in assigner(found, empty).matches[0]] == [0, 0]

    @pytest.mark.parametrize("name", ["hungarian", "shared", "stable"])
    def test_fixed_stuff(self, name):
        """Classes 0 and 2 are stuff: queries 0 and 1 are theirs, whatever they predict."""
        found = pairs(assign(name, stuff_assignment="fixed", label_ids_to_fuse=[0, 2]))
        for first, second in found:
            assert first[:2] == [(0, 1), (1, 0)]
            [(query, target)] = first[2:]
            assert query >= 2
            assert target == 2
            [(query, target)] = second
            assert query >= 2
            assert target == 0
        if name == "shared":
            assert found[0] == found[1]

    def test_fixed_stuff_of_a_semantic_model_is_every_class(self):
        found = pairs(assign(num_queries=3, task="semantic", stuff_assignment="fixed"))
        assert found == [[[(0, 1), (1, 2), (2, 0)], [(1, 0)]]] * 2

    def test_a_second_segment_of_a_stuff_class_is_matched_as_things_are(self):
        made = targets()
        made.labels[0][1] = 2
        config = tiny_config(num_queries=NUM_QUERIES, stuff_assignment="fixed", label_ids_to_fuse=[2])
        assignment = Assigners(config)["hungarian"](predictions(), made)
        for first, _ in pairs(assignment):
            assert first[0] == (0, 0)
            assert sorted(target for _, target in first) == [0, 1, 2]

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({}, "there is none: name the stuff classes in `label_ids_to_fuse`, or choose 'matched'"),
            (
                {"label_ids_to_fuse": [0, 1], "num_queries": 2},
                "each of the 2 stuff classes a query of its own, and things need some too: `num_queries` must be at "
                "least 3, got 2",
            ),
            ({"task": "semantic", "num_queries": 2}, "`num_queries` must be at least 3, got 2"),
        ],
    )
    def test_stuff_that_cannot_be_fixed(self, fields, message):
        with pytest.raises(ValueError, match=message):
            tiny_config(stuff_assignment="fixed", **fields)

    def test_one_to_many_is_not_for_the_result(self):
        with pytest.raises(ValueError, match=r"`assigner='one_to_many'` would teach several queries .*query_source"):
            tiny_config(assigner="one_to_many")


SOURCES = {
    "denoising": {"denoising_groups": 2, "denoising_label_noise": 0.5, "denoising_mask_noise": 0.5},
    "one_to_many": {"one_to_many_queries": 7, "one_to_many_copies": 2},
}
PREFIXES = {"denoising": "dn_", "one_to_many": "many_"}


def images() -> torch.Tensor:
    return torch.randn(2, 3, 64, 96, generator=torch.manual_seed(1))


def batch() -> dict:
    masks = torch.zeros(2, 64, 96, dtype=torch.bool)
    masks[0, :32] = masks[1, :, 40:] = True
    return {"mask_labels": [masks, masks[:1]], "class_labels": [torch.tensor([2, 0]), torch.tensor([1])]}


def model_of(kind="mask2former", **fields) -> MaskFormerForUniversalSegmentation:
    return random_model(tiny_config(kind, num_queries=NUM_QUERIES, dropout=0.0, **fields))


@pytest.mark.parametrize("kind", ["maskformer", "mask2former"])
@pytest.mark.parametrize("source", SOURCES)
class TestSources:
    def pair(self, kind, source):
        model = model_of(kind, query_source=source, **SOURCES[source])
        plain = model_of(kind)
        plain.load_state_dict({name: x for name, x in model.state_dict().items() if "query_source" not in name})
        return model, plain

    def test_the_own_queries_predict_bit_for_bit_the_same(self, kind, source):
        """In every layer, while the others are trained beside them."""
        model, plain = self.pair(kind, source)
        with torch.no_grad():
            ours = model.train()(images(), **batch(), output_auxiliary_logits=True)
            theirs = plain.train()(images(), **batch(), output_auxiliary_logits=True)
        assert len(ours.auxiliary_logits) > 0
        for one, other in zip([ours, *ours.auxiliary_logits], [theirs, *theirs.auxiliary_logits], strict=True):
            for name in ("class_queries_logits", "masks_queries_logits"):
                assert torch.equal(one[name], other[name])
        if kind == "maskformer":  # the other draws its random points in another order
            for name, value in theirs.loss_dict.items():
                assert torch.equal(ours.loss_dict[name], value)

    def test_nothing_is_left_at_inference(self, kind, source):
        model, plain = self.pair(kind, source)
        with torch.no_grad():
            ours, theirs = model.eval()(images(), **batch()), plain.eval()(images(), **batch())
        assert ours.loss_dict.keys() == theirs.loss_dict.keys()
        assert torch.equal(ours.loss, theirs.loss)
        assert torch.equal(ours.masks_queries_logits, theirs.masks_queries_logits)

    def test_every_parameter_learns_whatever_the_targets(self, kind, source):
        model, _ = self.pair(kind, source)
        empty = {name: [values[:0] for values in both] for name, both in batch().items()}
        for given in (batch(), empty):
            model.train().zero_grad()
            outputs = model(images(), **given)
            outputs.loss.backward()
            for name, parameter in model.named_parameters():
                assert parameter.grad is not None, name
                assert torch.isfinite(parameter.grad).all(), name
            own = {name for name in outputs.loss_dict if not name.startswith(PREFIXES[source])}
            extra = outputs.loss_dict.keys() - own
            assert len(extra) == len(own) if given is not empty else len(extra) > 0
            if given is not empty:
                assert all(p.grad.abs().max() > 0 for p in model.query_source.parameters())


class TestDenoising:
    def extra(self, model, given):
        made = model._targets(images(), *given.values(), None, None)
        return model.query_source(made, None, Ask())

    def test_groups_see_themselves_and_the_own_queries(self):
        model = model_of(query_source="denoising", **SOURCES["denoising"])
        attended = self.extra(model, batch()).attended
        group = torch.tensor([0, 0, 1, 1] + [2] * NUM_QUERIES)
        for row in range(len(group)):
            for column in range(len(group)):
                assert attended[row, column] == (group[row] == group[column] or group[column] == 2)

    def test_noise_is_as_strong_as_it_says(self):
        torch.manual_seed(0)
        model = model_of(query_source="denoising", denoising_groups=500, denoising_label_noise=0.4)
        weight = torch.arange(3.0)[:, None].expand(-1, model.config.hidden_size)
        model.query_source.label_embedding.weight.data.copy_(weight)
        extra = self.extra(model, batch())
        labels = extra.features[0, :, 0].unflatten(0, (500, 2))
        # One in three of the labels that are drawn anew is drawn as it was.
        for slot, label in enumerate((2, 0)):
            assert (labels[:, slot] != label).float().mean() == pytest.approx(0.4 * 2 / 3, abs=0.07)
        model = model_of(query_source="denoising", denoising_groups=200, denoising_mask_noise=0.4)
        clean = model_of(query_source="denoising", denoising_groups=200)
        size = (8, 12)
        noisy, right = (self.extra(some, batch()).masks(0, size) for some in (model, clean))
        assert noisy.shape == (2, 400, 96)
        share = right[0, 0].float().mean().item()
        assert share == 0.5
        assert (noisy[0] != right[0])[::2].float().mean() == pytest.approx(0.4 * share, abs=0.02)
        # The empty slots of the second image look nowhere, which means everywhere.
        assert not noisy[1, 1::2].any()
        again = self.extra(model, batch()).masks
        assert not torch.equal(again(0, size), again(3, size))

    def test_layers_and_limits(self, caplog):
        model = model_of(query_source="denoising", denoising_layers=1)
        masks = self.extra(model, batch()).masks
        assert masks(0, (8, 12)) is not None
        assert masks(1, (8, 12)) is None
        model = model_of(query_source="denoising", denoising_queries=9)
        assert self.extra(model, batch()).features.shape[1] == 8
        model = model_of(query_source="denoising", denoising_queries=1)
        for _ in range(2):
            [group] = self.extra(model, batch()).groups
            assert (group.num_queries, group.has_class_loss) == (1, False)
        assert [record.message for record in caplog.records if "denoising" in record.message] == [
            "An image has 2 targets, more than the 1 `denoising_queries`: such steps have no denoising. Raise it if "
            "that is not meant (said once)."
        ]

    def test_clips(self):
        config = tiny_config("video", num_queries=5, dropout=0.0, query_source="denoising", denoising_groups=2)
        model = random_model(config).train()
        clips = torch.randn(2, 3, 3, 64, 96, generator=torch.manual_seed(1))
        masks = [masks[:, None].repeat(1, 3, 1, 1) for masks in batch()["mask_labels"]]
        outputs = model(clips, mask_labels=masks, class_labels=batch()["class_labels"])
        outputs.loss.backward()
        assert outputs.loss_dict["dn_loss_mask"] > 0
        made = model._targets(clips, masks, batch()["class_labels"], None, None)
        assert model.query_source(made, None, Ask()).masks(0, (3, 8, 12)).shape == (2, 4, 288)

    def test_classes_change_with_the_model(self, tmp_path):
        model = model_of(query_source="denoising", id2label={0: "a", 1: "b", 2: "c"}, label2id=None)
        model.save_pretrained(tmp_path)
        again = type(model).from_pretrained(tmp_path, id2label={0: "c", 1: "d"})
        weights = [some.query_source.label_embedding.weight for some in (model, again)]
        assert weights[1].shape[0] == 2
        assert torch.equal(weights[1][0], weights[0][2])

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"denoising_groups": 0}, "`denoising_groups` must be at least 1, got 0"),
            ({"denoising_queries": 0}, "`denoising_queries` must be at least 1, got 0"),
            ({"denoising_label_noise": 1.5}, r"`denoising_label_noise` must lie in \[0, 1\], got 1.5"),
        ],
    )
    def test_what_cannot_be_is_named(self, fields, message):
        with pytest.raises(ValueError, match=message):
            tiny_config("mask2former", query_source="denoising", **fields)
        with pytest.raises(ValueError, match="`one_to_many_copies` must be at least 1, got 0"):
            tiny_config(query_source="one_to_many", one_to_many_copies=0)


class TestMPFormer(Mask2FormerContract):
    """A model that is trained with denoising, evaluated: losses of the contract are those of evaluation."""

    fields: ClassVar = {"query_source": "denoising", "query_position": False, "denoising_groups": 2}


class TestFixedStuff(ModelContract):
    fields: ClassVar = {"stuff_assignment": "fixed", "label_ids_to_fuse": [1, 2], "assigner": "shared"}
