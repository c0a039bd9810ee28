"""What the models return. The shape letters are those of `interfaces.py`."""

from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput

from .masks import Masks


@dataclass
class MaskFormerHfModelOutput(ModelOutput):
    """
    Args:
        transformer_decoder_last_hidden_state: Query embeddings of the last decoder layer, (B, Q, C).
        pixel_decoder_last_hidden_state: Pixel embeddings, (B, C, H/4, W/4).
        encoder_last_hidden_state: The backbone's last feature map, (B, C, H/32, W/32).
        encoder_hidden_states: All feature maps of the backbone, if `output_hidden_states`.
        pixel_decoder_hidden_states: The memory of the transformer decoder, if `output_hidden_states`.
        transformer_decoder_hidden_states: Query embeddings (B, Q, C) of each decoder layer, if asked for.
        encoder_attentions, decoder_attentions, cross_attentions: Attention weights of the pixel decoder's encoder, of
            the decoder's self-attention and of its cross-attention, one tensor a layer, if `output_attentions`.
    """

    transformer_decoder_last_hidden_state: torch.Tensor | None = None
    pixel_decoder_last_hidden_state: torch.Tensor | None = None
    encoder_last_hidden_state: torch.Tensor | None = None
    encoder_hidden_states: tuple[torch.Tensor, ...] | None = None
    pixel_decoder_hidden_states: tuple[torch.Tensor, ...] | None = None
    transformer_decoder_hidden_states: tuple[torch.Tensor, ...] | None = None
    encoder_attentions: tuple[torch.Tensor, ...] | None = None
    decoder_attentions: tuple[torch.Tensor, ...] | None = None
    cross_attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class MaskFormerHfForUniversalSegmentationOutput(ModelOutput):
    """
    Args:
        loss: Weighted sum of all terms, a scalar, if targets were given.
        loss_dict: Each term unweighted and detached, under the original's names: `loss_ce`, `loss_mask`, `loss_dice`
            of the last decoder layer, `loss_ce_0`, ... of the auxiliary ones.
        class_queries_logits: (B, Q, K+1); the last class is no-object.
        masks_queries_logits: (B, Q, ceil(H/4), ceil(W/4)), unless `lazy_masks` is asked for.
        masks: With `lazy_masks`, what makes them of the queries that are asked for, see `masks.py`.
        image_sizes: Height and width of each image without padding, (B, 2), int64.
        padded_sizes: Height and width of `pixel_values`, the same in each row, (B, 2), int64.
        auxiliary_logits: `class_queries_logits` and `masks_queries_logits` of each decoder layer but the last, if asked
            for.
        encoder_last_hidden_state, ..., cross_attentions: As in [`MaskFormerHfModelOutput`], if asked for.
    """

    loss: torch.Tensor | None = None
    loss_dict: dict[str, torch.Tensor] | None = None
    class_queries_logits: torch.Tensor | None = None
    masks_queries_logits: torch.Tensor | None = None
    masks: Masks | None = None
    image_sizes: torch.Tensor | None = None
    padded_sizes: torch.Tensor | None = None
    auxiliary_logits: list[dict[str, torch.Tensor]] | None = None
    transformer_decoder_last_hidden_state: torch.Tensor | None = None
    pixel_decoder_last_hidden_state: torch.Tensor | None = None
    encoder_last_hidden_state: torch.Tensor | None = None
    encoder_hidden_states: tuple[torch.Tensor, ...] | None = None
    pixel_decoder_hidden_states: tuple[torch.Tensor, ...] | None = None
    transformer_decoder_hidden_states: tuple[torch.Tensor, ...] | None = None
    encoder_attentions: tuple[torch.Tensor, ...] | None = None
    decoder_attentions: tuple[torch.Tensor, ...] | None = None
    cross_attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class MaskFormerHfForVideoSegmentationOutput(MaskFormerHfForUniversalSegmentationOutput):
    """
    As [`MaskFormerHfForUniversalSegmentationOutput`], of clips in place of images: B counts clips of T frames, and what
    is a map of an image there has a dimension T in front of its channels here.

    Args:
        masks_queries_logits: One tube a query, (B, Q, T, ceil(H/4), ceil(W/4)).
        image_sizes: Height and width of the frames of each clip without padding, (B, 2), int64.
    """


@dataclass
class MaskFormerHfForSemanticSegmentationOutput(ModelOutput):
    """
    Args:
        loss: Sum of all terms, a scalar, if targets were given.
        loss_dict: Each term under the original's names: `loss_sem_seg` of the result, `loss_sem_seg_0`, ... of the
            auxiliary decoder layers.
        logits: Class logits of every pixel, (B, K, ceil(H/4), ceil(W/4)).
        image_sizes: Height and width of each image without padding, (B, 2), int64.
        padded_sizes: What `logits` are resized to before the image is cut out, the same in each row, (B, 2), int64:
            four times their size, which is that of `pixel_values` or up to three pixels more.
        auxiliary_logits: `logits` of each decoder layer but the last, if asked for.
        transformer_decoder_last_hidden_state, ..., cross_attentions: As in [`MaskFormerHfModelOutput`].
    """

    loss: torch.Tensor | None = None
    loss_dict: dict[str, torch.Tensor] | None = None
    logits: torch.Tensor | None = None
    image_sizes: torch.Tensor | None = None
    padded_sizes: torch.Tensor | None = None
    auxiliary_logits: tuple[torch.Tensor, ...] | None = None
    transformer_decoder_last_hidden_state: torch.Tensor | None = None
    pixel_decoder_last_hidden_state: torch.Tensor | None = None
    encoder_last_hidden_state: torch.Tensor | None = None
    encoder_hidden_states: tuple[torch.Tensor, ...] | None = None
    pixel_decoder_hidden_states: tuple[torch.Tensor, ...] | None = None
    transformer_decoder_hidden_states: tuple[torch.Tensor, ...] | None = None
    encoder_attentions: tuple[torch.Tensor, ...] | None = None
    decoder_attentions: tuple[torch.Tensor, ...] | None = None
    cross_attentions: tuple[torch.Tensor, ...] | None = None
