"""timm's backbones whose branches in training are one convolution afterwards, such as RepViT and FastViT."""

from typing import Any

from .folding import fold_batch_norms, unfold_batch_norms


def reparameterise(model: Any) -> bool:
    """Merge the branches of a timm backbone in place, and say whether there were any.

    The same numbers but for rounding, of fewer layers. They have other names, so the model cannot be trained or saved
    any more as what it was: this is for exported files and measurements.

    Args:
        model: In evaluation mode.
    """
    base: Any = model.base_model
    body: Any = base.backbone.body
    if getattr(body, "_backbone", None) is None:
        return False
    from timm.utils import reparameterize_model

    before = [name for name, _ in body.named_modules()]
    unfold_batch_norms(body)
    body._backbone = reparameterize_model(body._backbone, inplace=True)
    after = [name for name, _ in body.named_modules()]
    fold_batch_norms(model)
    return after != before
