"""What many processes ask of the loop: weights sharded by FSDP, and the model in one piece again."""

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
    """Completes what Accelerate was told about FSDP; call before `accelerator.prepare`.

    Raises ValueError for FSDP version 1, which joins parameters that belong to different groups of the optimizer.
    """
    if not is_sharded(accelerator):
        return
    if not accelerator.is_fsdp2:
        raise ValueError("FSDP version 1 was asked for; pass --fsdp_version 2 to accelerate launch")
    plugin: Any = accelerator.state.fsdp_plugin
    # Every process has built the same model. Accelerate's way of sending the first one's knows no buffers.
    plugin.cpu_ram_efficient_loading = False
    # Autocast alone does mixed precision, as without sharding: float32 stays where the losses and the recipe want it.
    plugin.mixed_precision_policy = None
    if plugin.transformer_cls_names_to_wrap is None:
        # Accelerate takes a class that this configuration has no layer of for an error.
        present = {type(module).__name__ for module in model.modules()}
        plugin.transformer_cls_names_to_wrap = [name for name in model._no_split_modules or () if name in present]


def whole_model(accelerator: Accelerator, model: Any, model_class: type) -> Any:
    """The model as it was before `accelerator.prepare`, the same on every process; call on every process.

    Sharded weights are collected into a copy, of `model_class`: each process may then run images of its own without the
    others taking part. Otherwise it is the very model.
    """
    whole = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    if is_sharded(accelerator):
        state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
        whole = model_class(whole.config).to(accelerator.device)
        whole.load_state_dict(state)
    if accelerator.num_processes > 1:
        # Statistics of BatchNorm, where it is not frozen, are those of each process's own images.
        for buffer in whole.buffers():
            buffer.copy_(broadcast(buffer))
    return whole


def load_checkpoint(accelerator: Accelerator, folder: Path) -> None:
    """Raises ValueError where one of training and checkpoint is sharded and the other is not."""
    was_sharded = any(folder.glob("pytorch_model_fsdp*"))
    if was_sharded != is_sharded(accelerator):
        how = "with" if was_sharded else "without"
        raise ValueError(f"{folder} was written {how} FSDP; to go on, start accelerate launch {how} --use_fsdp")
    accelerator.load_state(str(folder))


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """This process's part of a sharded tensor, in the same memory; another tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def all_of(tensor: torch.Tensor) -> torch.Tensor:
    """A sharded tensor in one piece; call on every process."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
