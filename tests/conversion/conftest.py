"""Models as the original would have saved them."""

from collections.abc import Callable

import pytest
import torch

from maskformer_hf.conversion.detectron2_names import tensor_names


@pytest.fixture(scope="session")
def original_state() -> Callable[..., dict[str, torch.Tensor]]:
    """The state dict of a model of ours in the original's names and layouts."""

    def make(model) -> dict[str, torch.Tensor]:
        own, state = model.state_dict(), {}
        for name, target in tensor_names(model.config).items():
            state[name] = own[target] if isinstance(target, str) else torch.cat([own[part] for part in target])
        if "backbone.absolute_pos_embed" in state:
            positions = state["backbone.absolute_pos_embed"].transpose(1, 2)
            side = round(positions.shape[-1] ** 0.5)
            state["backbone.absolute_pos_embed"] = positions.unflatten(2, (side, side))
        return state

    return make
