"""Whatever ends a run, `--resume` goes on from the last whole checkpoint as if nothing had happened."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from maskformer_hf.training import TrainingDivergedError, loop, train
from maskformer_hf.training.checkpointing import numbered_folders
from maskformer_hf.training.failures import check_finite

KILLED_IN_A_SAVE = """
import os, signal, sys
import torch
from maskformer_hf.training import train

save = torch.save
written = []

def save_in_part(state, file, *arguments, **options):
    # Of the second checkpoint: weights and optimizer are there, half of this file, and none of the others.
    if "checkpoint-000004" in str(file) and written:
        save(state, file, *arguments, **options)
        os.truncate(file, os.path.getsize(file) // 2)
        os.kill(os.getpid(), signal.SIGKILL)
    written.extend(["once"] * ("checkpoint-000004" in str(file)))
    save(state, file, *arguments, **options)

torch.save = save_in_part
train(sys.argv[1], resume=True, output_dir=sys.argv[2])
"""

KILLED_IN_A_STEP = """
import os, signal, sys
import torch
from maskformer_hf.training import train

updates = []
step = torch.optim.AdamW.step

def update_and_die(self, *arguments, **options):
    step(self, *arguments, **options)
    updates.append(1)
    if len(updates) == 3:
        os.kill(os.getpid(), signal.SIGKILL)

torch.optim.AdamW.step = update_and_die
train(sys.argv[1], resume=True, output_dir=sys.argv[2])
"""


def losses(folder: Path) -> dict[int, float]:
    """The last loss logged for each step."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def assert_same_weights(first: Path, second: Path):
    weights, others = (load_file(folder / "model" / "model.safetensors") for folder in (first, second))
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)


@pytest.mark.slow
def test_killed_in_a_save_and_then_in_a_step(recipe, tmp_path):
    """SIGKILL, so that nothing of ours can run any more; what is resumed equals, bit for bit, what was never killed."""
    train(recipe, output_dir=tmp_path / "whole")
    killed = tmp_path / "killed"
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    left = {}
    for code in (KILLED_IN_A_SAVE, KILLED_IN_A_STEP):
        command = [sys.executable, "-c", code, recipe, killed]
        process = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert process.returncode == -signal.SIGKILL, process.stderr
        left[code] = [path.name for path in sorted(killed.iterdir()) if "checkpoint" in path.name]
    assert left[KILLED_IN_A_SAVE] == [".incomplete-checkpoint-000004", "checkpoint-000002"]
    assert left[KILLED_IN_A_STEP] == ["checkpoint-000002", "checkpoint-000004"]
    train(recipe, resume=True, output_dir=killed)
    assert losses(killed) == losses(tmp_path / "whole")
    assert_same_weights(killed, tmp_path / "whole")
    assert not list(killed.glob(".incomplete*"))


def test_interrupted_by_the_keyboard(recipe, tmp_path, capfd):
    train(recipe, output_dir=tmp_path / "whole")
    step, count = loop.training_step, iter(range(100))

    def interrupt(*arguments):
        if next(count) == 3:
            raise KeyboardInterrupt
        return step(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "training_step", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(recipe)
    run = tmp_path / "run"
    words = f"Stopped in step 4: The last good checkpoint is {run}/checkpoint-000002, from which the same command with"
    assert words in capfd.readouterr().err
    train(recipe, resume=True)
    assert losses(run) == losses(tmp_path / "whole")


def test_weights_that_diverge_are_not_saved(recipe, tmp_path):
    """The update of step 4 makes them so; the loss would tell in step 5, after the checkpoint of step 4."""
    step, count = loop.training_step, iter(range(100))

    def poison(accelerator, model, *arguments):
        terms = step(accelerator, model, *arguments)
        if next(count) == 3:
            with torch.no_grad():
                next(iter(model.parameters())).flatten()[0] = float("inf")
        return terms

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "training_step", poison)
        message = r"step 4: weights are NaN or infinite.*learning_rate.*last good checkpoint is .*checkpoint-000002"
        with pytest.raises(TrainingDivergedError, match=message):
            train(recipe)
    assert [path.name for path in numbered_folders(tmp_path / "run", "checkpoint-")] == ["checkpoint-000002"]
    train(recipe, resume=True)
    assert losses(tmp_path / "run").keys() == set(range(1, 7))


def test_check_finite():
    check_finite([torch.zeros(2), torch.ones(3)])
    for value in (float("nan"), float("-inf")):
        with pytest.raises(FloatingPointError, match="NaN or infinite"):
            check_finite([torch.zeros(2), torch.tensor([1.0, value])])
