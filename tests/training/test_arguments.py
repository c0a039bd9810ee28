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
        ("augmentation.crop_size=[48]", "two positive lengths"),
        ("augmentation.short_edge=[60, 40]", "smaller length first"),
        ("model.checkpoint=null", "exactly one"),
        ("steps.more=1", "is a value, not a group"),
        ("steps", "not of the form key=value"),
        ("optimization=3", "expected keys and values"),
        ("optimization.ema_decay=1.0", r"in \[0, 1\)"),
    ],
)
def test_errors_name_key_and_remedy(recipe, override, message):
    with pytest.raises(ValueError, match=message):
        read_recipe(recipe, [override])


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
