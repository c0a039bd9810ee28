"""Runs `maskformer train` several times in one of two processes: `accelerate launch ... two_processes.py jobs.json`.

Each job is {"name", "arguments" of `maskformer`, "fixed_points", "sharded", "stops" after the first checkpoint}; what
it raised, or nothing, is written to `<name>.<rank>.txt` beside the jobs. One start of Python for all of them, because
importing takes longer than training.
"""

import json
import os
import sys
import traceback
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

from maskformer_hf.cli import main
from maskformer_hf.models import assigners, mask_losses
from maskformer_hf.training import loop


def fix_points():
    """The same points for every mask in place of random ones, which no two ways of splitting a batch draw alike."""

    def uniform_points(*size, **options):
        return torch.rand(size[-1], 2, generator=torch.Generator().manual_seed(0)).expand(*size, 2)

    mask_losses.uncertain_points = lambda logits_Nhw, num_points, *_: uniform_points(len(logits_Nhw), num_points)
    assigners.uniform_points = uniform_points


def shard_on_cpu():
    """Accelerate shards on accelerators only, although torch's FSDP2 runs on a CPU as well."""
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap")
    Accelerator()  # whose state the loop's own accelerator shares
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    AcceleratorState._shared_state.update(distributed_type=DistributedType.FSDP, fsdp_plugin=plugin)


def run(job: dict, rank: int, folder: Path):
    random_points, save = (mask_losses.uncertain_points, assigners.uniform_points), loop.save_checkpoint

    def save_and_stop(*arguments):
        save(*arguments)
        raise SystemExit

    problem = ""
    try:
        if job["fixed_points"]:
            fix_points()
        if job["sharded"]:
            shard_on_cpu()
        if job["stops"]:
            loop.save_checkpoint = save_and_stop
        sys.argv = ["maskformer", *job["arguments"]]
        main()
    except SystemExit as end:
        problem = f"exit status {end.code}" if end.code else ""
    except BaseException:
        problem = traceback.format_exc()
    (mask_losses.uncertain_points, assigners.uniform_points), loop.save_checkpoint = random_points, save
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    (folder / f"{job['name']}.{rank}.txt").write_text(problem)


if __name__ == "__main__":
    jobs = Path(sys.argv[1])
    rank = int(os.environ["RANK"])
    for job in json.loads(jobs.read_text()):
        run(job, rank, jobs.parent)
