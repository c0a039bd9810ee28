"""Which file may import which: the direction of the layers, and what the Hub demands of models/."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import transformers
from transformers import CONFIG_MAPPING
from transformers.dynamic_module_utils import (
    check_imports,
    get_imports,
    get_relative_import_files,
    get_relative_imports,
)

PACKAGE = Path(__file__).parent.parent / "src" / "maskformer_hf"
MODEL_FILES = sorted(path for path in (PACKAGE / "models").glob("*.py") if path.name != "__init__.py")

# A layer may import those behind it. Packages of one layer do not know each other.
LAYERS = [
    {"cli"},
    {"training", "conversion", "export", "hub"},
    {"inference", "visualize"},
    {"presets", "model_card"},
    {"presets_eomt"},
    {"class_names"},
    {"data", "metrics", "models", "machine"},
    {"output_files"},
]
EXCEPTIONS = {
    ("visualize", "inference"): "What is drawn is a prediction.",
    ("training", "conversion"): "A recipe may start from a file of Detectron2, which is converted first.",
    ("data", "models"): "One rule resizes masks and reads images. It travels to the Hub with the processor.",
}
# Files beside the packages that belong to one of them.
BELONGS_TO = {"__main__": "cli"}


def imported_parts(path: Path) -> set[str]:
    """What a file imports from the package, as first names below it: `..models.layers` gives "models"."""
    folder = path.relative_to(PACKAGE).parent.parts
    parts = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            module = node.module.split(".") if node.module else []
            if node.level:
                base = list(folder[: len(folder) - node.level + 1])
                names = [*base, *module]
                parts |= {names[0]} if names else {alias.name for alias in node.names}
            elif module[:1] == ["maskformer_hf"]:
                parts |= {module[1]} if len(module) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            parts |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("maskformer_hf.")}
    return parts


def layer(part: str) -> int | None:
    return next((number for number, parts in enumerate(LAYERS) if part in parts), None)


def test_imports_point_one_way():
    looked_at, used = [], set()
    for path in sorted(PACKAGE.rglob("*.py")):
        own = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if own == "__init__":
            continue
        own = BELONGS_TO.get(own, own)
        assert layer(own) is not None, f"{path} belongs to no layer: name it in LAYERS"
        for part in imported_parts(path) - {own}:
            assert layer(part) is not None, f"{path} imports {part}, which belongs to no layer"
            if layer(own) >= layer(part):
                assert (own, part) in EXCEPTIONS, f"{path.relative_to(PACKAGE)} imports {part}"
                used.add((own, part))
        looked_at.append(own)
    assert len(looked_at) >= 150
    assert set().union(*LAYERS) <= set(looked_at)
    assert used == EXCEPTIONS.keys(), "take out the exceptions that nothing needs"
    assert len(EXCEPTIONS) <= 3


def imported_names(path: Path) -> dict[str, set[str]]:
    """What a file of models/ imports from its siblings, by sibling."""
    names: dict[str, set[str]] = {}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module:
            names.setdefault(node.module, set()).update(alias.name for alias in node.names)
    return names


def test_few_files_of_models_know_more_than_one_part():
    """What the table of parts offers is put together by the table itself and by the models, and nowhere else."""
    table = imported_names(PACKAGE / "models" / "parts.py")
    # What parts tell each other, and what an entry of the table is.
    del table["interfaces"], table["part"]
    assert len(table) >= 8
    assert sum(map(len, table.values())) >= 12
    looked_at = 0
    for path in MODEL_FILES:
        if path.name == "parts.py" or path.name.startswith("modeling_"):
            continue
        known = {module for module, names in imported_names(path).items() if names & table.get(module, set())}
        # A variant is derived from its part and has its name in front: assigners_steady.py.
        known -= {module for module in known if path.stem.startswith(f"{module}_")}
        others = "another part" if path.stem in table else "more than one part"
        assert len(known) <= (path.stem not in table), f"{path.name} knows {others}: {sorted(known)}"
        looked_at += 1
    assert looked_at >= 40


def test_the_check_of_the_direction_sees_what_it_should():
    source = PACKAGE / "training" / "loop.py"
    assert {"data", "models"} & imported_parts(source) or "metrics" in imported_parts(
        PACKAGE / "training/evaluation.py"
    )
    assert "inference" in imported_parts(PACKAGE / "visualize" / "photo.py")
    assert imported_parts(PACKAGE / "models" / "modeling_maskformer.py") == {"models"}


def test_model_files_can_travel_to_the_hub():
    """`save_pretrained` copies what `from .sibling import name` names, within one folder, and nothing else."""
    num_imports = 0
    for path in MODEL_FILES:
        # transformers' own function, a regular expression over the text: what it will try to open.
        for name in get_relative_imports(path):
            assert (path.parent / f"{name}.py").is_file(), f"{path.name}: save_pretrained would open {name}.py"
            num_imports += 1
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert node.level < 2, f"{path.name}:{node.lineno} imports from above its folder"
                assert not (node.level and node.module is None), f"{path.name}:{node.lineno}: `from . import`"
                assert node.level or (node.module or "").split(".")[0] != "maskformer_hf", f"{path.name}:{node.lineno}"
            elif isinstance(node, ast.Import):
                assert all(alias.name.split(".")[0] != "maskformer_hf" for alias in node.names), path.name
    assert len(MODEL_FILES) >= 14
    assert num_imports >= 20
    assert [path for path in (PACKAGE / "models").iterdir() if path.is_dir() and path.name != "__pycache__"] == []


# What is there wherever transformers runs a model for images.
EVERYWHERE = {"PIL", "huggingface_hub", "numpy", "safetensors", "torch", "transformers", *sys.stdlib_module_names}


@pytest.mark.parametrize("path", MODEL_FILES, ids=lambda path: path.name)
def test_model_files_need_only_what_is_everywhere(path):
    """Before a file from the Hub is run, transformers asks for all it imports, within functions too."""
    # transformers' own function: imports in `try` blocks are left out.
    needed = set(get_imports(path)) - EVERYWHERE
    assert not needed, f"{path.name} could not be loaded from the Hub without {sorted(needed)}: import them in a `try`"
    check_imports(path)


@pytest.mark.parametrize("path", MODEL_FILES, ids=lambda path: path.name)
def test_model_files_bring_along_all_they_import(path):
    """The copy that goes to the Hub is complete: transformers' search finds every sibling that Python would import."""
    found = {Path(file).name for file in get_relative_import_files(path)}
    waiting, expected = [path], set()
    while waiting:
        for node in ast.walk(ast.parse(waiting.pop().read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level and f"{node.module}.py" not in expected:
                expected.add(f"{node.module}.py")
                waiting.append(path.parent / f"{node.module}.py")
    assert found - {path.name} == expected - {path.name}


def test_every_model_can_be_uploaded():
    """Each model that the import registers has its row in auto_classes.py, and each row its files and classes."""
    import maskformer_hf
    from maskformer_hf.models.auto_classes import CLASS_NAMES, MODELS, PROCESSORS

    maskformer_hf.register()
    own = {name for name, kind in CONFIG_MAPPING._extra_content.items() if kind.__module__.startswith("maskformer_hf")}
    assert own == MODELS.keys() == PROCESSORS.keys(), "name the model in models/auto_classes.py"
    for auto_map in (*MODELS.values(), *PROCESSORS.values()):
        for auto_class, reference in auto_map.items():
            module, name = reference.split(".")
            found = getattr(import_module(f"maskformer_hf.models.{module}"), name)
            assert found.__module__ == f"maskformer_hf.models.{module}"
            assert hasattr(transformers, auto_class)
            assert name in CLASS_NAMES


def test_model_files_import_optional_packages_where_they_may_be_missing():
    """A top-level import of scipy or timm would become a requirement of everyone who loads a model from the Hub."""
    for path in MODEL_FILES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            for name in names:
                assert name.split(".")[0] not in ("scipy", "timm", "pycocotools", "accelerate"), f"{path.name}: {name}"


@pytest.fixture(scope="module")
def imported_modules():
    code = "import sys, maskformer_hf; print('\\n'.join(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(result.stdout.split())


def test_importing_the_package_stays_light(imported_modules):
    assert "maskformer_hf.models.modeling_maskformer" in imported_modules
    # accelerate is imported by transformers itself.
    for heavy in ("timm", "datasets", "evaluate", "pycocotools", "typer", "maskformer_hf.training"):
        assert heavy not in imported_modules


def test_public_names_are_those_of_the_package():
    import maskformer_hf

    assert {*maskformer_hf._PUBLIC, "__version__", "register"} == {*maskformer_hf.__all__}
    for name in maskformer_hf.__all__:
        assert getattr(maskformer_hf, name) is not None
    # One name for one thing, but for the one that transformers' class has and ours has not.
    classes = {name: value for name in maskformer_hf.__all__ if isinstance(value := getattr(maskformer_hf, name), type)}
    del classes["MaskFormerForInstanceSegmentation"]
    assert len(set(classes.values())) == len(classes) >= 13
    assert set(maskformer_hf.__all__) <= set(dir(maskformer_hf))
    # Saved class names must not be transformers' own, or its classes would load where this package is missing.
    for name in (
        "MaskFormerConfig",
        "MaskFormerForInstanceSegmentation",
        "MaskFormerModel",
        "MaskFormerImageProcessor",
    ):
        assert getattr(maskformer_hf, name).__name__ != name
        assert not hasattr(transformers, getattr(maskformer_hf, name).__name__)


def test_auto_classes_find_our_models(tiny_checkpoint, tiny_model):
    import maskformer_hf

    maskformer_hf.register()
    assert type(transformers.AutoConfig.from_pretrained(tiny_checkpoint)) is maskformer_hf.MaskFormerConfig
    assert type(transformers.AutoModel.from_pretrained(tiny_checkpoint)) is maskformer_hf.MaskFormerModel
    for name in ("Universal", "Instance", "Semantic", "Image"):
        auto_class = getattr(transformers, f"AutoModelFor{name}Segmentation")
        model = auto_class.from_pretrained(tiny_checkpoint)
        assert type(model) is maskformer_hf.MaskFormerForUniversalSegmentation
    processor = transformers.AutoImageProcessor.from_pretrained(tiny_checkpoint)
    assert type(processor) is maskformer_hf.MaskFormerImageProcessor
