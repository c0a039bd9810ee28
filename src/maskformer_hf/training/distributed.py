"""What several processes need: weights sharded by FSDP, and the model in one piece again."""

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor


def is_sharded(accelerator: Accelerator) -> bool:
    return accelerator.distributed_type == DistributedType.FSDP


def prepare_sharding(accelerator: Accelerator, model: Any) -> None:
    """Completes the FSDP settings of Accelerate; call before `accelerator.prepare`.

    Raises ValueError for FSDP version 1, which joins parameters that belong to different groups of the optimizer.
    """
    if not is_sharded(accelerator):
        return
    if not accelerator.is_fsdp2:
        raise ValueError("FSDP version 1 was asked for; pass --fsdp_version 2 to accelerate launch")
    plugin: Any = accelerator.state.fsdp_plugin
    # Accelerate would send the first process's model, but not its buffers. Every process has built the same model.
    plugin.cpu_ram_efficient_loading = False
    # Mixed precision is left to autocast, as without sharding, so that losses and float32_modules keep float32.
    plugin.mixed_precision_policy = None
    if plugin.transformer_cls_names_to_wrap is None:
        # Accelerate raises an error for classes of which the model has no layer.
        present = {type(module).__name__ for module in model.modules()}
        plugin.transformer_cls_names_to_wrap = [name for name in model._no_split_modules or () if name in present]


def whole_model(accelerator: Accelerator, model: Any, model_class: type) -> Any:
    """The model as it was before `accelerator.prepare`, the same on every process; call on every process.

    Sharded weights are collected into a copy of class `model_class`, so that each process may run images of its own
    without the others taking part. Without sharding it is the model itself, not a copy.
    """
    whole = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    if is_sharded(accelerator):
        state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
        whole = model_class(whole.config).to(accelerator.device)
        whole.load_state_dict(state)
    if accelerator.num_processes > 1:
        # BatchNorm that is not frozen has statistics of each process's own images. Those of the first one are taken.
        for buffer in whole.buffers():
            buffer.copy_(broadcast(buffer))
    return whole


def load_checkpoint(accelerator: Accelerator, folder: Path) -> None:
    """Goes on from a checkpoint. Raises ValueError if only one of checkpoint and training is sharded."""
    was_sharded = any(folder.glob("pytorch_model_fsdp*"))
    if was_sharded != is_sharded(accelerator):
        how = "with" if was_sharded else "without"
        raise ValueError(f"{folder} was written {how} FSDP; to go on, start accelerate launch {how} --use_fsdp")
    accelerator.load_state(str(folder))


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """This process's part of a sharded tensor, in the same memory; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def all_of(tensor: torch.Tensor) -> torch.Tensor:
    """A sharded tensor in one piece; call on every process."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
