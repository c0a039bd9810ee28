"""Mask2Former-VIS (https://arxiv.org/abs/2112.10764): Mask2Former on clips, where a query is an object in all frames.

Backbone and pixel decoder see one frame at a time; queries attend to all frames at once, each within its tube, which is
its mask in every frame. So an object keeps its query, and nothing has to be tracked.
"""

from collections.abc import Sequence
from typing import Any

import torch

from .configuration_video import MaskFormerHfVideoConfig
from .modeling_maskformer import MaskFormerHfForUniversalSegmentation, MaskFormerHfModel, default
from .modeling_outputs import MaskFormerHfForVideoSegmentationOutput, MaskFormerHfModelOutput

# Outputs that backbone and pixel decoder make of single frames.
FRAME_OUTPUTS = (
    "pixel_decoder_last_hidden_state",
    "encoder_last_hidden_state",
    "encoder_hidden_states",
    "pixel_decoder_hidden_states",
    "encoder_attentions",
)


class MaskFormerHfVideoModel(MaskFormerHfModel):
    """Backbone, pixel decoder and transformer decoder for clips, without the heads."""

    config_class = MaskFormerHfVideoConfig
    input_modalities = ("video",)  # pyrefly: ignore[bad-assignment]

    def forward(
        self,
        pixel_values: torch.Tensor,
        pixel_mask: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        every_layer: bool = False,
        num_frames: int | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> MaskFormerHfModelOutput | tuple:
        """As [`MaskFormerHfModel`], of clips (B, T, C, H, W), which say `num_frames` themselves."""
        if pixel_values.dim() != 5 or pixel_values.shape[2] != self.config.num_channels:
            raise ValueError(
                f"`pixel_values` must have shape (batch, frames, {self.config.num_channels}, height, width), got "
                f"{tuple(pixel_values.shape)}."
            )
        clips_and_frames = pixel_values.shape[:2]
        output: Any = super().forward(
            pixel_values.flatten(0, 1),
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            every_layer=every_layer,
            num_frames=clips_and_frames[1],
            return_dict=True,
        )
        for name in FRAME_OUTPUTS:
            value = output.get(name)
            if isinstance(value, torch.Tensor):
                output[name] = value.unflatten(0, clips_and_frames)
            elif value is not None:
                output[name] = tuple(frames.unflatten(0, clips_and_frames) for frames in value)
        return output if default(return_dict, self.config.return_dict) else output.to_tuple()


class MaskFormerHfForVideoSegmentation(MaskFormerHfForUniversalSegmentation):
    """Mask2Former-VIS with its heads: the classes of objects, and their masks in all frames of a clip.

    Of one frame it makes what Mask2Former makes of an image: the encoding of time is then one constant on all keys,
    which no softmax over them sees.
    """

    config_class = MaskFormerHfVideoConfig
    base_model_class = MaskFormerHfVideoModel
    output_class = MaskFormerHfForVideoSegmentationOutput
    input_modalities = ("video",)  # pyrefly: ignore[bad-assignment]

    def forward(
        self,
        pixel_values: torch.Tensor,
        mask_labels: Sequence[torch.Tensor] | None = None,
        class_labels: Sequence[torch.Tensor] | None = None,
        pixel_mask: torch.Tensor | None = None,
        void_masks: torch.Tensor | None = None,
        output_auxiliary_logits: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> MaskFormerHfForVideoSegmentationOutput | tuple:
        """
        Args:
            pixel_values: Clips of normalised frames (B, T, C, H, W), padded with zeros on the right and below.
            mask_labels: Binary masks (N_i, T, H, W) of each clip, padded with zeros; asks for the loss. An object that
                is out of sight has no pixel in that frame, but at least one in some frame.
            class_labels: Classes (N_i,) of each clip, int64: one of an object, not one a frame.
            pixel_mask: (B, T, H, W), nonzero at pixels that are no padding. It changes no prediction, only
                `image_sizes`: the frames of a clip have one size.
            void_masks: (B, T, H, W) bool, true at pixels that matching and mask losses leave out.
            output_auxiliary_logits: Return the predictions of every decoder layer.
        """
        for clip, masks in enumerate(mask_labels or ()):
            if masks.dim() != 4 or masks.shape[1] != pixel_values.shape[1]:
                raise ValueError(
                    f"Masks of clip {clip} of the batch have shape {tuple(masks.shape)}: (objects, frames, height, "
                    f"width) is expected, with the {pixel_values.shape[1]} frames of `pixel_values`."
                )
        output: Any = super().forward(
            pixel_values,
            mask_labels=mask_labels,
            class_labels=class_labels,
            pixel_mask=None if pixel_mask is None else pixel_mask.bool().any(1),
            void_masks=void_masks,
            output_auxiliary_logits=output_auxiliary_logits,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=return_dict,
        )
        return output


__all__ = ["MaskFormerHfForVideoSegmentation", "MaskFormerHfVideoModel"]
