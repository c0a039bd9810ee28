"""MaskFormer (https://arxiv.org/abs/2107.06278, figure 2) and Mask2Former assembled from their parts."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .assembly import make_criterion, make_head, make_pixel_decoder, make_query_source, make_transformer_decoder
from .backbone import make_backbone
from .configuration_maskformer import MaskFormerHfConfig
from .interfaces import Ask, Decoded, Encoded, ExtraQueries
from .modeling_outputs import MaskFormerHfForUniversalSegmentationOutput, MaskFormerHfModelOutput
from .modeling_pretrained import MaskFormerHfPreTrainedModel
from .prediction_head import PredictionSet
from .targets import Targets, make_targets

# Names of the dimensions in front of the channels, by kind of model.
LEADING_DIMENSIONS = {"image": ("batch",), "clip": ("batch", "frames")}


class MaskFormerHfModel(MaskFormerHfPreTrainedModel):
    """Backbone, pixel decoder and transformer decoder: query embeddings and pixel embeddings without the heads.

    PerPixelBaseline has no transformer decoder, and no query embeddings.
    """

    def __init__(self, config: MaskFormerHfConfig):
        super().__init__(config)
        self.backbone: Any = make_backbone(config)
        self.pixel_decoder: Any = make_pixel_decoder(config, self.backbone.facts)
        self.transformer_decoder: Any = None
        if config.transformer_decoder is not None:
            memory: Any = self.pixel_decoder.memory
            self.transformer_decoder = make_transformer_decoder(config, self.backbone.facts, memory)
        self.post_init()

    def forward(
        self,
        pixel_values: torch.Tensor,
        pixel_mask: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> MaskFormerHfModelOutput | tuple:
        """
        Args:
            pixel_values: Normalised images (B, C, H, W), padded with zeros on the right and below; clips
                (B, T, C, H, W) if the configuration is one of clips.
            pixel_mask: (B, H, W), nonzero at pixels that are no padding. Parts of MaskFormer and Mask2Former mask
                padding nowhere, as in the original; Panoptic SegFormer's do.
        """
        ask = self.ask(pixel_values, output_hidden_states=output_hidden_states, output_attentions=output_attentions)
        encoded = self.encode(pixel_values, ask._replace(padding=padding_of(pixel_mask)))
        decoded = self.decode(encoded, ask._replace(padding=padding_of(pixel_mask)))
        output = MaskFormerHfModelOutput(**self.hidden_states(encoded, decoded, ask))
        return output if default(return_dict, self.config.return_dict) else output.to_tuple()

    def ask(
        self,
        pixel_values: torch.Tensor,
        every_layer: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        progress: float = 1.0,
    ) -> Ask:
        """What a forward is asked for, by its arguments and the configuration."""
        return Ask(
            every_layer=bool(every_layer),
            hidden_states=bool(default(output_hidden_states, self.config.output_hidden_states)),
            need_weights=self._check_attentions(output_attentions),
            num_frames=pixel_values.shape[1] if self.config.kind == "clip" else None,
            num_encoder_layers=None if self.training else self.config.inference_encoder_layers,
            num_decoder_layers=None if self.training else self.config.inference_layers,
            progress=progress,
            image_size=(pixel_values.shape[-2], pixel_values.shape[-1]),
        )

    def encode(self, pixel_values: torch.Tensor, ask: Ask) -> Encoded:
        """Maps and pixel embeddings of images (B, C, H, W), of clips (B, T, C, H, W)."""
        leading = LEADING_DIMENSIONS[self.config.kind]
        if pixel_values.dim() != len(leading) + 3 or pixel_values.shape[-3] != self.config.num_channels:
            raise ValueError(
                f"`pixel_values` must have shape ({', '.join(leading)}, {self.config.num_channels}, height, width), "
                f"got {tuple(pixel_values.shape)}."
            )
        features = self.backbone(pixel_values.flatten(0, -4).to(self.dtype))
        return Encoded(features, self.pixel_decoder(features, ask))

    def decode(self, encoded: Encoded, ask: Ask, extra_queries: ExtraQueries | None = None) -> Decoded:
        """Query embeddings, of the pixel decoder's result and of its earlier exits."""
        if self.transformer_decoder is None:
            return Decoded(())
        exits = [self.transformer_decoder(pixels, ask) for pixels in encoded.pixels.exits]
        return Decoded((*exits, self.transformer_decoder(encoded.pixels, ask, extra_queries)), extra_queries)

    def compile(self, *args: Any, **kwargs: Any):
        """Compile the parts, whoever calls them."""
        for part in (self.backbone, self.pixel_decoder, self.transformer_decoder):
            if part is not None:
                part.compile(*args, **kwargs)

    def hidden_states(self, encoded: Encoded, decoded: Decoded, ask: Ask) -> dict[str, Any]:
        """What an output says of the inside of the model: fields of [`MaskFormerHfModelOutput`]."""
        num_extra = 0 if decoded.extra is None else decoded.extra.features.shape[1]
        output = decoded.outputs[-1] if decoded.outputs else None
        queries = tuple(own[:, num_extra:] for own in output.queries) if output else ()

        def by_clip(maps: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
            """Maps of frames, (B T, ...), as maps of clips, (B, T, ...)."""
            if ask.num_frames is None:
                return tuple(maps)
            return tuple(frames.unflatten(0, (-1, ask.num_frames)) for frames in maps)

        features, [embeddings] = by_clip(encoded.features), by_clip([encoded.pixels.embeddings])
        return {
            "transformer_decoder_last_hidden_state": queries[-1] if queries else None,
            "pixel_decoder_last_hidden_state": embeddings,
            "encoder_last_hidden_state": features[-1],
            "encoder_hidden_states": features if ask.hidden_states else None,
            "pixel_decoder_hidden_states": by_clip(encoded.pixels.memory) if ask.hidden_states else None,
            "transformer_decoder_hidden_states": queries if ask.hidden_states and queries else None,
            "encoder_attentions": encoded.pixels.attentions and by_clip(encoded.pixels.attentions),
            "decoder_attentions": output and output.attentions,
            "cross_attentions": output and output.cross_attentions,
        }

    def _check_attentions(self, output_attentions: bool | None) -> bool:
        wanted = bool(default(output_attentions, self.config.output_attentions))
        if wanted and self.config._attn_implementation != "eager":
            raise ValueError(
                f"`output_attentions=True` needs `attn_implementation='eager'`, the model has "
                f"{self.config._attn_implementation!r}, which never holds the weights: pass it to "
                "`from_pretrained`, or call `model.set_attn_implementation('eager')`."
            )
        return wanted


class MaskFormerHfForUniversalSegmentation(MaskFormerHfPreTrainedModel):
    """MaskFormer or Mask2Former with its heads: every kind of segmentation with one model and one loss."""

    base_model_class = MaskFormerHfModel
    output_class = MaskFormerHfForUniversalSegmentationOutput

    def __init__(self, config: MaskFormerHfConfig):
        super().__init__(config)
        self.model = self.base_model_class(config)
        self.head = make_head(config, self.model.backbone.facts, self.model.transformer_decoder)
        self.query_source: Any = make_query_source(config)
        self.criterion = make_criterion(config)
        self.post_init()

    def _change_classes(self, rows: Sequence[int | None], config: Any) -> str:
        if self.head.class_predictor is None:
            self.model.transformer_decoder.change_classes(rows, config)
            self.criterion = make_criterion(config)
            return ""
        self.head.change_classes(rows)
        if hasattr(self.query_source, "change_classes"):
            self.query_source.change_classes(rows)
        self.criterion.num_labels = len(rows)
        return "no-object, "

    def forward(
        self,
        pixel_values: torch.Tensor,
        mask_labels: Sequence[torch.Tensor] | None = None,
        class_labels: Sequence[torch.Tensor] | None = None,
        pixel_mask: torch.Tensor | None = None,
        void_masks: torch.Tensor | None = None,
        target_maps: Mapping[str, Sequence[torch.Tensor]] | None = None,
        output_auxiliary_logits: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        lazy_masks: bool = False,
        return_dict: bool | None = None,
    ) -> MaskFormerHfForUniversalSegmentationOutput | tuple:
        """
        Args:
            pixel_values: Normalised images (B, C, H, W), padded with zeros on the right and below.
            mask_labels: Binary masks (N_i, H, W) of each image, padded with zeros; asks for the loss.
            class_labels: Classes (N_i,) of each image, int64.
            pixel_mask: (B, H, W), nonzero at pixels that are no padding. It changes `image_sizes`, and predictions of
                parts that mask padding: Panoptic SegFormer's.
            void_masks: (B, H, W) bool, true at pixels that the mask losses leave out, as an image processor with
                `return_void_masks=True` gives them. Without it void is background of every mask, as in the original.
            target_maps: What further loss terms need, by name and image, as the collator makes it.
            output_auxiliary_logits: Return the predictions of every decoder layer.
            lazy_masks: Leave `masks_queries_logits` out, and let `masks` make masks of the queries that are asked for.
        """
        targets = self._targets(pixel_values, mask_labels, class_labels, void_masks, target_maps)
        targets = targets and targets._replace(padding=padding_of(pixel_mask))
        supervise = targets is not None and self.config.use_auxiliary_loss
        every_layer = supervise or output_auxiliary_logits
        ask = self.model.ask(pixel_values, every_layer, output_hidden_states, output_attentions, self.progress)
        ask = ask._replace(padding=padding_of(pixel_mask))
        encoded = self.model.encode(pixel_values, ask)
        decoded = self.model.decode(encoded, ask, self._extra_queries(targets, encoded, ask))
        sets = self.head(decoded, encoded, ask)
        loss = loss_dict = None
        if targets is not None:
            loss, loss_dict = self.criterion(sets if supervise else last_layers(sets), targets)
        output = self.output_class(
            loss=loss,
            loss_dict=loss_dict,
            **logits_of(sets[-1], output_auxiliary_logits, lazy_masks),
            image_sizes=image_sizes_of(pixel_values, pixel_mask, ask),
            padded_sizes=size_rows(pixel_values, pixel_values.shape[-2:]),
            **self.model.hidden_states(encoded, decoded, ask),
        )
        return output if default(return_dict, self.config.return_dict) else output.to_tuple()

    def _targets(self, pixel_values: torch.Tensor, *targets: Any) -> Targets | None:
        num_frames = pixel_values.shape[1] if self.config.kind == "clip" else None
        mask_labels, class_labels, void_masks, target_maps = targets
        made = make_targets(
            mask_labels, class_labels, pixel_values, self.criterion.num_labels, num_frames, void_masks, target_maps
        )
        return made and made._replace(progress=self.progress)

    def _extra_queries(self, targets: Targets | None, encoded: Encoded, ask: Ask) -> ExtraQueries | None:
        """Queries of the query source, which there are in training only."""
        if self.query_source is None or targets is None or not self.training:
            return None
        return self.query_source(targets, encoded, ask)


def last_layers(sets: Sequence[PredictionSet]) -> list[PredictionSet]:
    """What is supervised where auxiliary layers are not."""
    return [predictions.layers(slice(-1, None)) for predictions in sets]


def logits_of(predictions: PredictionSet, auxiliary: bool | None, lazy: bool) -> dict[str, Any]:
    """The logits of an output: fields of [`MaskFormerHfForUniversalSegmentationOutput`]."""
    class_logits, masks = predictions.class_logits, predictions.masks
    # The loss needs only those masks of the other layers that it matches: all of them would be most of its memory.
    layers = [
        {"class_queries_logits": class_logits[layer], "masks_queries_logits": masks.layer(layer)}
        for layer in range(len(class_logits) - 1 if auxiliary else 0)
    ]
    return {
        "class_queries_logits": class_logits[-1],
        "masks_queries_logits": None if lazy else masks.layer(-1),
        "masks": masks if lazy else None,
        "auxiliary_logits": layers if auxiliary else None,
    }


def image_sizes_of(pixel_values: torch.Tensor, pixel_mask: torch.Tensor | None, ask: Ask) -> torch.Tensor:
    """Height and width of the part of each image that is no padding, (B, 2)."""
    if pixel_mask is None:
        return size_rows(pixel_values, pixel_values.shape[-2:])
    real = pixel_mask.bool()
    if ask.num_frames is not None:
        # The frames of a clip have one size.
        real = real.any(1)
    return torch.stack((real.any(2).sum(1), real.any(1).sum(1)), dim=1)


def padding_of(pixel_mask: torch.Tensor | None) -> torch.Tensor | None:
    """Where an image is padding, bool; None without a mask."""
    return None if pixel_mask is None else ~pixel_mask.bool()


def size_rows(pixel_values: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """One height and width for all images of the batch, (B, 2)."""
    # Filled where it is needed: a copy from the host could not be part of a CUDA graph.
    columns = [pixel_values.new_full((pixel_values.shape[0],), n, dtype=torch.int64) for n in size]
    return torch.stack(columns, dim=1)


def default(value: Any, otherwise: Any) -> Any:
    return otherwise if value is None else value


__all__ = ["MaskFormerHfForUniversalSegmentation", "MaskFormerHfModel", "MaskFormerHfPreTrainedModel"]
