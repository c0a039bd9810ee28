"""A full disk: one message, and the checkpoint from before stays whole."""

import errno
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from maskformer_hf.cli import main
from maskformer_hf.training import DiskFullError, train
from maskformer_hf.training.checkpointing import numbered_folders


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 3 MiB that can be made larger; a checkpoint of the tiny model takes 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if mount is None or os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    command = [mount, "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no disk may be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_up(recipe, small_disk, tmp_path):
    settings = ["steps=10", "data.validation=null"]
    whole = train(recipe, settings, output_dir=tmp_path / "whole")
    run = small_disk / "run"
    message = r"step \d+: the disk of .*run is full .* free .*make room\. The last good checkpoint is .*checkpoint-0000"
    with pytest.raises(DiskFullError, match=message):
        train(recipe, settings, output_dir=run)
    assert numbered_folders(run, "checkpoint-")
    assert not list(run.glob(".incomplete*"))
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    resumed = train(recipe, settings, resume=True, output_dir=run)
    weights, others = (load_file(folder / "model.safetensors") for folder in (whole, resumed))
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def torch_error(path: Path):
    """What torch.save raises on a full disk, which does not mention it."""
    raise RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 576 vs 534")


def system_error(path: Path):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


@pytest.mark.parametrize("error", [torch_error, system_error])
def test_a_save_that_fails_in_the_middle(recipe, tmp_path, error, capsys):
    save = torch.save

    def save_in_part(state, file, *arguments, **options):
        if "checkpoint-000004" in str(file) and "optimizer" not in str(file):
            Path(file).write_bytes(b"the beginning")
            error(Path(file))
        save(state, file, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "save", save_in_part)
        patch.setattr("sys.argv", ["maskformer", "train", str(recipe)])
        with pytest.raises(SystemExit) as end:
            main()
    assert end.value.code == 1
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("maskformer: ")]
    assert line.startswith(f"maskformer: step 4: the disk of {tmp_path / 'run'} is full (")
    assert line.endswith("checkpoint-000002, from which the same command with --resume goes on")
    assert [path.name for path in numbered_folders(tmp_path / "run", "checkpoint-")] == ["checkpoint-000002"]
    assert not list((tmp_path / "run").glob(".incomplete*"))
    train(recipe, resume=True)


def test_other_failures_to_write_keep_their_own_words(recipe, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("maskformer_hf.training.loop.save_checkpoint", lambda *_: (tmp_path / "no" / "file").touch())
        with pytest.raises(FileNotFoundError):
            train(recipe)
