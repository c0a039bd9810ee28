import pytest
import torch
from torch import nn

from builders import random_model, timm_backbone, tiny_config, vit
from maskformer_hf.models.modeling_maskformer import MaskFormerHfForUniversalSegmentation
from maskformer_hf.training.arguments import OptimizationArguments
from maskformer_hf.training.optimization import WeightAverage, build_optimizer, parameter_groups, schedule


def test_groups_follow_the_paper(tiny_checkpoint):
    model = MaskFormerHfForUniversalSegmentation.from_pretrained(tiny_checkpoint)
    groups = {
        group["name"]: group
        for group in parameter_groups(model, learning_rate=1.0, weight_decay=0.5, multipliers={"backbone": 0.1})
    }
    listed = [name for group in groups.values() for name in group["parameter_names"]]
    assert sorted(listed) == sorted(name for name, value in model.named_parameters() if value.requires_grad)
    assert {name: (group["lr"], group["weight_decay"]) for name, group in groups.items()} == {
        # batch normalisation is frozen, hence nothing of the backbone is left without decay
        "backbone, decay": (0.1, 0.5),
        "heads, decay": (1.0, 0.5),
        "heads, no decay": (1.0, 0.0),
    }
    still = groups["heads, no decay"]["parameter_names"]
    assert any("quer" in name for name in still)
    assert any("norm" in name for name in still)
    assert any(name.endswith("bias") for name in groups["heads, decay"]["parameter_names"])


def test_tables_do_not_decay_and_shared_weights_are_listed_once():
    model = nn.Module()
    model.backbone = nn.Module()
    model.backbone.relative_position_bias_table = nn.Parameter(torch.zeros(3))
    model.backbone.norm = nn.BatchNorm2d(2)
    model.linear = nn.Linear(2, 2)
    model.tied = nn.Linear(2, 2)
    model.tied.weight = model.linear.weight
    groups = parameter_groups(model, learning_rate=1.0, weight_decay=0.5, multipliers={"backbone": 0.1})
    by_name = {name: group for group in groups for name in group["parameter_names"]}
    assert by_name["backbone.relative_position_bias_table"]["weight_decay"] == 0
    assert by_name["backbone.norm.weight"]["weight_decay"] == 0
    assert sum(len(group["params"]) for group in groups) == 6


def rates(model, multipliers):
    groups = parameter_groups(model, learning_rate=1.0, weight_decay=0.5, multipliers=multipliers)
    return {name: group["lr"] for group in groups for name in group["parameter_names"]}


def layered_model():
    model = nn.Module()
    model.backbone = nn.Module()
    model.backbone.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(12))
    model.pixel_decoder = nn.Module()
    model.pixel_decoder.sampling_offsets = nn.Linear(2, 2)
    model.pixel_decoder.projection = nn.Linear(2, 2)
    return model


def test_multipliers_go_by_whole_parts_of_names_and_the_longest_pattern_counts():
    multipliers = {"backbone.layers.1": 0.01, "backbone": 0.1, "sampling_offsets": 0.2, "pixel_*.projection": 0.5}
    found = rates(layered_model(), multipliers)
    assert found["backbone.layers.1.weight"] == 0.01
    assert found["backbone.layers.0.weight"] == found["backbone.layers.11.bias"] == 0.1
    assert found["pixel_decoder.sampling_offsets.bias"] == 0.2
    assert found["pixel_decoder.projection.weight"] == 0.5
    assert found == rates(layered_model(), dict(reversed(multipliers.items())))
    assert set(rates(layered_model(), {"backbone": 0.0}).values()) == {0.0, 1.0}


def test_a_pattern_that_matches_nothing_is_named():
    with pytest.raises(ValueError, match=r"multipliers has 'sampling_offset', .*did you mean 'sampling_offsets'"):
        rates(layered_model(), {"sampling_offset": 0.1})
    with pytest.raises(ValueError, match=r"'xyz', which matches no parameter .*'backbone\.layers\.0\.weight'"):
        rates(layered_model(), {"xyz": 0.1})
    # The recipe's default, of a model without such a part.
    assert set(rates(nn.Linear(2, 2), {"backbone": 0.1}).values()) == {1.0}


def test_old_and_new_multiplier_of_the_backbone_are_one():
    def initial_rates(**fields):
        optimizer = build_optimizer(layered_model(), OptimizationArguments(learning_rate=1.0, **fields))
        return sorted({group["initial_lr"] for group in optimizer.param_groups})

    assert initial_rates() == initial_rates(backbone_multiplier=0.1) == [0.1, 1.0]
    assert initial_rates(multipliers={"backbone": 0.3}) == initial_rates(backbone_multiplier=0.3) == [0.3, 1.0]
    assert initial_rates(multipliers={"sampling_offsets": 0.2}) == [0.1, 0.2, 1.0]


def plain_model(backbone_config=None, **fields):
    fields = {"backbone_pyramid": "simple", **fields}
    return random_model(tiny_config(backbone_config=backbone_config or vit("dinov2"), **fields))


@pytest.mark.parametrize(
    "backbone_config", [vit("dinov2"), vit("vit", patch_size=16, image_size=64), timm_backbone("test_vit")], ids=str
)
def test_layer_decay(backbone_config):
    model = plain_model(backbone_config)
    groups = parameter_groups(
        model,
        learning_rate=1.0,
        weight_decay=0.5,
        multipliers={"backbone.body": 0.1, "class_predictor": 2.0},
        layer_decay=0.5,
    )
    rates = {name: group["lr"] for group in groups for name in group["parameter_names"]}
    assert sorted(rates) == sorted(name for name, weight in model.named_parameters() if weight.requires_grad)
    num_blocks = len(
        {name for name in rates if name.endswith("norm1.weight") or name.endswith("layernorm_before.weight")}
    )
    assert num_blocks >= 3
    for name, rate in rates.items():
        below = name.removeprefix("model.backbone.body.")
        if below == name:
            assert rate == (2.0 if "class_predictor" in name else 1.0), name
        elif "layernorm." in below and "layer." not in below and "layers." not in below:
            assert rate == 0.1, name
        elif "embed" in below or "cls_token" in below:
            assert rate == pytest.approx(0.1 * 0.5 ** (num_blocks - 1)), name
        else:
            [block] = [int(part) for part in below.split(".")[:4] if part.isdigit()]
            assert rate == pytest.approx(0.1 * 0.5 ** (num_blocks - 1 - block)), name
    names = [group["name"] for group in groups]
    assert len(set(names)) == len(names)
    assert "backbone.body, decay, 1 blocks below the top" in names


def test_layer_decay_of_other_backbones_is_refused():
    def refuse(model, reason):
        with pytest.raises(ValueError, match=reason):
            parameter_groups(model, learning_rate=1.0, weight_decay=0.5, multipliers={}, layer_decay=0.5)

    refuse(
        random_model(tiny_config()), "layer_decay is for plain vision transformers.*set optimization.layer_decay to 1"
    )
    refuse(plain_model(freeze_backbone=True), "layer_decay is for a backbone that is trained.*freeze_backbone is true")


def test_a_pyramid_learns_as_the_heads_do():
    optimizer = build_optimizer(plain_model(), OptimizationArguments(learning_rate=1.0, backbone_multiplier=0.1))
    by_name = {group["name"]: group["initial_lr"] for group in optimizer.param_groups}
    assert by_name == {
        "backbone, decay": 0.1,
        "backbone, no decay": 0.1,
        "backbone.pyramid, decay": 1.0,
        "backbone.pyramid, no decay": 1.0,
        "heads, decay": 1.0,
        "heads, no decay": 1.0,
    }


def test_a_frozen_backbone_has_no_groups_and_no_multipliers():
    model = plain_model(freeze_backbone=True)
    optimizer = build_optimizer(model, OptimizationArguments())
    listed = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
    assert not any(id(weight) in listed for weight in model.model.backbone.body.parameters())
    for pattern in ("backbone.body", "body.encoder"):
        with pytest.raises(ValueError, match=rf"multipliers has '{pattern}', but all that it matches is frozen"):
            build_optimizer(model, OptimizationArguments(multipliers={pattern: 0.1}))


@pytest.mark.parametrize("kind", ["poly", "cosine", "step"])
def test_schedule_end_points(kind):
    arguments = OptimizationArguments(schedule=kind, milestones=[0.5, 0.9], warmup_steps=10, warmup_factor=0.01)
    factor = schedule(arguments, 100)
    assert factor(0) == pytest.approx(0.01)
    assert factor(9) < factor(10)
    if kind == "step":
        assert [factor(step) for step in (49, 50, 89, 90)] == pytest.approx([1, 0.1, 0.1, 0.01])
    else:
        assert all(factor(step) > factor(step + 1) for step in range(10, 99))
        assert 0 < factor(99) < 0.02
    if kind == "poly":
        assert factor(50) == pytest.approx(0.5**0.9)


def test_average_of_weights():
    parameter = nn.Parameter(torch.zeros(2))
    average = WeightAverage([parameter], decay=0.9)
    expected = torch.zeros(2)
    for step in range(1, 30):
        with torch.no_grad():
            parameter += 1
        average.update()
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * parameter.detach()
    trained = parameter.detach().clone()
    with average.applied():
        torch.testing.assert_close(parameter.detach(), expected)
    assert torch.equal(parameter, trained)
    torch.testing.assert_close(average.averages[0], expected)


def test_optimizer_knows_initial_rates(tiny_checkpoint):
    model = MaskFormerHfForUniversalSegmentation.from_pretrained(tiny_checkpoint)
    optimizer = build_optimizer(model, OptimizationArguments(learning_rate=1e-3, backbone_multiplier=0.1))
    assert {group["initial_lr"] for group in optimizer.param_groups} == {1e-3, 1e-4}
