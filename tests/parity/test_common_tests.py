"""Our classes pass transformers' own common tests of models and image processors, except for those in the table here.

The tests are fetched from the package index (`sdist.py`) and run in a process of their own (`common_tests.py`). Offline
they are skipped.
"""

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import transformers

from tests.parity.sdist import fetch_tests

pytestmark = pytest.mark.slow  # a minute or two

ADAPTER = Path(__file__).parent / "common_tests.py"
# The version that the table was written for. Another one has other tests: run `common_tests.py`, then change both.
VERSION = "5.24"

EAGER = (
    "Attention weights exist in the eager implementation alone. A model with another one says so, where transformers "
    "returns none (tests/models/contract.py::test_attentions)."
)
NO_WORDS = "Pixels are not looked up in a table: there are no input embeddings to get or set."
NORMALISED = (
    "Hidden states are the normalised ones that a layer predicts from. The next layer takes them before the norm, so "
    "the last output does not depend on those of the first layer."
)
MODEL_DIFFERENCES = {
    "test_eager_matches_sdpa_inference_24_fp32_pad_left_output_attentions": EAGER,
    "test_model_outputs_equivalence": EAGER,
    "test_model_get_set_embeddings": NO_WORDS,
    "test_retain_grad_hidden_states_attentions": NORMALISED,
}
# What fails, and why that is meant: by class of common_tests.py.
DIFFERENCES: dict[str, dict[str, str]] = {
    "MaskFormerTest": MODEL_DIFFERENCES,
    "Mask2FormerTest": MODEL_DIFFERENCES,
    "PerPixelTest": MODEL_DIFFERENCES,
    "ImageProcessorTest": {},
}
# How many pass at least; the others ask for accelerators, other packages, words or experts, and skip themselves.
PASSED = {"MaskFormerTest": 90, "Mask2FormerTest": 90, "PerPixelTest": 90, "ImageProcessorTest": 20}


@pytest.fixture(scope="module")
def results(request, tmp_path_factory) -> dict[str, dict[str, str | None]]:
    """By class and test, what it failed with; None if it passed. Those that skip themselves are left out."""
    if not transformers.__version__.startswith(f"{VERSION}."):
        pytest.skip(f"the differences listed here are those of transformers {VERSION}, not {transformers.__version__}")
    pytest.importorskip("parameterized", reason="transformers' common tests import parameterized")
    cache = getattr(request.config, "cache", None)  # there is none with -p no:cacheprovider
    try:
        tests = fetch_tests(
            cache.mkdir("transformers-tests") if cache else tmp_path_factory.mktemp("transformers_tests")
        )
    except RuntimeError as error:
        pytest.skip(str(error))
    report = tmp_path_factory.mktemp("common_tests") / "report.xml"
    # Their marks are not ours, and their warnings are not about us.
    options = ["-q", "-o", "addopts=--import-mode=importlib", "-W", "ignore", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *options, f"--junitxml={report}", str(ADAPTER)]
    environment = {**os.environ, "TRANSFORMERS_TESTS": str(tests), "HF_HUB_OFFLINE": "1"}
    # What pytest-xdist tells its workers is not for this process.
    environment = {name: value for name, value in environment.items() if not name.startswith("PYTEST_")}
    process = subprocess.run(
        command, cwd=request.config.rootpath, env=environment, capture_output=True, text=True, timeout=1800
    )
    # 1: some failed. Anything else says that they did not run.
    assert process.returncode in (0, 1), process.stdout[-4000:] + process.stderr[-2000:]
    found: dict[str, dict[str, str | None]] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        if case.find("skipped") is None:
            failure = next((problem for kind in ("failure", "error") for problem in case.iter(kind)), None)
            test_class = found.setdefault(case.get("classname", "").rpartition(".")[2], {})
            # A test with failed subtests is there once for each of them.
            message = None if failure is None else failure.get("message", "")
            test_class[case.get("name", "")] = message or test_class.get(case.get("name", ""))
    return found


@pytest.mark.parametrize("test_class", DIFFERENCES)
def test_all_but_the_listed_ones_pass(results, test_class):
    failed = {name: message for name, message in results[test_class].items() if message is not None}
    unexpected = failed.keys() - DIFFERENCES[test_class].keys()
    assert not unexpected, {name: failed[name] for name in sorted(unexpected)}
    assert len(results[test_class]) - len(failed) >= PASSED[test_class]


@pytest.mark.parametrize("test_class", DIFFERENCES)
def test_the_listed_ones_fail(results, test_class):
    for name in DIFFERENCES[test_class]:
        assert name in results[test_class], f"{name} is gone, or skips itself: take it from the table"
        assert results[test_class][name] is not None, f"{name} passes now: take it from the table"


def test_what_cannot_be_fetched_is_told(tmp_path, monkeypatch):
    """Offline, in one line."""
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    with pytest.raises(RuntimeError, match="pip cannot download the source distribution of transformers"):
        fetch_tests(tmp_path)
    assert not list(tmp_path.iterdir())
