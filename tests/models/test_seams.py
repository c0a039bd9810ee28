"""What systems of the family need of the skeleton, each by a part that is as small as can be.

Extra queries with targets of their own (denoising, one-to-many), assignments that differ between layers, exits of the
encoder, decoders that stop early or have heads of their own, loss terms with maps of the targets.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from builders import random_model, tiny_config
from maskformer_hf import MaskFormerForUniversalSegmentation
from maskformer_hf.models import parts
from maskformer_hf.models.assembly import make_criterion, target_maps_of
from maskformer_hf.models.assigners import Assignment, FixedAssigner
from maskformer_hf.models.criterion import is_auxiliary, pair_up
from maskformer_hf.models.interfaces import Ask, ExtraQueries, QueryGroup, TransformerDecoderOutput
from maskformer_hf.models.layers import keep_rows
from maskformer_hf.models.masks import DenseMasks
from maskformer_hf.models.parts import Part, register
from maskformer_hf.models.pixel_decoder_fpn import FPNPixelDecoder
from maskformer_hf.models.prediction_head import PredictionSet
from maskformer_hf.models.transformer_decoder_detr import DetrTransformerDecoder

NUM_LABELS, NUM_QUERIES, WIDTH = 3, 6, 32
# Each in the model that it belongs to.
DECODERS = {"detr": "maskformer", "masked": "mask2former"}


@pytest.fixture(autouse=True)
def table(monkeypatch):
    """A table of one's own."""
    monkeypatch.setattr(parts, "_TABLE", {slot: dict(known) for slot, known in parts._TABLE.items()})


def model_of(decoder="detr", **fields) -> MaskFormerForUniversalSegmentation:
    fields = {"num_queries": NUM_QUERIES, "num_labels": NUM_LABELS, "dropout": 0.0, **fields}
    return random_model(tiny_config(DECODERS[decoder], **fields))


def images(batch_size=2) -> torch.Tensor:
    return torch.randn(batch_size, 3, 64, 96, generator=torch.manual_seed(1))


def targets() -> dict:
    masks = torch.zeros(2, 64, 96, dtype=torch.bool)
    masks[0, :32] = masks[1, :, 40:] = True
    return {"mask_labels": [masks, masks[:1]], "class_labels": [torch.tensor([2, 0]), torch.tensor([1])]}


def extra_queries(num_extra=3, forced=False, blocked=True) -> ExtraQueries:
    """Queries that the decoder's own cannot see."""
    generator = torch.manual_seed(2)
    features, position = (torch.randn(2, num_extra, WIDTH, generator=generator) for _ in range(2))
    attended = torch.ones(num_extra + NUM_QUERIES, num_extra + NUM_QUERIES, dtype=torch.bool)
    attended[num_extra:, :num_extra] = not blocked
    masks = None
    if forced:
        masks = torch.zeros(2, num_extra, 64, 96, dtype=torch.bool)
        masks[:, 0, :20, :20] = masks[:, 1] = True  # and none for the last
    groups = (QueryGroup("dn_", num_extra, FixedAssigner([[0, 1, -1], [0, -1, 0]]), weight=0.5),)
    return ExtraQueries(features, position, groups, attended, masks)


# --- extra queries


@pytest.mark.parametrize(("decoder", "forced"), [("detr", False), ("masked", False), ("masked", True)])
def test_queries_that_cannot_see_extra_ones_predict_the_same(decoder, forced):
    model, ask = model_of(decoder).eval(), Ask(every_layer=True)
    with torch.no_grad():
        encoded = model.model.encode(images(), ask)
        [plain] = model.head(model.model.decode(encoded, ask), encoded, ask)
        extra, own = model.head(model.model.decode(encoded, ask, extra_queries(forced=forced)), encoded, ask)
        seen = model.head(model.model.decode(encoded, ask, extra_queries(blocked=False)), encoded, ask)[-1]
    assert (extra.name, own.name, extra.weight, own.assigner) == ("dn_", "", 0.5, "hungarian")
    assert extra.class_logits.shape == (len(plain.class_logits), 2, 3, NUM_LABELS + 1)
    assert extra.masks.shape[2] == 3
    torch.testing.assert_close(own.class_logits, plain.class_logits, rtol=1e-5, atol=1e-5)
    for layer in range(plain.masks.shape[0]):
        torch.testing.assert_close(own.masks.layer(layer), plain.masks.layer(layer), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(seen.class_logits, plain.class_logits, rtol=1e-3, atol=1e-3)


def test_forced_masks_say_where_extra_queries_look():
    """What lies outside of a forced mask changes nothing for its query; an empty one looks everywhere."""
    model, ask = model_of("masked").eval(), Ask()
    extra = extra_queries(forced=True)
    with torch.no_grad():
        encoded = model.model.encode(images(), ask)
        memory = tuple(level.clone() for level in encoded.pixels.memory)
        for level in memory:
            level[..., level.shape[-1] // 2 :] += 5.0
        changed = encoded._replace(pixels=encoded.pixels._replace(memory=memory))
        # Self-attention would carry the change on: everyone sees himself only.
        extra = extra._replace(attended=torch.eye(3 + NUM_QUERIES, dtype=torch.bool))
        queries = [model.model.decode(x, ask, extra).outputs[-1].queries[-1] for x in (encoded, changed)]
    moved = (queries[0] - queries[1]).abs().amax((0, 2)) > 1e-4
    assert moved[:3].tolist() == [False, True, True]


def test_what_does_not_fit_is_named():
    model, ask = model_of().eval(), Ask()
    encoded = model.model.encode(images(), ask)
    with pytest.raises(
        ValueError, match=r"`attended` of extra queries has shape \(4, 4\): there are 9 queries, 3 extra"
    ):
        model.model.decode(encoded, ask, extra_queries()._replace(attended=torch.ones(4, 4, dtype=torch.bool)))
    with pytest.raises(ValueError, match=r"Extra queries with masks need a decoder that attends within masks"):
        model.model.decode(encoded, ask, extra_queries(forced=True))
    wrong = (QueryGroup("dn_", 3, FixedAssigner([[0, 7, -1], [0, -1, 0]])),)
    register("query_source", "wrong", Part(lambda config: Source(extra_queries()._replace(groups=wrong))))
    training = model_of(query_source="wrong").train()
    with pytest.raises(ValueError, match=r"fixed targets of image 0 are \[0, 7, -1\], for 3 queries and 2 targets"):
        training(images(), **targets())


class Source(nn.Module):
    """Gives the same extra queries whatever the targets are, with features that are learned."""

    def __init__(self, extra: ExtraQueries):
        super().__init__()
        self.features = nn.Parameter(extra.features.clone())
        self.extra = extra

    def forward(self, targets, encoded, ask):
        return self.extra._replace(features=self.features)


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_query_source_is_trained_with_targets_of_its_own(decoder):
    register("query_source", "mine", Part(lambda config: Source(extra_queries())))
    model, plain = model_of(decoder, query_source="mine"), model_of(decoder)
    model.load_state_dict(plain.state_dict(), strict=False)
    torch.manual_seed(0)
    outputs = model.train()(images(), **targets())
    torch.manual_seed(0)
    expected = plain.train()(images(), **targets())
    terms = {name: value for name, value in outputs.loss_dict.items() if not name.startswith("dn_")}
    assert terms.keys() == expected.loss_dict.keys()
    assert {f"dn_{name}" for name in terms} == outputs.loss_dict.keys() - terms.keys()
    if decoder == "detr":  # the other draws its random points in another order
        for name, value in expected.loss_dict.items():
            torch.testing.assert_close(terms[name], value, rtol=1e-4, atol=1e-6)
    weights = {"ce": model.config.class_weight, "mask": model.config.mask_weight, "dice": model.config.dice_weight}
    total = sum(
        (0.5 if name.startswith("dn_") else 1.0) * weights[name.removeprefix("dn_").split("_")[1]] * value
        for name, value in outputs.loss_dict.items()
    )
    torch.testing.assert_close(outputs.loss, total)
    outputs.loss.backward()
    assert model.query_source.features.grad.abs().max() > 0
    assert outputs.class_queries_logits.shape[1] == NUM_QUERIES
    assert outputs.transformer_decoder_last_hidden_state.shape[1] == NUM_QUERIES
    # Nothing of it is left at inference.
    model.eval()
    with torch.no_grad():
        again, without = model(images()), plain.eval()(images())
    torch.testing.assert_close(again.class_queries_logits, without.class_queries_logits)
    assert not any(name.startswith("dn_") for name in model(images(), **targets()).loss_dict)


# --- assignments


class Uneven:
    """Two queries share a target in the last layer; in the others each target but the first has one."""

    def __call__(self, predictions, targets, generator=None):
        last = [([0, 3, 2], [0, 1, 0]), ([4], [0])]
        others = [([1], [1]), ([], [])]
        layers = [others] * (len(predictions.class_logits) - 1) + [last]
        matches = [
            [tuple(torch.tensor(x, dtype=torch.int64).numpy() for x in pair) for pair in layer] for layer in layers
        ]
        return Assignment(matches, num_targets=4)


@pytest.mark.parametrize("mask_loss", ["dense", "points"])
def test_layers_may_be_taught_different_targets_and_targets_many_queries(mask_loss):
    model = model_of(mask_loss=mask_loss, num_points=2000, importance_sample_ratio=0.0, decoder_layers=3).eval()
    ask, batch = Ask(every_layer=True), targets()
    encoded = model.model.encode(images(), ask)
    [predictions] = model.head(model.model.decode(encoded, ask), encoded, ask)
    made = model._targets(images(), *batch.values(), None, None)
    loss, terms = model.criterion([predictions._replace(assigner=Uneven())], made)
    loss.backward()
    for layer, pairs in enumerate([[(0, 1, 1)], [(0, 1, 1)], [(0, 0, 0), (0, 3, 1), (0, 2, 0), (1, 4, 0)]]):
        suffix = "" if layer == 2 else f"_{layer}"
        dice = class_loss = weights = 0.0
        classes = torch.full((2, NUM_QUERIES), NUM_LABELS)
        for image, query, target in pairs:
            logits = predictions.masks.layer(layer)[image, query]
            mask = batch["mask_labels"][image][target].float()
            p = F.interpolate(logits[None, None], mask.shape, mode="bilinear")[0, 0].sigmoid()
            dice += 1 - (2 * (p * mask).sum() + 1) / (p.sum() + mask.sum() + 1)
            classes[image, query] = batch["class_labels"][image][target]
        log = predictions.class_logits[layer].log_softmax(-1)
        for image in range(2):
            for query in range(NUM_QUERIES):
                label = int(classes[image, query])
                weight = 0.1 if label == NUM_LABELS else 1.0
                class_loss, weights = class_loss - weight * log[image, query, label], weights + weight
        tolerance = {"rtol": 1e-4, "atol": 1e-5} if mask_loss == "dense" else {"rtol": 0.1, "atol": 0.05}
        torch.testing.assert_close(terms[f"loss_dice{suffix}"], (dice / 4).detach(), **tolerance)
        torch.testing.assert_close(terms[f"loss_ce{suffix}"], (class_loss / weights).detach(), rtol=1e-4, atol=1e-5)


def test_pairs_are_those_that_were_assigned_and_not_as_many():
    """As many pairs as targets, but of one target twice."""
    twice = [[(torch.tensor([0, 1]).numpy(), torch.tensor([1, 1]).numpy())]]
    [pairs] = pair_up(Assignment(twice, 2), [2], torch.device("cpu"))
    assert not pairs.are_all
    assert pairs.target.tolist() == [1, 1]
    once = [[(torch.tensor([0, 1]).numpy(), torch.tensor([1, 0]).numpy())]]
    [pairs] = pair_up(Assignment(once, 2), [2], torch.device("cpu"))
    assert pairs.are_all
    assert pairs.query.tolist() == [[1, 0]]


@pytest.mark.parametrize("assigner", [None, "fair"])
def test_a_set_without_an_assigner_is_named(assigner):
    model, batch = model_of(), targets()
    predictions = PredictionSet(torch.zeros(1, 2, 4, NUM_LABELS + 1), DenseMasks(torch.zeros(1, 2, 4, 16, 24)), "dn_")
    made = model._targets(images(), *batch.values(), None, None)
    with pytest.raises(
        ValueError, match=r"prediction set 'dn_' has no assigner .* one of \['hungarian', .*\], got (None|'fair')"
    ):
        model.criterion([predictions._replace(assigner=assigner)], made)


# --- encoders and decoders


class TwoExits(FPNPixelDecoder):
    """A pixel decoder of which the maps before the last step are trained to predict as well."""

    def forward(self, features, ask):
        pixels = super().forward(features, ask)
        early = pixels._replace(embeddings=pixels.embeddings * 0.5, memory=(features[-1] * 2,))
        return pixels._replace(exits=(early,))


@pytest.mark.parametrize("decoder", DECODERS)
def test_each_exit_of_the_encoder_has_its_own_pixel_embeddings(decoder):
    register("pixel_decoder", "exits", Part(TwoExits.from_config))
    fields = {"feature_size": 32, "encoder_levels": 3}
    model, plain = (model_of(decoder, pixel_decoder=name, **fields) for name in ("exits", "fpn"))
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        outputs, expected = (some.eval()(images(), **targets(), lazy_masks=False) for some in (model, plain))
    for name in ("class_queries_logits", "masks_queries_logits"):
        torch.testing.assert_close(outputs[name], expected[name])
    early = {name for name in outputs.loss_dict if name.startswith("exit1_")}
    assert early == {f"exit1_{name}" for name in expected.loss_dict}
    assert outputs.loss_dict["exit1_loss_mask"] != expected.loss_dict["loss_mask"]


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_decoder_stops_after_n_layers(decoder):
    """Which gives the auxiliary prediction of that layer, exactly."""
    model = model_of(decoder, decoder_layers=4).eval()
    first = 1 if decoder == "masked" else 0  # the learned queries are a prediction of their own
    with torch.no_grad():
        layers = model(images(), output_auxiliary_logits=True).auxiliary_logits
        encoded = model.model.encode(images(), Ask())
        for n in (1, 2, 3):
            ask = Ask(num_decoder_layers=n)
            [predictions] = model.head(model.model.decode(encoded, ask), encoded, ask)
            expected = layers[n - 1 + first]
            assert len(predictions.class_logits) == 1
            torch.testing.assert_close(predictions.class_logits[0], expected["class_queries_logits"])
            torch.testing.assert_close(predictions.masks.layer(0), expected["masks_queries_logits"])


def test_an_encoder_stops_after_n_layers():
    for decoder in ("transformer_fpn", "deformable"):
        model = model_of(pixel_decoder=decoder, encoder_layers=3).eval()
        with torch.no_grad():
            stopped = model.model.encode(images(), Ask(num_encoder_layers=1)).pixels.embeddings
            whole = model.model.encode(images(), Ask()).pixels.embeddings
            encoder = model.model.pixel_decoder
            (encoder.encoder if decoder == "transformer_fpn" else encoder).layers = (
                encoder.encoder if decoder == "transformer_fpn" else encoder
            ).layers[:1]
            expected = model.model.encode(images(), Ask()).pixels.embeddings
        torch.testing.assert_close(stopped, expected)
        assert not torch.allclose(stopped, whole)


class ThingsAndStuff(DetrTransformerDecoder):
    """A decoder with heads of its own: the first queries find things, the last ones stuff."""

    def __init__(self, config, memory):
        super().__init__(config, memory)
        self.things, self.stuff = (nn.Linear(config.hidden_size, config.num_labels + 1) for _ in range(2))

    def forward(self, pixels, ask, extra=None):
        output = super().forward(pixels, ask, extra)
        queries = torch.stack(output.queries)
        size = (*queries.shape[:2], 3, *pixels.embeddings.shape[-2:])
        masks = DenseMasks(queries.new_zeros(size) + queries[:, :, :3, :1, None])
        sets = (
            PredictionSet(self.things(queries[:, :, :3]), masks, "thing_", "hungarian"),
            PredictionSet(self.stuff(queries[:, :, 3:]), masks, "", "hungarian"),
        )
        return TransformerDecoderOutput(output.queries, sets=sets)


def test_a_decoder_may_have_heads_of_its_own():
    register("transformer_decoder", "split", Part(ThingsAndStuff.from_config))
    model = model_of(transformer_decoder="split").train()
    outputs = model(images(), **targets())
    assert {"thing_loss_ce", "loss_ce", "thing_loss_mask_0"} <= outputs.loss_dict.keys()
    outputs.loss.backward()
    assert model.model.transformer_decoder.things.weight.grad.abs().max() > 0
    assert outputs.class_queries_logits.shape == (2, 3, NUM_LABELS + 1)


# --- terms, rows, arguments


class OutlineLoss:
    maps = {"left": lambda masks: masks.float().cumsum(-1)}  # noqa: RUF012

    def __call__(self, pixels):
        return (pixels.logits.sigmoid() * pixels.maps["left"]).mean(1) * pixels.progress


@pytest.mark.parametrize("mask_loss", ["dense", "points"])
def test_a_term_gets_the_maps_it_asks_for_and_how_far_training_is(mask_loss):
    register("loss_term", "l1", Part(lambda config: OutlineLoss()))
    model = model_of(mask_loss=mask_loss, num_points=64, loss_terms={"l1": 2.0}).train()
    batch = targets()
    assert target_maps_of(model.config).keys() == model.criterion.target_maps.keys() == {"left"}
    maps = {"left": [OutlineLoss.maps["left"](masks) for masks in batch["mask_labels"]]}
    with pytest.raises(ValueError, match=r"The loss needs `target_maps` \['left'\]: let the collator make them"):
        model(images(), **batch)
    with pytest.raises(ValueError, match=r"Target map 'left' of image 0 has 1 entries for 2 masks"):
        model(images(), **batch, target_maps={"left": maps["left"][::-1]})
    totals = []
    for progress in (0.0, 0.5, 1.0):
        model.training_progress = progress
        torch.manual_seed(0)
        outputs = model(images(), **batch, target_maps=maps)
        totals.append(outputs.loss_dict["loss_l1"].item())
        weights = {"ce": 1.0, "mask": 20.0, "dice": 1.0, "l1": 2.0}
        total = sum(weights[name.split("_")[1]] * value for name, value in outputs.loss_dict.items())
        torch.testing.assert_close(outputs.loss, total)
    assert totals[0] == 0
    assert totals[1] == pytest.approx(totals[2] / 2, rel=1e-5)
    outputs.loss.backward()


def test_which_terms_are_auxiliary():
    names = {"loss_ce": False, "loss_l1": False, "loss_dice_0": True, "dn_loss_l1_12": True, "exit1_loss_ce": False}
    assert {name: is_auxiliary(name) for name in names} == names


def test_rows_of_buffers_are_kept_too():
    old, new = nn.Linear(4, 3), nn.Linear(4, 2)
    for some in (old, new):
        some.register_buffer("embeddings", torch.randn(some.out_features, 5))
        some.register_buffer("scale", torch.randn(()))
    fresh = new.weight[1].clone()
    keep_rows(new, old, [2, None])
    assert torch.equal(new.embeddings[0], old.embeddings[2])
    assert torch.equal(new.weight[0], old.weight[2])
    assert torch.equal(new.weight[1], fresh)
    assert torch.equal(new.scale, old.scale)


@pytest.mark.parametrize("decoder", DECODERS)
def test_lazy_masks_are_the_masks(decoder):
    model = model_of(decoder).eval()
    with torch.no_grad():
        outputs, lazy = model(images()), model(images(), lazy_masks=True)
    assert lazy.masks_queries_logits is None
    assert "masks" not in outputs
    queries = torch.tensor([4, 0])
    for image in range(2):
        expected = outputs.masks_queries_logits[image]
        assert lazy.masks[image].shape == expected.shape
        torch.testing.assert_close(lazy.masks[image][queries], expected[queries])


def test_the_criterion_of_a_configuration_is_made_without_a_model():
    assert make_criterion(model_of().config).num_labels == NUM_LABELS
