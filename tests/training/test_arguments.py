from pathlib import Path

import pytest

from maskformer_hf.training.arguments import read_recipe

RECIPES = sorted((Path(__file__).parents[2] / "recipes").rglob("*.yaml"))


def test_every_recipe_of_the_repository_is_read():
    assert len(RECIPES) >= 1
    for path in RECIPES:
        read_recipe(path)


def test_overrides_are_typed(recipe):
    read = read_recipe(
        recipe, ["optimization.learning_rate=1e-3", "steps=7", "model.config.num_queries=9", "data.validation=null"]
    )
    assert read.optimization.learning_rate == 1e-3  # YAML itself reads 1e-3 as text
    assert read.steps == 7
    assert read.model.config == {"num_queries": 9}
    assert read.data.validation is None
    multipliers = read_recipe(recipe, ["optimization.multipliers={backbone: 1e-1}"]).optimization.multipliers
    assert multipliers == {"backbone": 0.1}
    assert read_recipe(recipe, ["mixed_precision=no"]).mixed_precision == "no"  # which YAML reads as False


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimization.learning_rat=1", "did you mean optimization.learning_rate"),
        ("step=3", "did you mean steps"),
        ("steps=many", "steps is 'many'; expected int"),
        ("steps=0", "at least 1"),
        ("data.cache=1", "data.cache is 1; expected bool"),
        ("optimization.schedule=linear", "choose one of"),
        ("augmentation.crop_size=[48]", "two positive numbers"),
        ("augmentation.crop_size=[48, 64, 80]", "two positive numbers"),
        ("augmentation.short_edge=[60, 40]", "smaller numbers first"),
        ("augmentation.scale=[0, 1]", "two positive numbers"),
        ("augmentation.long_edge=60", "must exceed the longest short_edge, 60"),
        ("model.checkpoint=null", "exactly one"),
        ("steps.more=1", "is a value, not a group"),
        ("steps", "not of the form key=value"),
        ("data.train=3", r"data.train is 3; expected one of str, list\[str\]"),
        ("data.class_groups={animal: cat}", r"data.class_groups.animal is 'cat'; expected list\[str\]"),
        ("data.class_groups=animal", r"is 'animal'; expected one of 'supercategory', dict"),
        ("data.task=object", "choose one of"),
        ("optimization=3", "expected keys and values"),
        ("optimization.ema_decay=1.0", r"in \[0, 1\)"),
        ("optimization.multipliers={backbone: -1}", r"multipliers has -1.0 for 'backbone'; it must not be negative"),
        ("optimization.multipliers={backbone: slow}", "multipliers.backbone is 'slow'; expected float"),
    ],
)
def test_errors_name_key_and_remedy(recipe, override, message):
    with pytest.raises(ValueError, match=message):
        read_recipe(recipe, [override])


def test_a_split_or_several_and_groups_of_classes(recipe):
    assert read_recipe(recipe, ["data.train=[panoptic, more]"]).data.train == ["panoptic", "more"]
    assert read_recipe(recipe, ["data.class_groups=supercategory"]).data.class_groups == "supercategory"
    groups = {"animal": ["cat", "dog"], "vehicle": ["car"]}
    assert read_recipe(recipe, [f"data.class_groups={groups}"]).data.class_groups == groups


def test_a_recipe_says_what_differs_from_its_base(tmp_path):
    (tmp_path / "size").mkdir()
    (tmp_path / "base.yaml").write_text(
        "data: {root: a, train: b}\naugmentation: {short_edge: [1, 2], crop_size: [3, 4]}\n"
        "model: {backbone: c, config: {num_queries: 5, dropout: 0.1}}\nsteps: 7\nbatch_size: 2\n"
    )
    (tmp_path / "size" / "large.yaml").write_text(
        "base: ../base.yaml\naugmentation: {crop_size: [5, 6]}\nmodel: {config: {dropout: 0.0}}\nsteps: 8\n"
    )
    (tmp_path / "size" / "longer.yaml").write_text("base: large.yaml\nsteps: 9\n")
    read = read_recipe(tmp_path / "size" / "longer.yaml", ["batch_size=3"])
    assert (read.data.root, read.data.train, read.steps, read.batch_size) == ("a", "b", 9, 3)
    assert (read.augmentation.short_edge, read.augmentation.crop_size) == ([1, 2], [5, 6])
    assert read.model.config == {"num_queries": 5, "dropout": 0.0}

    (tmp_path / "base.yaml").write_text("base: size/longer.yaml\n")
    with pytest.raises(ValueError, match=r"in a circle: .*base\.yaml.*longer\.yaml.*large\.yaml.*base\.yaml"):
        read_recipe(tmp_path / "base.yaml")
    (tmp_path / "base.yaml").write_text("base: absent.yaml\n")
    with pytest.raises(ValueError, match=r"no recipe at .*absent\.yaml, which .*base\.yaml is based on"):
        read_recipe(tmp_path / "base.yaml")


def test_missing_key_and_file(tmp_path):
    with pytest.raises(ValueError, match="no recipe at"):
        read_recipe(tmp_path / "absent.yaml")
    path = tmp_path / "recipe.yaml"
    path.write_text("steps: 3\n")
    with pytest.raises(ValueError, match=r"lacks data.root"):
        read_recipe(path)
    path.write_text("a: [\n")
    with pytest.raises(ValueError, match="no valid YAML"):
        read_recipe(path)
