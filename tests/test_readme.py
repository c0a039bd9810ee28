"""The README says what is true: its code runs, its commands work, its files and tests exist."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

import maskformer_hf
from maskformer_hf.cli import app
from maskformer_hf.inference import load

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)


@pytest.fixture
def workplace(tmp_path, monkeypatch, tiny_checkpoint) -> Path:
    """An empty folder with examples/ in it, where the checkpoint `street` can be loaded."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    if "street" not in maskformer_hf.bundled_checkpoints():
        # Not trained yet in this copy of the repository: random weights will do to run the code.
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "checkpoints" / "street").symlink_to(tiny_checkpoint)
        monkeypatch.setattr(load, "CHECKPOINTS", tmp_path / "checkpoints")
    return tmp_path


@pytest.mark.slow
def test_python_blocks_run(workplace):
    code = blocks("python")
    assert len(code) == 6
    namespace = {}
    for block in code:
        exec(compile(block, "README.md", "exec"), namespace)
    assert (workplace / "result.png").is_file()
    assert namespace["outputs"].class_queries_logits.shape == (1, 100, 4)


@pytest.mark.slow
def test_commands_run(workplace):
    lines = [line.split("#")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    commands = [line for line in lines if line.startswith("maskformer ")]
    assert len(commands) == 6
    for command in commands:
        result = CliRunner().invoke(app, shlex.split(command)[1:])
        assert result.exit_code == 0, f"{command}\n{result.output}"
    assert (workplace / "result.png").is_file()
    assert len(list((workplace / "predictions").glob("*.png"))) == len(
        [path for path in (ROOT / "examples").iterdir() if path.suffix in (".jpg", ".webp")]
    )


def test_targets_of_make_exist():
    lines = [line.split("#")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    targets = [line.removeprefix("make ") for line in lines if line.startswith("make ")]
    targets += re.findall(r"`make (\w+)`", README)
    assert {"demo", "test", "quick", "lint", "types", "format"} == set(targets)
    for target in targets:
        subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)


def test_files_and_tests_that_are_named_exist():
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    paths = re.findall(r"`((?:src|tests|examples|recipes|benchmarks)/[\w./]*)(?:::(\w+))?`", README)
    assert len(links) >= 5
    assert len(paths) >= 12
    for path, test in [*((link, "") for link in links), *paths]:
        assert (ROOT / path).exists(), path
        if test:
            source = (ROOT / path).read_text(encoding="utf-8")
            assert re.search(rf"^\s*def {test}\(", source, flags=re.MULTILINE), f"{path}::{test}"
