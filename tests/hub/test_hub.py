"""To the Hub and back: what is pushed, what it needs, and what is said when it fails.

Two processes do nearly all of it, one with this package and one that cannot find it; the tests look at what they saw.
"""

import json
import re
import shutil
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load

from maskformer_hf import hub as sharing
from maskformer_hf.models import auto_classes
from tests.hub.loopback import NAME, ROUTES, LoopbackHub
from tests.hub.results import unpack_mask

pytestmark = pytest.mark.slow

CODE = {path.name for path in (sharing.PHOTO.parent.parent / "models").glob("*.py")}


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    """Where the process with the package works."""
    return tmp_path_factory.mktemp("with")


@pytest.fixture(scope="module")
def pushed(hub: LoopbackHub, run_script, tiny_checkpoint, photo_paths, here) -> dict:
    hub.break_off = r"PUT /lfs/me/broken-upload|POST /api/models/me/broken-commit/commit"
    return run_script("with_package.py", here, tiny_checkpoint, photo_paths[0])


@pytest.fixture(scope="module")
def elsewhere(hub, pushed, here, run_script, photo_paths, tmp_path_factory) -> dict:
    hidden = "maskformer_hf,scipy,pycocotools,timm,torchvision._C"
    folder = tmp_path_factory.mktemp("without")
    copy = shutil.copytree(here / "folder", folder / "copy")
    return run_script("without_package.py", folder, photo_paths[0], hidden, copy)


def test_the_command_uploads_all_in_one_commit(hub, pushed, tiny_checkpoint):
    assert pushed["push"]["status"] == 0, pushed["push"]
    assert pushed["push"]["output"].startswith("Pushed to http://127.0.0.1:")
    assert pushed["push"]["output"].endswith("/me/tiny\n")
    assert "model.safetensors: 100%" in pushed["push"]["errors"]  # the bar
    _, commit = hub.repositories["me/tiny"].commits
    assert commit.summary == "A first model"
    code = {name for name in commit.changed if name.endswith(".py")}
    assert {"modeling_maskformer.py", "image_processing_maskformer.py", "results.py"} <= code <= CODE
    others = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}
    assert set(commit.changed) - code == {*others, "sample.png", "sample.LICENSE.txt"}
    assert Image.open(BytesIO(commit.files["sample.png"])).width > 300
    # The weights are those of the file, bit for bit.
    assert commit.files["model.safetensors"] == (tiny_checkpoint / "model.safetensors").read_bytes()
    assert not hub.repositories["me/tiny"].private


def test_private_and_the_own_namespace(hub, pushed):
    assert pushed["private"]["status"] == 0, pushed["private"]
    assert hub.repositories["me/mine"].private


def test_a_model_of_the_hub_is_pushed_on(hub, pushed):
    assert pushed["of a Hub name"]["status"] == 0, pushed["of a Hub name"]
    original, copy = (hub.repositories[name].commits[-1].files for name in ("me/tiny", "me/copy"))
    assert copy.keys() == original.keys()
    assert copy["model.safetensors"] == original["model.safetensors"]
    assert b"me/copy" in copy["README.md"]
    assert b"me/tiny" not in copy["README.md"]


def test_push_to_hub_carries_the_code(hub, pushed):
    _, model, processor = hub.repositories["me/parts"].commits
    assert {"config.json", "model.safetensors", "modeling_maskformer.py", "criterion.py"} <= set(model.changed)
    assert {"preprocessor_config.json", "image_processing_maskformer.py", "results.py"} <= set(processor.changed)
    assert json.loads(processor.files["config.json"])["auto_map"] == auto_classes.MODELS["maskformer_hf"]
    assert json.loads(processor.files["preprocessor_config.json"])["auto_map"] == auto_classes.IMAGE_PROCESSOR
    for name in ("me/parts-of-save", "me/parts-of-second-save"):
        saved = hub.repositories[name].commits[-1]
        assert {"config.json", "model.safetensors", "modeling_maskformer.py", "criterion.py"} <= set(saved.changed)
        assert "auto_map" in json.loads(saved.files["config.json"])


def test_the_switch_holds_for_what_is_pushed(hub, pushed):
    files = hub.repositories["me/without-code"].commits[-1].files
    assert {name for name in files if name.endswith(".py")} == set()
    assert "auto_map" not in json.loads(files["config.json"])


def test_with_the_package_no_flag_is_needed_and_its_own_classes_load(pushed):
    modules = {name.rpartition(".")[0] for name in pushed["classes"]}
    assert modules == {
        "maskformer_hf.models.modeling_maskformer",
        "maskformer_hf.models.configuration_maskformer",
        "maskformer_hf.models.image_processing_maskformer",
        "maskformer_hf.inference.pipeline",
    }


def test_what_is_saved_has_its_own_code_even_if_it_came_from_the_hub(hub, pushed, here):
    code = {name for name in pushed["saved"] if name.endswith(".py")}
    assert {*pushed["saved"]} - code == {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert code == {name for name in hub.repositories["me/tiny"].commits[-1].files if name.endswith(".py")}
    for name, auto_map in (
        ("config.json", auto_classes.MODELS["maskformer_hf"]),
        ("preprocessor_config.json", auto_classes.IMAGE_PROCESSOR),
    ):
        # Not "me/tiny--...", the repository that it came from.
        assert json.loads((here / "saved" / name).read_text())["auto_map"] == auto_map


def assert_same_segments(found: list, expected: list):
    assert [segment[:3] for segment in found] == [segment[:3] for segment in expected]
    for (*_, ours), (*_, theirs) in zip(found, expected, strict=True):
        # Our pipeline runs on channels-last memory, which adds in another order: a pixel in ten thousand may flip.
        assert (unpack_mask(ours) != unpack_mask(theirs)).mean() < 1e-4


def test_without_the_package_the_same_is_found(pushed, elsewhere):
    assert len(pushed["segments"]["semantic"]) >= 2
    assert len(pushed["segments"]["panoptic"]) >= 2
    for found in (elsewhere["segments"], elsewhere["segments of a local copy"]):
        for subtask in ("semantic", "panoptic"):
            assert_same_segments(found[subtask], pushed["segments"][subtask])
    # `push` tells the processor which classes are fused, `processor.push_to_hub` knows no model to ask.
    assert_same_segments(elsewhere["segments of parts"]["semantic"], pushed["segments"]["semantic"])
    assert not elsewhere["has operators"]
    assert "trust_remote_code=True" in elsewhere["no flag"]
    assert elsewhere["classes"] == ["MaskFormerHfModel", *["MaskFormerHfForUniversalSegmentation"] * 2]


@pytest.mark.parametrize("way", ["hf upload", "Trainer", "a copy"])
def test_a_saved_folder_runs_without_the_package_whatever_its_way(pushed, elsewhere, way):
    for subtask in ("semantic", "panoptic"):
        assert_same_segments(elsewhere[f"segments by way of {way}"][subtask], pushed["segments"][subtask])


@pytest.mark.parametrize("name", ["saved", "saved_from_local"])
def test_what_is_saved_without_the_package_has_its_code(pushed, elsewhere, name):
    assert set(pushed["saved"]) == set(elsewhere[name])
    for subtask in ("semantic", "panoptic"):
        assert_same_segments(elsewhere[f"segments of {name}"][subtask], pushed["segments"][subtask])
    assert elsewhere["saved without code"] == ["config.json", "model.safetensors"]


def test_a_snapshot_is_the_whole_repository(hub, elsewhere):
    assert elsewhere["files"] == sorted(hub.repositories["me/tiny"].commits[-1].files)


@pytest.mark.parametrize("library", ["scipy", "pycocotools", "timm"])
def test_a_missing_library_is_named(elsewhere, library):
    message = elsewhere[f"no {library}"]
    assert message.startswith("ImportError: ")
    assert library in message
    assert "install" in message


def test_without_torchvision_the_processor_says_so(hub, pushed, run_script, photo_paths, tmp_path):
    results = run_script("without_package.py", tmp_path, photo_paths[0], "maskformer_hf,torchvision")
    message = results["no torchvision"]
    assert message.startswith("ImportError: ")
    assert "orchvision" in message


def test_a_torchvision_that_does_not_fit_is_named(tmp_path):
    code = """
import importlib.machinery
find_spec = importlib.machinery.FileFinder.find_spec
importlib.machinery.FileFinder.find_spec = lambda self, name, target=None: (
    None if name.startswith("_C") and "torchvision" in self.path else find_spec(self, name, target)
)
import maskformer_hf
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: torchvision cannot be imported")
    assert "install the torchvision that fits" in last


def test_a_model_that_came_with_its_code_goes_on_with_it(hub, elsewhere):
    files = hub.repositories["me/changed"].commits[-1].files
    original = hub.repositories["me/tiny"].commits[-1].files
    assert json.loads(files["config.json"])["auto_map"] == auto_classes.MODELS["maskformer_hf"]
    assert {name for name in files if name.endswith(".py")} == {name for name in original if name.endswith(".py")}
    ours, theirs = load(original["model.safetensors"]), load(files["model.safetensors"])
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


FAILURES = {
    "refused token": "refused the token for 'me/refused' (401)",
    "no token": "no token for the Hub: log in with `hf auth login`",
    "someone else's": "refused the token for 'someone/else' (403)",
    "interrupted upload": "broke off at 'me/broken-upload'",
    "interrupted commit": "broke off at 'me/broken-commit'",
    "impossible name": "'me/a/b'",
    "no such checkpoint": "no checkpoint 'nonsense'",
    "no such Hub name": "has no 'me/nothing'",
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failure_is_one_line(hub, pushed, failure):
    result = pushed[failure]
    assert result["status"] == 1
    assert result["exception"] is None
    # Without the bars of what was being sent.
    lines = [line for line in result["errors"].splitlines() if line.strip() and not re.search(r"%\||B/s", line)]
    assert len(lines) == 1, result["errors"]
    assert lines[0].startswith("maskformer: ")
    assert FAILURES[failure] in lines[0]
    assert result["output"] == ""


def test_after_a_failure_nothing_is_there(hub, pushed):
    assert "me/refused" not in hub.repositories
    assert len(hub.repositories["me/broken-upload"].commits) == 1
    assert len(hub.repositories["me/broken-commit"].commits) == 1


def test_only_routes_of_the_hub_are_used(hub, pushed, elsewhere):
    """The double of the Hub answers 404 to what it does not know, which must not be what makes a test pass."""
    optional = rf"/api/models/{NAME}/tree/\w+/additional_chat_templates"
    unknown = [
        request
        for request in hub.requests
        if not any(
            request.split(" ")[0] in methods and re.fullmatch(pattern, request.split(" ", 1)[1])
            for methods, pattern, _ in ROUTES
        )
        and not re.fullmatch(optional, request.split(" ", 1)[1])
    ]
    assert unknown == []
    assert len(hub.requests) > 100


def test_the_card_on_the_hub(hub, pushed):
    card = ModelCard(hub.repositories["me/tiny"].commits[-1].files["README.md"].decode())
    assert card.data.pipeline_tag == "image-segmentation"
    assert card.data.library_name == "transformers"
    assert 'model="me/tiny", trust_remote_code=True' in card.text
