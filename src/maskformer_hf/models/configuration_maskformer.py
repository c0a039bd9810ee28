"""Which parts a model of the family is made of, and how big they are.

Defaults are those of MaskFormer (https://arxiv.org/abs/2107.06278) with a ResNet-50 backbone. Parts are chosen by
string. Combinations that cannot be built are refused here, by name and value, before any memory is spent on weights.
"""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

PIXEL_DECODERS = ("fpn", "transformer_fpn")
TRANSFORMER_DECODERS = ("detr",)
MASK_LOSSES = ("dense", "points")
TASKS = ("semantic", "instance", "panoptic")

# The pixel decoders normalise with GroupNorm(32), whatever their width.
NUM_NORM_GROUPS = 32
# A feature pyramid from stride 4 to stride 32.
NUM_FEATURE_LEVELS = 4


@strict
class MaskFormerHfConfig(PreTrainedConfig):
    r"""Configuration of every model of the family.

    Args:
        backbone_config: A transformers backbone configuration or its dictionary (`resnet`, `swin`, `convnext`,
            `timm_backbone`, ...); ResNet-50 if not given. Unless it names several output features, its last four
            stages are used. A `resnet` one also understands `stem_type="deep"` (three 3x3 convolutions in place of
            the 7x7 one) and `multi_grid=[1, 2, 4]` (dilations of the last stage), which together make the paper's
            R50c and R101c.
        num_channels: Channels of the input images.
        freeze_batch_norm: BatchNorm of the backbone keeps its statistics and its affine terms are no parameters, as
            in the paper for every ResNet. Statistics of the small batches of segmentation training cost accuracy.
        pixel_decoder: `"fpn"`, or `"transformer_fpn"` with a transformer encoder on the last level ("+6 Enc").
        feature_size: Width C of the pixel decoder, a multiple of 32.
        mask_feature_size: Width of pixel embeddings and mask embeddings.
        encoder_layers: Transformer encoder layers of `pixel_decoder="transformer_fpn"`.
        transformer_decoder: `"detr"`.
        hidden_size, num_attention_heads, ffn_dim, dropout: Sizes of every transformer layer.
        decoder_layers: Transformer decoder layers L.
        decoder_encoder_layers: Encoder layers in front of the decoder, inside the query module. 0 in every released
            model.
        pre_norm: LayerNorm in front of attention and feed-forward network in place of behind.
        enforce_input_projection: Project the decoder's memory even where its width is already `hidden_size`.
        num_queries: Queries Q; the largest number of segments of one image.
        use_auxiliary_loss: Deep supervision: every decoder layer is trained.
        class_weight, mask_weight, dice_weight: Weights of the loss terms and of the matching costs.
        no_object_weight: Weight of the no-object class in the cross-entropy.
        mask_loss: `"dense"`, every pixel as in the paper, or `"points"`, `num_points` pixels a mask of which
            `importance_sample_ratio` are the most uncertain of `oversample_ratio` times as many random ones (PointRend,
            as in Mask2Former): a fraction of the memory.
        task: What the checkpoint was trained for; the default of `predict` and of the pipeline.
        label_ids_to_fuse: Stuff classes, whose segments are one in a panoptic result.
        object_mask_threshold, overlap_mask_area_threshold: Inference thresholds of the panoptic result; 0.8 and 0.8
            for COCO, 0.7 and 0.8 for ADE20K.
    """

    model_type = "maskformer_hf"
    sub_configs = {"backbone_config": AutoConfig}  # noqa: RUF012 (the field's own idiom in PreTrainedConfig)

    backbone_config: dict | PreTrainedConfig | None = None
    num_channels: int = 3
    freeze_batch_norm: bool = True

    pixel_decoder: str = "fpn"
    feature_size: int = 256
    mask_feature_size: int = 256
    encoder_layers: int = 6

    transformer_decoder: str = "detr"
    hidden_size: int = 256
    num_attention_heads: int = 8
    ffn_dim: int = 2048
    dropout: float | int = 0.1
    decoder_layers: int = 6
    decoder_encoder_layers: int = 0
    pre_norm: bool = False
    enforce_input_projection: bool = False
    num_queries: int = 100

    use_auxiliary_loss: bool = True
    class_weight: float | int = 1.0
    mask_weight: float | int = 20.0
    dice_weight: float | int = 1.0
    no_object_weight: float | int = 0.1
    mask_loss: str = "dense"
    num_points: int = 112 * 112
    oversample_ratio: float | int = 3.0
    importance_sample_ratio: float | int = 0.75

    task: str = "panoptic"
    label_ids_to_fuse: list[int] | tuple[int, ...] | None = None
    object_mask_threshold: float | int = 0.8
    overlap_mask_area_threshold: float | int = 0.8

    def __post_init__(self, **kwargs):
        self.backbone_config = _complete_backbone_config(self.backbone_config, self.num_channels)
        super().__post_init__(**kwargs)

    def validate_parts(self):
        """Refuse what cannot be built. Runs when the configuration is made and before it is saved."""
        _check_choice("pixel_decoder", self.pixel_decoder, PIXEL_DECODERS)
        _check_choice("transformer_decoder", self.transformer_decoder, TRANSFORMER_DECODERS)
        _check_choice("mask_loss", self.mask_loss, MASK_LOSSES)
        _check_choice("task", self.task, TASKS)
        for name in ("num_channels", "mask_feature_size", "decoder_layers", "num_queries", "num_points"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.feature_size < 1 or self.feature_size % NUM_NORM_GROUPS:
            raise ValueError(
                f"`feature_size` must be a multiple of {NUM_NORM_GROUPS} (GroupNorm groups), got {self.feature_size}."
            )
        widths = {"hidden_size": self.hidden_size}
        if self.pixel_decoder == "transformer_fpn":
            widths["feature_size"] = self.feature_size
        for name, width in widths.items():
            # The sine position encoding spends a half of the channels on each axis, in pairs of sine and cosine.
            if width % 4 or width % self.num_attention_heads:
                raise ValueError(
                    f"`{name}` must be a multiple of 4 and of `num_attention_heads`={self.num_attention_heads}, "
                    f"got {width}."
                )
        if not 0 <= self.importance_sample_ratio <= 1 or self.oversample_ratio < 1:
            raise ValueError(
                "`importance_sample_ratio` must lie in [0, 1] and `oversample_ratio` be at least 1, got "
                f"{self.importance_sample_ratio} and {self.oversample_ratio}."
            )
        out_of_range = [i for i in self.label_ids_to_fuse or () if not 0 <= i < self.num_labels]
        if out_of_range:
            raise ValueError(f"`label_ids_to_fuse` holds {out_of_range}, but there are {self.num_labels} labels.")


def _check_choice(name: str, value: str, choices: tuple[str, ...]):
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {list(choices)}, got {value!r}.")


def _complete_backbone_config(backbone_config: Any, num_channels: int) -> PreTrainedConfig:
    """The configuration object of the backbone, with four output features and the model's number of channels."""
    if backbone_config is None:
        backbone_config = {"model_type": "resnet"}
    if isinstance(backbone_config, dict):
        backbone_config = dict(backbone_config)
        model_type = backbone_config.pop("model_type", None)
        if model_type not in CONFIG_MAPPING:
            raise ValueError(
                f"`backbone_config` needs a `model_type` that transformers knows, such as 'resnet', 'swin' or "
                f"'timm_backbone'; got {model_type!r}."
            )
        backbone_config = CONFIG_MAPPING[model_type](**backbone_config)
    backbone_config.num_channels = num_channels
    if len(backbone_config.out_indices or ()) > 1:
        return backbone_config
    if backbone_config.model_type == "timm_backbone":
        backbone_config.out_indices = list(range(-NUM_FEATURE_LEVELS, 0))
        return backbone_config
    stage_names = [name for name in backbone_config.stage_names if name != "stem"]
    if len(stage_names) < NUM_FEATURE_LEVELS:
        raise ValueError(
            f"A {backbone_config.model_type!r} backbone with {len(stage_names)} stages has too few: the pixel decoder "
            f"needs {NUM_FEATURE_LEVELS} feature maps, at strides 4, 8, 16 and 32."
        )
    backbone_config.out_features = stage_names[-NUM_FEATURE_LEVELS:]
    return backbone_config
