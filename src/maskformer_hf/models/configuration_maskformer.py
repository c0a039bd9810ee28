"""Which parts a model of the family is made of, and how big they are.

Defaults are those of MaskFormer (https://arxiv.org/abs/2107.06278) with a ResNet-50 backbone; the fields that make a
Mask2Former of it are `presets.MASK2FORMER`. Parts are chosen by string. Combinations that cannot be built are refused
here, by name and value, before any memory is spent on weights.
"""

from dataclasses import fields
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

from .assembly import outside_parts, parts_of
from .assigner_stuff import check_stuff
from .backbone_configuration import NUM_FEATURE_LEVELS, complete_backbone_config
from .labels import LABEL_FIELDS, matching_labels, requested_labels
from .parts import part_of
from .pixel_decoder_encoder import NUM_BACKBONE_MAPS
from .remote_code import IS_REMOTE, CheckpointMixin
from .result_options import CLASS_SCORES, MASK_VALUES, TASKS
from .transformers_layout import MODEL_TYPES, RENAMED_FIELDS, translate_config

# Choices that are no parts.
CHOICES: dict[str, tuple[str | None, ...]] = {
    "mask_loss": ("dense", "points"),
    "mask_term": ("focal", "cross_entropy"),
    "matching": ("dense", "points"),
    "class_scores": CLASS_SCORES,
    "mask_values": MASK_VALUES,
    "stuff_assignment": ("matched", "fixed"),
    "task": TASKS,
    "backbone_pyramid": (None, "simple", "tokens"),
}


@strict
class MaskFormerHfConfig(CheckpointMixin, PreTrainedConfig):
    r"""Configuration of every model of the family.

    Args:
        backbone_config: A transformers backbone configuration or its dictionary (`resnet`, `swin`, `convnext`,
            `timm_backbone`, ...); ResNet-50 if not given. Unless it names several output features, its last four
            stages are used. A `resnet` one also understands `stem_type="deep"` (three 3x3 convolutions in place of
            the 7x7 one) and `multi_grid=[1, 2, 4]` (dilations of the last stage), which together make the paper's
            R50c and R101c.
        backbone_pyramid: `"simple"`, ViTDet's, makes maps of strides 4 to 32 of a plain vision transformer: of its last
            map, or of four that `out_features` or `out_indices` of `backbone_config` name, the shallowest first. None
            for backbones that have such maps themselves. `"tokens"` are the tokens of a DINOv2 or DINOv3 as they are,
            for `transformer_decoder="joint"`; `backbone_config` then has the blocks below it.
        freeze_backbone: The weights of the backbone, without its pyramid, stay as they are: no gradient, evaluation
            mode also in training.
        num_channels: Channels of the input images.
        freeze_batch_norm: BatchNorm of the backbone keeps its statistics and its affine terms are no parameters, as
            in the paper for every ResNet. Statistics of the small batches of segmentation training cost accuracy.
        pixel_decoder: `"fpn"`; `"transformer_fpn"` with a transformer encoder on the last level ("+6 Enc");
            `"deformable"`, Mask2Former's, with deformable attention among the last `encoder_levels` levels;
            `"hybrid"`, RT-DETR's, with attention on the last level and convolutions; `"pem"`, PEM's, of deformable
            convolutions; `"encoder"`, deformable attention among strides 8 to 64 without a pyramid; `"fapn"`, FaPN's,
            whose upsampled maps are aligned by deformable convolution; or `"none"`, in front of
            `transformer_decoder="joint"`.
        fapn_form: Which of FaPN's decoders: `"maskformer"`, or with feature selection `"detection"` and
            `"detection_norm"`, whose memory are three levels.
        feature_size: Width C of the pixel decoder; a multiple of 32, except for `"hybrid"` and `"pem"`.
        mask_feature_size: Width of pixel embeddings and mask embeddings.
        encoder_layers: Transformer encoder layers of `pixel_decoder="transformer_fpn"`, `"deformable"` and `"hybrid"`;
            RT-DETR has 1.
        encoder_levels: Feature maps, the coarsest first, that the encoder of `pixel_decoder="deformable"` sees.
        encoder_ffn_dim: Width of the encoder's feed-forward networks; `ffn_dim` if None. Mask2Former's is 1024.
        encoder_norm_groups: Groups of the norms in front of the encoder of `pixel_decoder="encoder"`.
        encoder_exits: Train `pixel_decoder="deformable"` to be left early, as ECO-M2F: for each encoder layer but the
            last, the weight of the loss of the predictions that are made of its maps; 0 where there are none to be.
        inference_encoder_layers, inference_layers: So many layers of the pixel decoder's encoder, or of the transformer
            decoder, run at inference; all if None. Training always runs all. A decoder with auxiliary losses predicts
            what the auxiliary prediction of that layer is.
        boundary_blocks: Residual blocks of 3x3 convolutions on the stride-4 map, in front of the pixel decoder's last
            convolution. They start as the identity.
        transformer_decoder: `"detr"`; `"masked"`, Mask2Former's, whose layers attend to the levels of the memory in
            turn, within the masks of the layer before; `"panoptic_segformer"`, a decoder of the boxes of things and two
            whose attention maps are the masks of things and of stuff, on `pixel_decoder="encoder"`; or `"joint"`,
            EoMT's, the last `decoder_layers` blocks of the vision transformer, which queries join.
        thing_mask_layers, stuff_mask_layers: Blocks of the two mask decoders of `"panoptic_segformer"`.
        cross_attention: How the layers of `"masked"` attend to the memory: `"softmax"`, or PEM's `"prototype"`, to the
            most similar cell.
        query_relations: A bias of self-attention in `"masked"` from how queries lie to each other, zero at first: by
            the `"boxes"` around their masks, or by how their `"masks"` overlap and touch; None for none.
        class_head: What classifies queries: `"linear"`.
        mask_head: What makes masks of queries: `"product"`, of their embeddings and the pixel embeddings;
            `"product_gelu"`, EoMT's, with another activation; or `"dynamic"`, which adds to the product what a small
            convolution network of each query gives, at first nothing.
        query_source: A part that gives the transformer decoder extra queries, in training alone and never at
            inference: `"denoising"`, MP-Former's, which know class and mask of a target; `"one_to_many"`, H-DETR's, of
            which several have the same target; None for none.
        denoising_groups: How often each target has a denoising query.
        denoising_queries: About so many denoising queries of an image in all, in place of `denoising_groups`: as many
            groups as fit. A step in which an image has more targets has none.
        denoising_label_noise: The probability that a denoising query starts as a random class.
        denoising_mask_noise: How much of the masks that denoising queries look at is noise: a cell turns into its
            opposite with this probability times the mask's share of the map.
        denoising_noise_of_heads: Draw that noise anew for each attention head.
        denoising_layers: Denoising queries look at the masks of targets in so many first layers, then at their own;
            None for all.
        denoising_class_loss: Whether denoising queries are taught classes.
        one_to_many_queries, one_to_many_copies: Queries of `query_source="one_to_many"`, and how many of them each
            target is matched with.
        one_to_many_weight: What their loss is multiplied by.
        query_position: Whether the queries of `"masked"` have a learned position; MP-Former's have none.
        hidden_size, num_attention_heads, ffn_dim, dropout: Sizes of every transformer layer.
        decoder_layers: Transformer decoder layers L. `"masked"` makes one more prediction, from its learned queries;
            the original and transformers count it as a layer.
        decoder_encoder_layers: Encoder layers in front of the decoder, inside the query module. 0 in every released
            model.
        pre_norm: LayerNorm in front of attention and feed-forward network in place of behind.
        enforce_input_projection: Project the decoder's memory even where its width is already `hidden_size`.
        num_queries: Queries Q; the largest number of segments of one image.
        use_auxiliary_loss: Deep supervision: every decoder layer is trained.
        class_weight, mask_weight, dice_weight: Weights of the loss terms and of the matching costs.
        box_weight, giou_weight: Likewise, of models with boxes.
        criterion: None is the loss of queries that are matched by class and mask; `"panoptic_segformer"` matches by
            boxes first.
        no_object_weight: Weight of the no-object class in the cross-entropy.
        mask_loss: `"dense"`, every pixel as in the paper, or `"points"`, `num_points` pixels a mask of which
            `importance_sample_ratio` are the most uncertain of `oversample_ratio` times as many random ones (PointRend,
            as in Mask2Former): a fraction of the memory.
        mask_term: What stands beside the dice loss, in the loss and in the matching costs: `"focal"`, MaskFormer's
            focal loss, or `"cross_entropy"`, Mask2Former's binary cross-entropy.
        matching: Costs from `"dense"` masks at the size of the predictions, as in MaskFormer, or from `num_points`
            random `"points"` that all masks of an image share, as in Mask2Former.
        assigner: Who is taught by which target: `"hungarian"`, the cheapest one-to-one matching of every layer;
            `"shared"`, that of the last layer for all; `"stable"`, in which a class counts as far as its mask fits.
        stuff_assignment: `"fixed"` gives each stuff class (`label_ids_to_fuse`; all classes of a semantic model without
            them) one of the first queries, and leaves the others to the assigner; `"matched"` leaves it all.
        class_loss: `"cross_entropy"`, with a no-object class.
        loss_terms: Weights of further terms of the masks' loss, by their names in the table of parts: `"boundary"`, the
            boundary loss, which grows over training from a hundredth of its weight to all of it.
        panoptic_merging: How masks become one panoptic result: `"argmax"`, each pixel to the best query, or
            `"mask_wise"`, whole masks one after the other, the best first, as in Panoptic SegFormer. Its scores are
            lower: `object_mask_threshold` is 0.25 or 0.3 there.
        class_scores: Probabilities of classes are the `"softmax"` of their logits, or the `"sigmoid"` of each.
        mask_values: What counts of a mask is the `"sigmoid"` of its logits, or is `"linear"` in them.
        intersect_with_mask: A panoptic segment keeps only pixels where its own mask probability reaches 0.5, as in
            Mask2Former; else all that it won.
        task: What the checkpoint was trained for; the default of `predict` and of the pipeline.
        label_ids_to_fuse: Stuff classes, whose segments are one in a panoptic result.
        object_mask_threshold, overlap_mask_area_threshold: Inference thresholds of the panoptic result; 0.8 and 0.8
            for COCO, 0.7 and 0.8 for ADE20K.
        stuff_object_mask_threshold, stuff_overlap_mask_area_threshold: The same for classes of `label_ids_to_fuse`, if
            those have others.
        instance_threshold: Least score of an instance, unless `predict` or the pipeline are told another.
        duplicate_iou: An instance that overlaps a better one of its class by a larger IoU is left out by `predict` and
            the pipeline; None, as in the original, keeps them all. For models whose training was too short to find each
            object once.
    """

    model_type = "maskformer_hf"
    # PreTrainedConfig's own idiom.
    sub_configs = {"backbone_config": AutoConfig}  # noqa: RUF012  # pyrefly: ignore[bad-override]
    reads_transformers_layout = True
    # What the model sees: "image" or "clip".
    kind: ClassVar[str] = "image"
    # Whether each pixel gets a class of its own, and queries have none.
    is_per_pixel: ClassVar[bool] = False
    tasks: ClassVar[tuple[str, ...]] = TASKS
    # Fields that may be None: the model then has no such part.
    optional_parts: ClassVar[tuple[str, ...]] = ("query_relations", "query_source", "criterion")
    # Other models of ours, by `model_type`, whose weights this one starts from.
    starts_from: ClassVar[tuple[str, ...]] = ()

    backbone_config: dict | PreTrainedConfig | None = None
    backbone_pyramid: str | None = None
    freeze_backbone: bool = False
    num_channels: int = 3
    freeze_batch_norm: bool = True

    pixel_decoder: str = "fpn"
    feature_size: int = 256
    mask_feature_size: int = 256
    encoder_layers: int = 6
    encoder_levels: int = 3
    encoder_ffn_dim: int | None = None
    boundary_blocks: int = 0
    fapn_form: str = "maskformer"
    encoder_exits: list[float | int] | tuple[float | int, ...] | None = None
    inference_encoder_layers: int | None = None

    encoder_norm_groups: int = 32

    transformer_decoder: str | None = "detr"
    thing_mask_layers: int = 4
    stuff_mask_layers: int = 6
    cross_attention: str = "softmax"
    query_relations: str | None = None
    class_head: str = "linear"
    mask_head: str = "product"
    query_source: str | None = None
    denoising_groups: int = 5
    denoising_queries: int | None = None
    denoising_label_noise: float | int = 0.2
    denoising_mask_noise: float | int = 0.0
    denoising_noise_of_heads: bool = False
    denoising_layers: int | None = None
    denoising_class_loss: bool = True
    one_to_many_queries: int = 300
    one_to_many_copies: int = 6
    one_to_many_weight: float | int = 1.0
    query_position: bool = True
    hidden_size: int = 256
    num_attention_heads: int = 8
    ffn_dim: int = 2048
    dropout: float | int = 0.1
    decoder_layers: int = 6
    inference_layers: int | None = None
    decoder_encoder_layers: int = 0
    pre_norm: bool = False
    enforce_input_projection: bool = False
    num_queries: int = 100

    use_auxiliary_loss: bool = True
    class_weight: float | int = 1.0
    mask_weight: float | int = 20.0
    dice_weight: float | int = 1.0
    box_weight: float | int = 5.0
    giou_weight: float | int = 2.0
    criterion: str | None = None
    no_object_weight: float | int = 0.1
    mask_loss: str = "dense"
    mask_term: str = "focal"
    matching: str = "dense"
    num_points: int = 112 * 112
    oversample_ratio: float | int = 3.0
    importance_sample_ratio: float | int = 0.75
    assigner: str = "hungarian"
    stuff_assignment: str = "matched"
    class_loss: str = "cross_entropy"
    loss_terms: dict[str, float | int] | None = None

    task: str = "panoptic"
    label_ids_to_fuse: list[int] | tuple[int, ...] | None = None
    object_mask_threshold: float | int = 0.8
    overlap_mask_area_threshold: float | int = 0.8
    stuff_object_mask_threshold: float | int | None = None
    stuff_overlap_mask_area_threshold: float | int | None = None
    intersect_with_mask: bool = False
    instance_threshold: float | int = 0.5
    duplicate_iou: float | int | None = None
    panoptic_merging: str = "argmax"
    class_scores: str = "softmax"
    mask_values: str = "sigmoid"

    def __post_init__(self, **kwargs):
        for name in sorted(kwargs.keys() & RENAMED_FIELDS.keys()):
            raise ValueError(
                f"`{name}` is a field of transformers' configurations; here it is {RENAMED_FIELDS[name]}. "
                f"`{type(self).__name__}.from_dict` translates a whole configuration."
            )
        self.backbone_config = complete_backbone_config(
            self.backbone_config, self.num_channels, self.backbone_pyramid, self.num_feature_maps
        )
        super().__post_init__(**kwargs)
        # `strict` calls it as well, but wraps its error in an exception that is not a ValueError.
        self.validate_parts()

    @property
    def num_feature_maps(self) -> int:
        """How many maps of the backbone are used, the coarsest ones."""
        return NUM_BACKBONE_MAPS if self.pixel_decoder == "encoder" else NUM_FEATURE_LEVELS

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in transformers, which calls it to read config.json, and besides:

        - A configuration of transformers' own MaskFormer or Mask2Former is translated, one of any other model refused.
        - `num_labels`, `id2label` or `label2id` replace all three, and `label_ids_to_fuse` follows its classes by name.
        - Other fields of this class are checked together, as when a configuration is made.
        """
        config_dict = dict(_in_own_layout(config_dict, cls, "This"))
        if not IS_REMOTE:
            # It names the code of the folder that was read, which is not run. The Auto classes need it where it is.
            config_dict.pop("auto_map", None)
        labels = {name: kwargs.pop(name) for name in LABEL_FIELDS if name in kwargs}
        if any(value is not None for value in labels.values()):
            trained = cls(**config_dict)
            id2label = requested_labels(trained.id2label, **labels)
            config_dict.pop("num_labels", None)
            config_dict |= {"id2label": id2label, "label2id": {name: label for label, name in id2label.items()}}
            if trained.label_ids_to_fuse is not None:
                rows = matching_labels(trained.id2label, id2label)
                config_dict["label_ids_to_fuse"] = [
                    label for label, row in enumerate(rows) if row in trained.label_ids_to_fuse
                ]
        own_fields = {field.name for field in fields(cls)} - {field.name for field in fields(PreTrainedConfig)}
        # transformers merges a `backbone_config` of a few fields into the one that is there.
        for name in (own_fields - {"backbone_config"}) & kwargs.keys():
            config_dict[name] = kwargs.pop(name)
        return super().from_dict(config_dict, **kwargs)

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: Any, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        # Here, because `from_pretrained` would only warn of another model_type, also where it does no harm.
        return _in_own_layout(config_dict, cls, str(pretrained_model_name_or_path)), kwargs

    @classmethod
    def _dict_from_json_file(cls, json_file: Any) -> dict[str, Any]:
        config_dict = super()._dict_from_json_file(json_file)
        if not isinstance(config_dict, dict) or "model_type" not in config_dict:
            raise ValueError(f"{json_file} is not the configuration of a model: it has no `model_type`.")
        return config_dict

    def parts_without_code(self) -> list[str]:
        return outside_parts(self)

    def validate_parts(self):
        """Refuse what cannot be built. Runs when the configuration is made and before it is saved."""
        for name, choices in {**CHOICES, "task": self.tasks}.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}` must be one of {list(choices)}, got {getattr(self, name)!r}.")
        sizes = "num_labels", "num_channels", "feature_size", "mask_feature_size", "decoder_layers", "num_queries"
        for name in (*sizes, "num_points"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if not 1 <= self.encoder_levels <= NUM_FEATURE_LEVELS:
            raise ValueError(f"`encoder_levels` must be 1 to {NUM_FEATURE_LEVELS}, got {self.encoder_levels}.")
        if self.encoder_ffn_dim is not None and self.encoder_ffn_dim < 1:
            raise ValueError(f"`encoder_ffn_dim` must be at least 1, or None, got {self.encoder_ffn_dim}.")
        if self.boundary_blocks < 0:
            raise ValueError(f"`boundary_blocks` must be 0 (none) or more, got {self.boundary_blocks}.")
        for name, layers in (("inference_layers", "decoder_layers"), ("inference_encoder_layers", "encoder_layers")):
            stop, count = getattr(self, name), getattr(self, layers)
            if stop is not None and not 1 <= stop <= count:
                raise ValueError(f"`{name}` must be 1 to `{layers}`={count}, or None for all of them, got {stop}.")
        for part in parts_of(self).values():
            part.check(self)
        check_stuff(self)
        if self.backbone_pyramid == "tokens" and self.transformer_decoder != "joint":
            raise ValueError(
                "`backbone_pyramid='tokens'` makes no maps of strides 4 to 32, which "
                f"`transformer_decoder={self.transformer_decoder!r}` needs: choose 'simple'."
            )
        for name in self.loss_terms or {}:
            if name in (self.mask_term, "dice", "mask"):
                raise ValueError(f"`loss_terms` names {name!r}, which has a weight of its own: leave it out.")
            part_of("loss_term", name).check(self)
        if not 0 <= self.importance_sample_ratio <= 1 or self.oversample_ratio < 1:
            raise ValueError(
                "`importance_sample_ratio` must lie in [0, 1] and `oversample_ratio` be at least 1, got "
                f"{self.importance_sample_ratio} and {self.oversample_ratio}."
            )
        if self.duplicate_iou is not None and not 0 <= self.duplicate_iou <= 1:
            raise ValueError(f"`duplicate_iou` must lie in [0, 1] or be None, got {self.duplicate_iou}.")
        id2label: Any = self.id2label
        labels = list(range(len(id2label)))
        if sorted(id2label) != labels:
            raise ValueError(f"`id2label` must number its labels from 0 to {labels[-1]}, got {sorted(id2label)}.")
        out_of_range = [label for label in self.label_ids_to_fuse or () if label not in labels]
        if out_of_range:
            raise ValueError(f"`label_ids_to_fuse` holds {out_of_range}, but there are {len(labels)} labels.")


def _in_own_layout(config_dict: dict[str, Any], config_class: Any, source: str) -> dict[str, Any]:
    own_model_type = config_class.model_type
    model_type = config_dict.get("model_type", own_model_type)
    if model_type == own_model_type:
        return config_dict
    if model_type in MODEL_TYPES and config_class.reads_transformers_layout:
        config_dict = translate_config(config_dict, own_model_type)
    elif model_type in config_class.starts_from:
        config_dict = {**config_dict, "model_type": own_model_type}
    else:
        own = " and ".join(map(repr, (own_model_type, *config_class.starts_from)))
        names = " and ".join(map(repr, MODEL_TYPES))
        others = f" and transformers' {names}" if config_class.reads_transformers_layout else ""
        raise ValueError(f"{source} is a {model_type!r} model; only {own}{others} can be read here.")
    tasks = config_class.tasks
    if config_dict.get("task", tasks[0]) not in tasks:
        # Another model may have been trained for what this one does not do.
        config_dict = {**config_dict, "task": tasks[0]}
    return config_dict
