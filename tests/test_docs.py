"""The pages in docs/ say what is true: their code runs, in order, and the page of commands lists what `--help` lists.

A page is a story: its blocks run from top to bottom in one empty folder, Python blocks in one namespace. A YAML block
is written to the file that its first line names. A text block is a figure or a listing, and does not run.
"""

import importlib.util
import itertools
import re
import shlex
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

import datasets
import numpy as np
import pytest
import torch
import transformers
import yaml
from accelerate.state import AcceleratorState
from PIL import Image
from typer.testing import CliRunner

import maskformer_hf
from builders import tiny_transformers_config
from layouts import LAYOUTS
from maskformer_hf.cli import app
from maskformer_hf.conversion.safe_reader import read_checkpoint
from maskformer_hf.data import FORMATS, open_dataset
from maskformer_hf.inference import load
from maskformer_hf.models import parts
from maskformer_hf.presets import class_names
from maskformer_hf.training.arguments import Recipe, read_recipe

ROOT = Path(__file__).parent.parent
PAGES = (
    "fine-tune-on-your-data",
    "video",
    "systems",
    "parts",
    "moving-from-transformers",
    "command-line",
    "metrics",
    "data",
    "images",
)
# What was measured: trainings of half an hour, whose commands are read and not run.
RESULTS = ("mask-classification-on-small-data",)
LANGUAGES = {"python", "bash", "yaml", "text"}


def read(page: str) -> str:
    return (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")


def blocks(page: str) -> list[tuple[str, str]]:
    """Language and text of every code block, in order."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", read(page), flags=re.DOTALL | re.MULTILINE)


def commands(block: str) -> list[str]:
    lines = block.replace("\\\n", " ").splitlines()
    return [line for line in (line.split(" #")[0].strip() for line in lines) if line and not line.startswith("#")]


def run_page(page: str) -> dict[str, Any]:
    """Run all blocks of a page in the working directory. Returns what its Python blocks have defined."""
    namespace: dict[str, Any] = {"__name__": page}
    for number, (language, text) in enumerate(blocks(page), start=1):
        where = f"docs/{page}.md, block {number}"
        if language == "python":
            exec(compile(text, where, "exec"), namespace)
        elif language == "bash":
            for command in commands(text):
                program, *arguments = shlex.split(command)
                assert program == "maskformer", f"{where}: {command}"
                if arguments[0] == "export" and importlib.util.find_spec("onnxruntime") is None:
                    continue  # not everybody has the extra that ONNX needs
                result = CliRunner().invoke(app, arguments)
                assert result.exit_code == 0, f"{where}: {command}\n{result.output}\n{result.exception!r}"
                # Accelerate keeps precision and device for the life of a process, which here is that of many commands.
                AcceleratorState._reset_state(reset_partial_state=True)
        elif language == "yaml":
            name = re.match(r"# (\S+\.yaml)", text)
            assert name, f"{where}: the first line names no file"
            Path(name[1]).write_text(text, encoding="utf-8")
    return namespace


@pytest.fixture
def workplace(tmp_path, monkeypatch, tiny_checkpoint) -> Iterator[Path]:
    """An empty folder with examples/ in it, where the checkpoint `street` can be loaded."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    if "street" not in maskformer_hf.bundled_checkpoints():
        # Not trained yet in this copy of the repository: random weights will do to run the code.
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "checkpoints" / "street").symlink_to(tiny_checkpoint)
        monkeypatch.setattr(load, "CHECKPOINTS", tmp_path / "checkpoints")
    yield tmp_path
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def photos(workplace) -> Path:
    """The folder `photos` that training and evaluation read: three classes, told by colour."""
    root = workplace / "photos"
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (root / split / kind).mkdir(parents=True)
        for index in range(2):
            ids = random.integers(0, 3, (2, 3), dtype=np.uint8).repeat(32, 0).repeat(32, 1)
            Image.fromarray(ids).save(root / split / "labels" / f"{index}.png")
            Image.fromarray(np.stack([ids * 100, 200 - ids * 50, ids * 20], -1)).save(
                root / split / "images" / f"{index}.png"
            )
    (root / "classes.txt").write_text("wall\nbuilding\npuddle\n")
    return root


@pytest.fixture
def hub(monkeypatch):
    """The Hub on the loopback address (tests/hub/loopback.py), which knows the token of this process."""
    import huggingface_hub.constants as constants

    loopback = _load(ROOT / "tests" / "hub" / "loopback.py")
    server = loopback.LoopbackHub()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", loopback.TOKEN)
    yield server
    server.close()


@pytest.fixture
def released(workplace) -> None:
    """Tiny models under the names of released ones: of transformers on the Hub, and of the original's model zoo."""
    names = [name for name, _, _ in class_names("ade20k_150")]
    config = tiny_transformers_config(
        id2label=dict(enumerate(names)),
        label2id={name: label for label, name in enumerate(names)},
    )
    torch.manual_seed(0)
    folder = workplace / "facebook" / "maskformer-swin-tiny-ade"
    transformers.MaskFormerForInstanceSegmentation(config).save_pretrained(folder)
    transformers.MaskFormerImageProcessor(
        size={"shortest_edge": 64, "longest_edge": 256}, ignore_index=255, do_reduce_labels=True
    ).save_pretrained(folder)
    golden = ROOT / "tests" / "fixtures" / "golden" / "maskformer_r50_fpn"
    (workplace / "model_final_d8dbeb.pkl").symlink_to(golden / "model_zoo_style.pkl")
    (workplace / "output").mkdir()
    torch.save({"model": read_checkpoint(golden / "model_zoo_style.pkl")}, workplace / "output" / "model_final.pth")
    (workplace / "output" / "config.yaml").symlink_to(golden / "config.json")


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"_docs_{path.stem}", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- the pages -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_fine_tune_on_your_data(workplace, hub):
    found = run_page("fine-tune-on-your-data")
    log = (workplace / "runs" / "mine" / "log.jsonl").read_text()
    assert '"step": 12,' in log
    assert found["loss"].isfinite()
    [repository] = hub.repositories
    assert repository == "me/my-maskformer"
    assert "mean_iou" in hub.repositories[repository].commits[-1].files["README.md"].decode()


def test_systems(workplace):
    found = run_page("systems")
    assert found["quick"].segmentation.shape == found["usual"].segmentation.shape
    assert not any(found["frozen"])
    assert len(found["model"].model.pixel_decoder.mask_projection.blocks) == 2


def test_parts(workplace, monkeypatch, tmp_path):
    # The page registers parts, for as long as the test lasts.
    monkeypatch.setattr(parts, "_TABLE", {slot: dict(known) for slot, known in parts._TABLE.items()})
    monkeypatch.syspath_prepend(ROOT)
    found = run_page("parts")
    own = {field: getattr(found["model"].config, field) for field in found["own"]}
    assert own == found["own"]
    assert found["outputs"].loss_dict["loss_outline"] != 0
    registered = [text for _, text in blocks("parts") if "\nregister(" in text]
    assert len(registered) == 5
    assert all(len(text.split("\nregister(")[0].splitlines()) <= 30 for text in registered)
    # What pytest would run of the page's own test class.
    contract = found["TestSum"]()
    shared = contract.model()
    contract.test_shapes(shared, (70, 90))
    contract.test_every_parameter_gets_a_gradient()
    contract.test_hidden_states(shared)
    contract.test_round_trip(shared, tmp_path / "saved")
    contract.test_a_batch_changes_nothing(shared)


def test_moving_from_transformers(workplace, released):
    found = run_page("moving-from-transformers")
    assert type(found["stock"]) is transformers.MaskFormerForInstanceSegmentation
    assert found["model"].config.id2label[0] == "wall"


@pytest.mark.slow
def test_command_line(workplace, released, photos, hub):
    run_page("command-line")
    assert (workplace / "result.png").is_file()
    assert (workplace / "overlays" / "street.json").is_file()
    assert "me/my-maskformer" in hub.repositories


def test_metrics(workplace):
    assert run_page("metrics")["result"]["boundary_iou"] == 1


def test_images(workplace):
    run_page("images")


def test_data(workplace, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", workplace / "cache")
    for name, write in LAYOUTS.items():
        write(workplace / "data" / name)
    found = run_page("data")
    assert len(found["data"]) == 1
    opened = {}
    for path in workplace.glob("*.yaml"):
        arguments = yaml.safe_load(path.read_text())["data"]
        train, validation = arguments.pop("train", "train"), arguments.pop("validation", "val")
        data = open_dataset(arguments.pop("root"), train, **arguments)
        assert len(next(iter(data))["labels"]) >= 1, path
        assert open_dataset(yaml.safe_load(path.read_text())["data"]["root"], validation, **arguments).id2label
        opened[path.stem] = data
    assert {*FORMATS} - {"datasets_streaming"} | {"grouped", "streamed", "columns"} == opened.keys()
    assert opened["grouped"].id2label == {0: "ground", 1: "vehicle"}
    assert opened["columns"].id2label == {0: "road", 1: "car"}
    headings = re.findall(r"^## (\w+)$", read("data"), flags=re.MULTILINE)
    assert set(headings) == {*FORMATS}
    assert opened["ade20k"].task == "panoptic"


@pytest.mark.slow
def test_video(workplace):
    found = run_page("video")
    assert found["prediction"].num_frames == 8
    assert (workplace / "found" / "tracks.json").is_file()


# --- what all pages keep ---------------------------------------------------------------------------------------------


def test_every_page_is_run_by_a_test_and_linked_from_the_readme():
    assert {path.stem for path in (ROOT / "docs").glob("*.md")} == {*PAGES, *RESULTS}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for page in (*PAGES, *RESULTS):
        assert f"(docs/{page}.md)" in readme, page
    for page in PAGES:
        assert f"run_page({page!r})".replace("'", '"') in Path(__file__).read_text(encoding="utf-8"), page


@pytest.mark.parametrize("page", [*RESULTS, "video"])
def test_commands_of_measurements_are_possible(page):
    """The recipes are there and take what is set; the options of other commands are those of the help."""
    lines = [line for language, text in blocks(page) if language == "text" for line in commands(text)]
    found = [shlex.split(line) for line in lines if line.startswith("maskformer ")]
    assert len(found) >= 2
    for _, command, *arguments in found:
        assert options(" ".join(arguments)) <= options(help_text(command))
        if command == "train":
            overrides = [value for name, value in itertools.pairwise(arguments) if name == "--set"]
            assert read_recipe(ROOT / arguments[0], overrides).steps


@pytest.mark.parametrize("page", [*PAGES, *RESULTS])
def test_blocks_links_and_names(page):
    text = read(page)
    found = blocks(page)
    # No block escapes for its indentation or its language.
    assert len(re.findall(r"^\s*```", text, flags=re.MULTILINE)) == 2 * len(found)
    assert {language for language, _ in found} <= LANGUAGES
    if page in PAGES:
        assert sum(language in ("python", "bash") for language, _ in found) >= 3
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    paths = re.findall(r"`((?:src|tests|examples|recipes|benchmarks|docs)/[\w./-]*)(?:::(\w+))?(?:::(\w+))?`", text)
    assert links or paths
    for link in links:
        assert (ROOT / "docs" / link).resolve().exists(), link
    for path, *names in paths:
        assert (ROOT / path).exists(), path
        source = (ROOT / path).read_text(encoding="utf-8") if any(names) else ""
        for name in filter(None, names):
            assert re.search(rf"^\s*(?:def|class) {name}\b", source, flags=re.MULTILINE), f"{path}::{name}"


def test_keys_of_the_recipe_are_those_of_the_table():
    keys = set()
    for name, kind in get_type_hints(Recipe).items():
        keys |= {f"{name}.{key}" for key in get_type_hints(kind)} if is_dataclass(kind) else {name}
    table = re.search(r"^\| key \|.*?\n\n", read("fine-tune-on-your-data"), flags=re.DOTALL | re.MULTILINE)
    assert table
    first_cells = " ".join(re.findall(r"^\| (`.*?) \|", table[0], flags=re.MULTILINE))
    assert set(re.findall(r"`([\w.]+)`", first_cells)) == keys
    assert len(keys) >= 35


def test_tests_that_hold_a_difference_are_named():
    paths = re.findall(r"`(tests/[\w./-]*)::\w+", read("moving-from-transformers"))
    assert len(paths) >= 15


def test_commands_and_options_are_those_of_the_help():
    page = read("command-line")
    introduction, *sections = re.split(r"^## `maskformer ([\w-]+) (.*)`$", page, flags=re.MULTILINE)
    names = sections[::3]
    listed = help_text().split("Commands:")[1]
    assert names == re.findall(r"^  ([\w-]+)  ", listed, flags=re.MULTILINE)
    assert (
        options(help_text().split("Commands:")[0])
        == options(introduction.replace("python -m", ""))
        == {"--help", "-h", "--version"}
    )
    count = 0
    for name, arguments, text in zip(names, sections[1::3], sections[2::3], strict=True):
        usage, there = help_text(name).split("\n", 1)
        there = " ".join(re.findall(r"^  (-.*?)(?:  |$)", there, flags=re.MULTILINE))
        first_cells = re.findall(r"^\| (`.*?) \|", text, flags=re.MULTILINE)
        assert options(" ".join(first_cells)) == options(there) - {"--help", "-h"}, f"maskformer {name}"
        # Nor does the rest speak of one that does not exist.
        assert options(re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)) <= options(there), name
        words = [word.upper() for word in re.findall(r"\w+", usage.partition("[OPTIONS]")[2])]
        assert re.findall(r"\w+", arguments) == words
        assert {f"`{word}`" for word in words} <= set(first_cells)
        for choices in re.findall(r"[<\[](\w+(?:\|\w+)+)[>\]]", help_text(name)):
            assert all(f"`{choice}`" in text for choice in choices.split("|")), f"maskformer {name}: {choices}"
        count += len(first_cells)
    assert count >= 25


def help_text(*command: str) -> str:
    result = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "200", "TERMINAL_WIDTH": "200"})
    assert result.exit_code == 0
    return result.output.strip()


def options(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])-{1,2}[a-z][a-z-]*(?![\w])", text))
