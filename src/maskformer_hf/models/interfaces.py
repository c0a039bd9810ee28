"""What the parts say to each other.

Shape legend of all modelling files: B images, T frames of a clip, L decoder layers, Q queries, E extra queries, R = E +
Q queries in all, C channels, K classes (K + 1 with no-object), N targets, M matched pairs, P points, H W input pixels,
h w feature cells, S feature cells in one row.
"""

from typing import Any, NamedTuple

import torch


class Facts(NamedTuple):
    """What maps are like. Whoever makes maps says it, and every part that reads them is told.

    channels: Channels of each map.
    strides: Input pixels from one cell of each map to the next.
    dims: 2 for images and for the frames of clips; 3 would be volumes.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    dims: int = 2


class Ask(NamedTuple):
    """What a forward is asked for, besides the result.

    every_layer: The predictions of all decoder layers, not only those of the last.
    hidden_states: The queries of all decoder layers.
    need_weights: Attention weights.
    num_frames: T, if the images are the frames of clips, one clip after the other; None for images.
    num_encoder_layers, num_decoder_layers: Stop the pixel decoder's encoder or the transformer decoder after so many
        layers; None for all.
    progress: How far training is, from 0 to 1. 1 at inference.
    image_size: Height and width of the images as they came, before a backbone pads them.
    padding: (B, H, W) bool, true at pixels that are padding, for parts that look at it; None if nothing is known of it.
    """

    every_layer: bool = False
    hidden_states: bool = False
    need_weights: bool = False
    num_frames: int | None = None
    num_encoder_layers: int | None = None
    num_decoder_layers: int | None = None
    progress: float = 1.0
    image_size: tuple[int, int] | None = None
    padding: torch.Tensor | None = None

    @property
    def queries_of_every_layer(self) -> bool:
        return self.every_layer or self.hidden_states


class PixelDecoderOutput(NamedTuple):
    """
    embeddings: Pixel embeddings, (B, C, h, w), of stride 4 where the backbone's finest map is.
    memory: What the transformer decoder attends to, (B, C, h, w) each, coarsest first.
    attentions: Attention weights of each encoder layer, (B, heads, S, S), or of deformable attention (B, heads, cells
        of all levels, points that each looks at), if asked for.
    exits: The same after earlier encoder layers, in their order, where those are trained to predict as well.
    weight: What the loss of an exit is multiplied by.
    """

    embeddings: torch.Tensor
    memory: tuple[torch.Tensor, ...]
    attentions: tuple[torch.Tensor, ...] | None = None
    exits: tuple["PixelDecoderOutput", ...] = ()
    weight: float = 1.0


class Encoded(NamedTuple):
    """What there is before any query.

    features: The backbone's maps, (B, C, h, w), finest first; of clips (B T, C, h, w).
    pixels: What the pixel decoder made of them.
    """

    features: tuple[torch.Tensor, ...]
    pixels: PixelDecoderOutput

    def outputs(self) -> tuple[PixelDecoderOutput, ...]:
        """Those of all encoder exits; the last one is the result."""
        return (*self.pixels.exits, self.pixels)


class QueryGroup(NamedTuple):
    """Extra queries that are trained together.

    name: Put before the names of its loss terms, such as "dn_".
    num_queries: How many of the extra queries, from where the group before ended.
    assigner: A name of the table of parts, or an assigner; see `assigners.py`.
    weight: What its loss is multiplied by.
    has_class_loss: Whether it is taught classes, besides masks.
    """

    name: str
    num_queries: int
    assigner: Any
    weight: float = 1.0
    has_class_loss: bool = True


class ExtraQueries(NamedTuple):
    """Queries that a transformer decoder gets besides its own, and in front of them.

    features: (B, E, C), what they start as.
    position: (B, E, C), their position encoding.
    groups: Whose predictions belong together. Their numbers of queries add up to E.
    attended: Which query (row) may attend to which (column) in self-attention, (R, R) or (B, R, R) bool; None if all
        may.
    masks: Where each extra query looks in every layer, (B, E, H, W) bool in pixels of the input, in place of the mask
        that it predicted itself; or a function of the number of a layer and the size of its map, (h, w) or (T, h, w),
        to (B, E, S) or (B, heads, E, S) bool, None where queries look at what they predicted. None if all attend as the
        decoder's own do.
    is_apart: No other query sees the extra ones. The decoder's own are then computed apart from them, and predict bit
        for bit what they do without them.
    """

    features: torch.Tensor
    position: torch.Tensor
    groups: tuple[QueryGroup, ...]
    attended: torch.Tensor | None = None
    masks: Any = None
    is_apart: bool = False


class TransformerDecoderOutput(NamedTuple):
    """
    queries: Normalised query embeddings (B, R, C) of each decoder layer that was asked for; the last one is the result.
    attentions: Self-attention weights of each layer, (B, heads, R, R), if asked for.
    cross_attentions: Cross-attention weights of each layer, (B, heads, R, S), if asked for.
    masks: The `Masks` of the same layers as `queries`, from decoders that need masks themselves; else the head makes
        them.
    sets: The `PredictionSet`s of a decoder that has heads of its own; else the head makes them.
    """

    queries: tuple[torch.Tensor, ...]
    attentions: tuple[torch.Tensor, ...] | None = None
    cross_attentions: tuple[torch.Tensor, ...] | None = None
    masks: Any = None
    sets: tuple[Any, ...] = ()


class Decoded(NamedTuple):
    """What the transformer decoder made of each of `Encoded.outputs()`, and of which extra queries besides its own."""

    outputs: tuple[TransformerDecoderOutput, ...]
    extra: ExtraQueries | None = None


class Attended(NamedTuple):
    """
    mask: Which query (row) may attend to which (column) in self-attention, broadcast to (B, heads, R, R): bool, or a
        float that is added to the logits.
    num_apart: So many queries in front that no other one sees, and that are computed apart; 0 for none.
    """

    mask: torch.Tensor
    num_apart: int = 0


def join_queries(
    features_BQC: torch.Tensor, position_QC: torch.Tensor, extra: ExtraQueries | None
) -> tuple[torch.Tensor, torch.Tensor, Attended | None]:
    """All queries (B, R, C), their positions, and who may attend to whom, for a decoder with these own queries."""
    if extra is None:
        return features_BQC, position_QC, None
    position_BQC = position_QC.expand(features_BQC.shape[0], -1, -1)
    features_BRC = torch.cat((extra.features.to(features_BQC.dtype), features_BQC), dim=1)
    position_BRC = torch.cat((extra.position.to(position_QC.dtype), position_BQC), dim=1)
    attended = extra.attended
    if attended is not None and attended.shape[-2:] != (features_BRC.shape[1],) * 2:
        raise ValueError(
            f"`attended` of extra queries has shape {tuple(attended.shape)}: there are {features_BRC.shape[1]} "
            f"queries, {extra.features.shape[1]} extra ones and then the decoder's own {features_BQC.shape[1]}."
        )
    if attended is None:
        return features_BRC, position_BRC, None
    num_apart = extra.features.shape[1] if extra.is_apart else 0
    return features_BRC, position_BRC, Attended(attended.unsqueeze(-3), num_apart)  # one mask for all heads
