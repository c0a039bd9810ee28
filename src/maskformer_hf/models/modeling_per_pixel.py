"""The paper's per-pixel baselines on the parts of MaskFormer (https://arxiv.org/abs/2107.06278, section 4.1).

PerPixelBaseline classifies the pixel embeddings. PerPixelBaseline+ has MaskFormer's transformer decoder, but one query
a class, and its mask logits are the class logits: no matching, no class head, no sigmoid.
"""

from collections.abc import Sequence
from typing import Any

import torch

from .configuration_per_pixel import MaskFormerHfPerPixelConfig
from .criterion_per_pixel import check_labels, full_size, labels_from_masks, per_pixel_loss
from .modeling_maskformer import MaskFormerHfModel, default, image_sizes_of, size_rows
from .modeling_outputs import MaskFormerHfForSemanticSegmentationOutput
from .modeling_pretrained import MaskFormerHfPreTrainedModel
from .pixel_heads import PixelHead, QueryPixelHead
from .targets import make_targets


class MaskFormerHfPerPixelBaseline(MaskFormerHfPreTrainedModel):
    """PerPixelBaseline, and with `transformer_decoder="detr"` in its configuration PerPixelBaseline+."""

    config_class = MaskFormerHfPerPixelConfig

    def __init__(self, config: MaskFormerHfPerPixelConfig):
        super().__init__(config)
        num_labels: Any = config.num_labels
        # The labels may have been set after the configuration was made.
        config.num_queries = num_labels
        self.model = MaskFormerHfModel(config)
        self.head: Any = (
            PixelHead(config.mask_feature_size, num_labels)
            if config.transformer_decoder is None
            else QueryPixelHead(config.hidden_size, config.mask_feature_size)
        )
        self.post_init()

    def _change_classes(self, rows: Sequence[int | None], config: Any) -> str:
        if self.model.transformer_decoder is None:
            self.head.change_classes(rows)
        else:
            self.model.transformer_decoder.change_queries(rows)
        self.config.num_queries = len(rows)
        return ""

    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        mask_labels: Sequence[torch.Tensor] | None = None,
        class_labels: Sequence[torch.Tensor] | None = None,
        pixel_mask: torch.Tensor | None = None,
        output_auxiliary_logits: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> MaskFormerHfForSemanticSegmentationOutput | tuple:
        """
        Args:
            pixel_values: Normalised images (B, C, H, W), padded with zeros on the right and below.
            labels: Class of each pixel (B, H, W), int64; `config.semantic_loss_ignore_index`, 255 by default, where it
                is void, as in the padding. Asks for the loss.
            mask_labels, class_labels: MaskFormer's targets in place of `labels`: binary masks (N_i, H, W) of each image
                and their classes (N_i,), int64. Later masks are drawn over earlier ones; pixels in no mask are void.
            pixel_mask: (B, H, W), nonzero at pixels that are no padding. It changes no prediction, only `image_sizes`.
            output_auxiliary_logits: Return the predictions of every decoder layer.
        """
        labels = self._labels(pixel_values, labels, mask_labels, class_labels)
        supervise = labels is not None and self.config.use_auxiliary_loss
        every_layer = supervise or output_auxiliary_logits
        ask = self.model.ask(pixel_values, every_layer, output_hidden_states, output_attentions, self.progress)
        encoded = self.model.encode(pixel_values, ask)
        decoded = self.model.decode(encoded, ask)
        logits_LBKhw = self.head(decoded, encoded, ask)
        loss = loss_dict = None
        if labels is not None:
            supervised = logits_LBKhw if supervise else logits_LBKhw[-1:]
            loss, loss_dict = per_pixel_loss(supervised, labels, self.config.semantic_loss_ignore_index, self.stride)
        size = full_size(logits_LBKhw.shape[-2:], pixel_values.shape[-2:], self.stride)
        output = MaskFormerHfForSemanticSegmentationOutput(
            loss=loss,
            loss_dict=loss_dict,
            logits=logits_LBKhw[-1],
            auxiliary_logits=tuple(logits_LBKhw[:-1]) if output_auxiliary_logits else None,
            image_sizes=image_sizes_of(pixel_values, pixel_mask, ask),
            padded_sizes=size_rows(pixel_values, size),
            **self.model.hidden_states(encoded, decoded, ask),
        )
        return output if default(return_dict, self.config.return_dict) else output.to_tuple()

    @property
    def stride(self) -> int:
        """Input pixels from one of the logits to the next."""
        return self.model.backbone.facts.strides[0]

    def _labels(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None,
        mask_labels: Sequence[torch.Tensor] | None,
        class_labels: Sequence[torch.Tensor] | None,
    ) -> torch.Tensor | None:
        """The class of each pixel (B, H, W), whichever way it was given."""
        num_labels: Any = self.config.num_labels
        ignore_index = self.config.semantic_loss_ignore_index
        targets = make_targets(mask_labels, class_labels, pixel_values, num_labels)
        if targets is not None:
            if labels is not None:
                raise ValueError("`labels` and `mask_labels` are two forms of the same targets: give one of them.")
            return labels_from_masks(targets.masks, targets.labels, ignore_index)
        if labels is not None:
            expected = (len(pixel_values), *pixel_values.shape[-2:])
            if tuple(labels.shape) != expected:
                raise ValueError(
                    f"`labels` must have shape {expected}, one class a pixel of `pixel_values`, got "
                    f"{tuple(labels.shape)}: pad them with {ignore_index} on the right and below."
                )
            check_labels(labels, num_labels, ignore_index)
        return labels


__all__ = ["MaskFormerHfPerPixelBaseline"]
