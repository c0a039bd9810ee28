"""Configuration of the paper's per-pixel baselines (https://arxiv.org/abs/2107.06278, section 4.1)."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict

from .configuration_maskformer import MaskFormerHfConfig


@strict
class MaskFormerHfPerPixelConfig(MaskFormerHfConfig):
    r"""Configuration of PerPixelBaseline and PerPixelBaseline+: backbone, pixel decoder and transformer decoder of
    [`MaskFormerHfConfig`].

    What belongs to the classes and masks of queries means nothing here: the weights of the loss terms, `mask_loss`, the
    panoptic thresholds and `label_ids_to_fuse`. `num_queries` is the number of labels, whatever is given.

    Args:
        transformer_decoder: None, PerPixelBaseline, which classifies pixel embeddings; or `"detr"`, PerPixelBaseline+,
            with one query a class.
        task: `"semantic"`, the only one.
        semantic_loss_ignore_index: Value of pixels in `labels` that are void.
    """

    model_type = "maskformer_hf_per_pixel"
    is_per_pixel: ClassVar[bool] = True
    tasks: ClassVar[tuple[str, ...]] = ("semantic",)
    optional_parts: ClassVar[tuple[str, ...]] = ("transformer_decoder", "query_relations", "query_source", "criterion")
    reads_transformers_layout = False

    transformer_decoder: str | None = None
    task: str = "semantic"
    semantic_loss_ignore_index: int = 255

    def __post_init__(self, **kwargs: Any):
        super().__post_init__(**kwargs)
        num_labels: Any = self.num_labels
        self.num_queries = num_labels

    def validate_parts(self):
        super().validate_parts()
        if self.transformer_decoder is None and self.inference_layers is not None:
            raise ValueError(
                f"There is no transformer decoder to stop early: `inference_layers` must be None, got "
                f"{self.inference_layers}."
            )
        if self.encoder_exits is not None:
            raise ValueError(
                f"A per-pixel baseline trains no earlier exits: `encoder_exits` must be None, got {self.encoder_exits}."
            )
        num_labels: Any = self.num_labels
        if 0 <= self.semantic_loss_ignore_index < num_labels:
            raise ValueError(
                f"`semantic_loss_ignore_index`={self.semantic_loss_ignore_index} is one of the {num_labels} labels: "
                "choose a value that is not a label, such as 65535, and give it to void pixels."
            )


__all__ = ["MaskFormerHfPerPixelConfig"]
