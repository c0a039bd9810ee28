"""The `maskformer` command as a whole: version, help, and how it starts."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import maskformer_hf
from maskformer_hf.cli.export import FormatChoice
from maskformer_hf.cli.options import TaskChoice
from maskformer_hf.export import FORMAT_SUFFIXES
from maskformer_hf.inference.plans import plan_names
from maskformer_hf.models.result_options import TASKS


def test_version(run):
    assert run("--version").stdout.split() == ["maskformer-hf", maskformer_hf.__version__]


def test_help_names_every_command_and_gives_examples(run):
    for command in ("segment", "train", "evaluate"):
        assert command in run("--help").stdout
        assert f"maskformer {command}" in run(command, "--help").stdout.split("Examples:")[1]


def test_choices_are_those_of_the_package(run):
    """They are written out where importing the tables would import torch."""
    assert [*TaskChoice] == [*TASKS]
    assert [*FormatChoice] == [*FORMAT_SUFFIXES]
    described = re.search(r"How the model sees a photo: (.*?)\.", " ".join(run("segment", "--help").stdout.split()))
    assert described
    assert described[1].split(" or ") == [*plan_names()]


SCRIPT = str(Path(sys.executable).with_name("maskformer"))
STARTS = {
    "script": [SCRIPT],
    "module": [sys.executable, "-m", "maskformer_hf"],
    "options of Python before the module": [sys.executable, "-u", "-W", "ignore", "-m", "maskformer_hf"],
}


@pytest.mark.parametrize("start", STARTS)
def test_help_does_not_wait_for_torch(start):
    command = STARTS[start]
    environment = {**os.environ, "PYTHONPROFILEIMPORTTIME": "1"}
    result = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True, env=environment)
    assert "segment" in result.stdout
    imported = {line.rsplit("|", 1)[-1].strip() for line in result.stderr.splitlines()}
    assert "maskformer_hf.cli" in imported
    assert not imported & {"torch", "transformers", "numpy", "PIL"}


@pytest.mark.slow
def test_other_programs_register_the_models(tmp_path):
    """Also one that has the name of our script, or arguments like those of our module."""
    program = tmp_path / "maskformer"
    program.write_text("import maskformer_hf, sys\nassert 'maskformer_hf.models.modeling_maskformer' in sys.modules\n")
    subprocess.run([sys.executable, program, "-m", "maskformer_hf"], check=True)


@pytest.mark.slow
def test_the_installed_script_segments(tiny_checkpoint, photo_paths, tmp_path):
    result = subprocess.run(
        [SCRIPT, "segment", photo_paths[0], "--checkpoint", tiny_checkpoint, "--output", "out.png"],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "score" in result.stdout
    assert (tmp_path / "out.png").is_file()
