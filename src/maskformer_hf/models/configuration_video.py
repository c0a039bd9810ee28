"""Configuration of Mask2Former-VIS (https://arxiv.org/abs/2112.10764)."""

from typing import ClassVar

from huggingface_hub.dataclasses import strict

from .configuration_maskformer import MaskFormerHfConfig


@strict
class MaskFormerHfVideoConfig(MaskFormerHfConfig):
    r"""Configuration of Mask2Former-VIS: the fields of [`MaskFormerHfConfig`], with the paper's values.

    The panoptic fields and `label_ids_to_fuse` mean nothing here. Checkpoints of Mask2Former for images, ours and
    transformers', are read as well: they have the same weights, and training on videos starts from them.

    Args:
        transformer_decoder: `"masked"`, which sees several frames at once.
        task: `"instance"`, the only one.
        num_queries: Queries Q; the largest number of objects of one clip.
    """

    model_type = "maskformer_hf_video"
    kind: ClassVar[str] = "clip"
    tasks: ClassVar[tuple[str, ...]] = ("instance",)
    starts_from = ("maskformer_hf",)

    pixel_decoder: str = "deformable"
    encoder_ffn_dim: int | None = 1024
    transformer_decoder: str | None = "masked"
    dropout: float | int = 0.0
    # The original's DEC_LAYERS is 10, because it counts the prediction of the learned queries as well.
    decoder_layers: int = 9
    class_weight: float | int = 2.0
    mask_weight: float | int = 5.0
    dice_weight: float | int = 5.0
    mask_loss: str = "points"
    mask_term: str = "cross_entropy"
    matching: str = "points"
    task: str = "instance"


__all__ = ["MaskFormerHfVideoConfig"]
