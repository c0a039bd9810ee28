"""Mask2Former-VIS (https://arxiv.org/abs/2112.10764): Mask2Former on clips, where a query is an object in all frames.

Backbone and pixel decoder see one frame at a time; queries attend to all frames at once, each within its tube, which is
its mask in every frame. So an object keeps its query, and nothing has to be tracked.
"""

from .configuration_video import MaskFormerHfVideoConfig
from .modeling_maskformer import MaskFormerHfForUniversalSegmentation, MaskFormerHfModel
from .modeling_outputs import MaskFormerHfForVideoSegmentationOutput


class MaskFormerHfVideoModel(MaskFormerHfModel):
    """Backbone, pixel decoder and transformer decoder for clips (B, T, C, H, W), without the heads."""

    config_class = MaskFormerHfVideoConfig
    input_modalities = ("video",)  # pyrefly: ignore[bad-assignment]


class MaskFormerHfForVideoSegmentation(MaskFormerHfForUniversalSegmentation):
    """Mask2Former-VIS with its heads: the classes of objects, and their masks in all frames of a clip.

    The arguments of a forward are those of [`MaskFormerHfForUniversalSegmentation`], with clips in place of images:
    `pixel_values` (B, T, C, H, W), `pixel_mask` and `void_masks` (B, T, H, W), and `mask_labels` (N_i, T, H, W) of each
    clip. An object that is out of sight has no pixel in that frame, but at least one in some frame. `class_labels`
    (N_i,) has one class an object, not one a frame.

    A clip of one frame gives what Mask2Former makes of that image: the encoding of time is then one constant on all
    keys, which no softmax over them sees.
    """

    config_class = MaskFormerHfVideoConfig
    base_model_class = MaskFormerHfVideoModel
    output_class = MaskFormerHfForVideoSegmentationOutput
    input_modalities = ("video",)  # pyrefly: ignore[bad-assignment]


__all__ = ["MaskFormerHfForVideoSegmentation", "MaskFormerHfVideoModel"]
