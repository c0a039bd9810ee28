"""MaskFormer (https://arxiv.org/abs/2107.06278, figure 2) and Mask2Former assembled from their parts."""

import copy
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init

from .backbone import Backbone, load_pretrained_backbone, pretrained_backbone_config
from .configuration_maskformer import LABEL_FIELDS, MaskFormerHfConfig, matching_labels
from .criterion import Criterion
from .layers import mask_logits
from .modeling_outputs import (
    MaskFormerHfForUniversalSegmentationOutput,
    MaskFormerHfModelOutput,
    TransformerDecoderOutput,
)
from .pixel_decoder_deformable import DeformablePixelDecoder
from .pixel_decoder_fpn import FPNPixelDecoder, TransformerFPNPixelDecoder
from .remote_code import CheckpointMixin
from .segmentation_head import ClassHead, SegmentationHead
from .transformer_decoder_detr import DetrTransformerDecoder
from .transformer_decoder_masked import MaskedTransformerDecoder
from .transformers_layout import IGNORED_WEIGHTS, WEIGHT_NAMES

logger = logging.getLogger(__name__)


def _fpn(config: MaskFormerHfConfig, in_channels: list[int]) -> nn.Module:
    return FPNPixelDecoder(in_channels, config.feature_size, config.mask_feature_size)


def _transformer_fpn(config: MaskFormerHfConfig, in_channels: list[int]) -> nn.Module:
    return TransformerFPNPixelDecoder(
        in_channels,
        config.feature_size,
        config.mask_feature_size,
        num_layers=config.encoder_layers,
        num_heads=config.num_attention_heads,
        ffn_dim=config.encoder_ffn_dim or config.ffn_dim,
        dropout=config.dropout,
        pre_norm=config.pre_norm,
    )


def _deformable(config: MaskFormerHfConfig, in_channels: list[int]) -> nn.Module:
    return DeformablePixelDecoder(
        in_channels,
        config.feature_size,
        config.mask_feature_size,
        num_levels=config.encoder_levels,
        num_layers=config.encoder_layers,
        num_heads=config.num_attention_heads,
        ffn_dim=config.encoder_ffn_dim or config.ffn_dim,
        dropout=config.dropout,
    )


def _detr(config: MaskFormerHfConfig, memory_channels: Sequence[int]) -> nn.Module:
    return DetrTransformerDecoder(
        memory_channels[0],
        config.hidden_size,
        config.num_queries,
        num_layers=config.decoder_layers,
        num_encoder_layers=config.decoder_encoder_layers,
        num_heads=config.num_attention_heads,
        ffn_dim=config.ffn_dim,
        dropout=config.dropout,
        pre_norm=config.pre_norm,
        enforce_input_projection=config.enforce_input_projection,
    )


def _masked(config: MaskFormerHfConfig, memory_channels: Sequence[int]) -> nn.Module:
    return MaskedTransformerDecoder(
        memory_channels,
        config.hidden_size,
        config.mask_feature_size,
        config.num_queries,
        num_layers=config.decoder_layers,
        num_heads=config.num_attention_heads,
        ffn_dim=config.ffn_dim,
        dropout=config.dropout,
        pre_norm=config.pre_norm,
        enforce_input_projection=config.enforce_input_projection,
    )


# The tables of parts: a new part is a file and a line here, and a name in the configuration.
PIXEL_DECODERS = {"fpn": _fpn, "transformer_fpn": _transformer_fpn, "deformable": _deformable}
TRANSFORMER_DECODERS = {"detr": _detr, "masked": _masked}
# By transformer decoder; what is not here has the default.
HEADS: dict[str | None, type[ClassHead]] = {"masked": ClassHead}


class MaskFormerHfPreTrainedModel(CheckpointMixin, PreTrainedModel):
    config_class = MaskFormerHfConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)  # pyrefly: ignore[bad-assignment]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = [  # noqa: RUF012
        "TransformerEncoderLayer",
        "DeformableEncoderLayer",
        "DetrDecoderLayer",
        "MaskedDecoderLayer",
    ]
    # BatchNorm's counter means nothing when its statistics are frozen.
    _keys_to_ignore_on_load_missing = [r"num_batches_tracked"]  # noqa: RUF012
    _keys_to_ignore_on_load_unexpected = [r"num_batches_tracked", *IGNORED_WEIGHTS]  # noqa: RUF012

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Any,
        *model_args: Any,
        config: Any = None,
        key_mapping: dict[str, str] | None = None,
        **kwargs: Any,
    ) -> Any:
        """As in transformers, from our checkpoints and from those of its own MaskFormer and Mask2Former.

        With other labels than the checkpoint's (`num_labels`, `id2label`, `label2id`, or a `config` that has them) the
        rows of the classifier are kept where labels have the same name, no-object is kept in any case, and a warning
        says what starts afresh.

        Raises:
            ValueError: If the checkpoint is one of another model, or a file of it is broken.
        """
        config_class: Any = cls.config_class
        labels: dict[str, Any] = {}
        wanted = None
        if not isinstance(config, PreTrainedConfig):
            # Loaded as it was trained, and changed afterwards: so nothing but the classifier may differ in size.
            labels = {name: kwargs.pop(name) for name in (*LABEL_FIELDS, "label_ids_to_fuse") if name in kwargs}
        else:
            if config.model_type != config_class.model_type:
                config = config_class.from_dict(config.to_dict())
            trained = _saved_config(config_class, pretrained_model_name_or_path, kwargs)
            if trained is not None and trained.id2label != config.id2label:
                wanted, config = config, copy.deepcopy(config)
                _set_labels(config, trained)
        try:
            loaded = super().from_pretrained(
                pretrained_model_name_or_path,
                *model_args,
                config=config,
                key_mapping={**WEIGHT_NAMES, **(key_mapping or {})},
                **kwargs,
            )
        except SafetensorError as error:
            raise ValueError(_describe_broken_files(pretrained_model_name_or_path, error)) from error
        model: Any = loaded[0] if isinstance(loaded, tuple) else loaded
        # It is saved under its own names, and not renamed back to those it was read from.
        model._weight_conversions = None
        if labels:
            wanted = type(model.config).from_dict(model.config.to_dict(), **labels)
        if wanted is not None:
            model.change_labels(wanted)
        return loaded

    @classmethod
    def from_backbone(cls, source: str, *, backbone_weights: str | None = None, **config_fields: Any) -> Any:
        """Build a model around a pretrained backbone; everything else starts as the original does.

        Args:
            source: `timm/NAME`, the name of a transformers backbone on the Hub, or a local folder.
            backbone_weights: A safetensors file with the backbone's weights, in the key names of its own library, in
                place of the Hub.
            config_fields: Fields of the model's configuration.

        Raises:
            ValueError: If any weight of the backbone would stay random.
        """
        config_class: Any = cls.config_class
        backbone_config = pretrained_backbone_config(source)
        for name, value in (config_fields.pop("backbone_config", None) or {}).items():
            setattr(backbone_config, name, value)
        model = cls(config_class(backbone_config=backbone_config, **config_fields))
        base_model: Any = model.base_model
        load_pretrained_backbone(base_model.backbone, source, backbone_weights)
        return model

    def get_input_embeddings(self) -> Any:
        """None: no table of tokens. FSDP through Accelerate asks."""
        return None

    def change_labels(self, config: PreTrainedConfig):
        """Take the labels of `config`: what belongs to classes with a known name is kept, the rest starts afresh."""
        old: Any = self.config.id2label
        new: Any = config.id2label
        rows = matching_labels(old, new)
        if rows != list(range(len(old))) and (always_kept := self._change_classes(rows)) is not None:
            logger.warning(
                "The checkpoint knows %d classes, now there are %d. Kept: %s. Re-initialised, hence to be trained: %s.",
                len(old),
                len(new),
                always_kept + _abridge([new[label] for label, row in enumerate(rows) if row is not None]),
                _abridge([new[label] for label, row in enumerate(rows) if row is None]),
            )
        _set_labels(self.config, config)

    def _change_classes(self, rows: Sequence[int | None]) -> str | None:
        """Make class i the former class `rows[i]`, or a new one.

        Returns what is kept besides, as the beginning of a list; None where no part knows classes.
        """

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False):
        # transformers skips modules without parameters of their own in code outside its package, which would leave out
        # every part that initialises what is below it.
        super()._initialize_weights(module, is_custom_code=False)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """As the original: PyTorch's defaults, unless a part says otherwise. Children come before their parents."""
        if hasattr(module, "init_weights") and not isinstance(module, PreTrainedModel):
            module.init_weights()  # pyrefly: ignore[not-callable]
        elif isinstance(module, nn.Linear | nn.Conv2d):
            init.kaiming_uniform_(module.weight, a=5**0.5)
            if module.bias is not None:
                bound = nn.init._calculate_fan_in_and_fan_out(module.weight)[0] ** -0.5
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight)
        elif isinstance(module, nn.LayerNorm | nn.GroupNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)


class MaskFormerHfModel(MaskFormerHfPreTrainedModel):
    """Backbone, pixel decoder and transformer decoder: query embeddings and pixel embeddings without the heads.

    PerPixelBaseline has no transformer decoder, and no query embeddings.
    """

    def __init__(self, config: MaskFormerHfConfig):
        super().__init__(config)
        backbone_config: Any = config.backbone_config
        self.backbone = Backbone(backbone_config, config.freeze_batch_norm)
        self.pixel_decoder: Any = PIXEL_DECODERS[config.pixel_decoder](config, self.backbone.channels)
        self.transformer_decoder: Any = None
        if config.transformer_decoder is not None:
            memory_channels: Any = self.pixel_decoder.memory_channels
            self.transformer_decoder = TRANSFORMER_DECODERS[config.transformer_decoder](config, memory_channels)
        self.post_init()

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
        """
        Args:
            pixel_values: Normalised images (B, C, H, W), padded with zeros on the right and below.
            pixel_mask: Accepted for the callers' sake: padding is masked nowhere in the network, as in the original.
            every_layer: Normalise and return the queries of all decoder layers.
            num_frames: T, if the images are the frames of clips, one clip after the other: B of the queries is then the
                number of clips.
        """
        need_weights = self._check_attentions(output_attentions)
        output_hidden_states = default(output_hidden_states, self.config.output_hidden_states)
        self._check_pixels(pixel_values)
        features = self.backbone(pixel_values.to(self.dtype))
        pixels = self.pixel_decoder(features, need_weights)
        decoded = TransformerDecoderOutput(queries=())
        if self.transformer_decoder is not None:
            clips = {} if num_frames is None else {"num_frames": num_frames}
            decoded = self.transformer_decoder(pixels, every_layer or bool(output_hidden_states), need_weights, **clips)
        output = MaskFormerHfModelOutput(
            transformer_decoder_last_hidden_state=decoded.queries[-1] if decoded.queries else None,
            pixel_decoder_last_hidden_state=pixels.embeddings,
            encoder_last_hidden_state=features[-1],
            encoder_hidden_states=features if output_hidden_states else None,
            pixel_decoder_hidden_states=pixels.memory if output_hidden_states else None,
            transformer_decoder_hidden_states=((every_layer or output_hidden_states) and decoded.queries) or None,
            encoder_attentions=pixels.attentions,
            decoder_attentions=decoded.attentions,
            cross_attentions=decoded.cross_attentions,
            mask_embeddings=decoded.mask_embeddings,
        )
        return output if default(return_dict, self.config.return_dict) else output.to_tuple()

    def _check_attentions(self, output_attentions: bool | None) -> bool:
        wanted = bool(default(output_attentions, self.config.output_attentions))
        if wanted and self.config._attn_implementation != "eager":
            raise ValueError(
                f"`output_attentions=True` needs `attn_implementation='eager'`, the model has "
                f"{self.config._attn_implementation!r}, which never holds the weights: pass it to "
                "`from_pretrained`, or call `model.set_attn_implementation('eager')`."
            )
        return wanted

    def _check_pixels(self, pixel_values: torch.Tensor):
        if pixel_values.dim() != 4 or pixel_values.shape[1] != self.config.num_channels:
            raise ValueError(
                f"`pixel_values` must have shape (batch, {self.config.num_channels}, height, width), got "
                f"{tuple(pixel_values.shape)}."
            )


class MaskFormerHfForUniversalSegmentation(MaskFormerHfPreTrainedModel):
    """MaskFormer or Mask2Former with its heads: every kind of segmentation with one model and one loss."""

    base_model_class = MaskFormerHfModel
    output_class = MaskFormerHfForUniversalSegmentationOutput

    def __init__(self, config: MaskFormerHfConfig):
        super().__init__(config)
        num_labels: Any = config.num_labels
        self.model = self.base_model_class(config)
        head = HEADS.get(config.transformer_decoder, SegmentationHead)
        self.head = head(config.hidden_size, config.mask_feature_size, num_labels)
        self.criterion = Criterion(
            num_labels,
            class_weight=config.class_weight,
            mask_weight=config.mask_weight,
            dice_weight=config.dice_weight,
            no_object_weight=config.no_object_weight,
            mask_loss=config.mask_loss,
            mask_term=config.mask_term,
            matching=config.matching,
            num_points=config.num_points,
            oversample_ratio=config.oversample_ratio,
            importance_sample_ratio=config.importance_sample_ratio,
        )
        self.post_init()

    def _change_classes(self, rows: Sequence[int | None]) -> str:
        self.head.change_classes(rows)
        self.criterion.num_labels = len(rows)
        return "no-object, "

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
    ) -> MaskFormerHfForUniversalSegmentationOutput | tuple:
        """
        Args:
            pixel_values: Normalised images (B, C, H, W), padded with zeros on the right and below.
            mask_labels: Binary masks (N_i, H, W) of each image, padded with zeros; asks for the loss.
            class_labels: Classes (N_i,) of each image, int64.
            pixel_mask: (B, H, W), nonzero at pixels that are no padding. It changes no prediction, only `image_sizes`.
            void_masks: (B, H, W) bool, true at pixels that the mask losses leave out, as an image processor with
                `return_void_masks=True` gives them. Without it void is background of every mask, as in the original.
            output_auxiliary_logits: Return the predictions of every decoder layer.
        """
        if (mask_labels is None) != (class_labels is None):
            raise ValueError("`mask_labels` and `class_labels` come together: one of them is missing.")
        if mask_labels is not None:
            check_mask_sizes(mask_labels, pixel_values)
            if void_masks is not None and void_masks.shape != (*pixel_values.shape[:-3], *pixel_values.shape[-2:]):
                raise ValueError(
                    f"`void_masks` must have shape (batch, height, width) of `pixel_values`, got "
                    f"{tuple(void_masks.shape)} for {tuple(pixel_values.shape)}."
                )
        supervise = mask_labels is not None and self.config.use_auxiliary_loss
        every_layer = supervise or bool(output_auxiliary_logits)
        base = self.model(
            pixel_values,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            every_layer=every_layer,
            return_dict=True,
        )
        class_logits, mask_embeddings = self.head(
            stack_queries(base, every_layer), _stack_mask_embeddings(base, every_layer)
        )
        pixel_embeddings = base.pixel_decoder_last_hidden_state
        loss = loss_dict = None
        if mask_labels is not None:
            supervised = slice(None) if supervise else slice(-1, None)
            loss, loss_dict = self.criterion(
                class_logits[supervised],
                mask_embeddings[supervised],
                pixel_embeddings,
                mask_labels,
                class_labels,
                void_masks,
            )
        # Of the other layers the loss needs but the masks that it matches: all of them would be most of its memory.
        masks = mask_logits(mask_embeddings if output_auxiliary_logits else mask_embeddings[-1:], pixel_embeddings)
        auxiliary_logits = None
        if output_auxiliary_logits:
            auxiliary_logits = [
                {"class_queries_logits": layer_classes, "masks_queries_logits": layer_masks}
                for layer_classes, layer_masks in zip(class_logits[:-1], masks[:-1], strict=True)
            ]
        keep_hidden_states = default(output_hidden_states, self.config.output_hidden_states)
        dropped = {"mask_embeddings"} | (set() if keep_hidden_states else {"transformer_decoder_hidden_states"})
        output = self.output_class(
            loss=loss,
            loss_dict=loss_dict,
            class_queries_logits=class_logits[-1],
            masks_queries_logits=masks[-1],
            image_sizes=image_sizes_of(pixel_values, pixel_mask),
            padded_sizes=size_rows(pixel_values, pixel_values.shape[-2:]),
            auxiliary_logits=auxiliary_logits,
            **{name: value for name, value in base.items() if name not in dropped},
        )
        return output if default(return_dict, self.config.return_dict) else output.to_tuple()


def stack_queries(base: Any, every_layer: bool) -> torch.Tensor:
    """Query embeddings (L, B, Q, C) of a [`MaskFormerHfModelOutput`]; of the last layer alone unless `every_layer`."""
    if every_layer:
        return torch.stack(base.transformer_decoder_hidden_states)
    return base.transformer_decoder_last_hidden_state[None]


def _stack_mask_embeddings(base: Any, every_layer: bool) -> torch.Tensor | None:
    """The same of mask embeddings, where the transformer decoder made them."""
    if base.mask_embeddings is None:
        return None
    return torch.stack(base.mask_embeddings) if every_layer else base.mask_embeddings[-1][None]


def check_mask_sizes(mask_labels: Sequence[torch.Tensor], pixel_values: torch.Tensor):
    size = tuple(pixel_values.shape[-2:])
    for image, masks in enumerate(mask_labels):
        if masks.shape[-2:] != size:
            raise ValueError(
                f"Masks of image {image} of the batch have size {tuple(masks.shape[-2:])}, `pixel_values` {size}: pad "
                "the masks with zeros on the right and below to the size of the batch, as the image processor does."
            )


def _saved_config(config_class: Any, source: Any, kwargs: dict[str, Any]) -> Any:
    """The configuration a checkpoint was saved with; None where there is no such file."""
    if source is None:
        return None
    names = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
    try:
        return config_class.from_pretrained(source, **{name: kwargs[name] for name in names if name in kwargs})
    except OSError:
        return None


def _set_labels(config: PreTrainedConfig, other: PreTrainedConfig):
    for name in ("id2label", "label2id", "label_ids_to_fuse"):
        setattr(config, name, copy.copy(getattr(other, name)))


def _describe_broken_files(source: Any, error: SafetensorError) -> str:
    broken = []
    for path in sorted(Path(source).glob("*.safetensors")) if Path(source).is_dir() else ():
        try:
            with safe_open(path, framework="pt"):
                pass
        except SafetensorError:
            broken.append(str(path))
    return (
        f"{' and '.join(broken) or f'A weight file of {source}'} cannot be read ({error}): the file is truncated or no "
        "safetensors file. Download or copy it again."
    )


def _abridge(names: Sequence[str], length: int = 8) -> str:
    if len(names) > length:
        return f"{', '.join(names[:length])} and {len(names) - length} more"
    return ", ".join(names) or "none"


def default(value: Any, otherwise: Any) -> Any:
    return otherwise if value is None else value


def image_sizes_of(pixel_values: torch.Tensor, pixel_mask: torch.Tensor | None) -> torch.Tensor:
    """Height and width of the part of each image that is no padding, (B, 2)."""
    if pixel_mask is None:
        return size_rows(pixel_values, pixel_values.shape[-2:])
    real = pixel_mask.bool()
    return torch.stack((real.any(2).sum(1), real.any(1).sum(1)), dim=1)


def size_rows(pixel_values: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """One height and width for all images of the batch, (B, 2)."""
    # Filled where it is needed: a copy from the host could not be part of a CUDA graph.
    columns = [pixel_values.new_full((pixel_values.shape[0],), n, dtype=torch.int64) for n in size]
    return torch.stack(columns, dim=1)


__all__ = ["MaskFormerHfForUniversalSegmentation", "MaskFormerHfModel", "MaskFormerHfPreTrainedModel"]
