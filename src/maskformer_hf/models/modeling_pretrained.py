"""What all models of the family have in common: how they are loaded, initialised, and given other classes."""

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

from .assembly import layer_names
from .backbone import load_pretrained_backbone, pretrained_backbone_config
from .configuration_maskformer import MaskFormerHfConfig
from .labels import LABEL_FIELDS, matching_labels
from .remote_code import CheckpointMixin
from .saved_facts import update_saved_processor
from .transformers_layout import IGNORED_WEIGHTS, WEIGHT_NAMES
from .transformers_layout_eomt import EOMT_IGNORED_WEIGHTS, eomt_names

logger = logging.getLogger(__name__)


class MaskFormerHfPreTrainedModel(CheckpointMixin, PreTrainedModel):
    config_class = MaskFormerHfConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)  # pyrefly: ignore[bad-assignment]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    # BatchNorm's counter means nothing when its statistics are frozen.
    _keys_to_ignore_on_load_missing = [r"num_batches_tracked"]  # noqa: RUF012
    _keys_to_ignore_on_load_unexpected = [  # noqa: RUF012
        r"num_batches_tracked",
        *IGNORED_WEIGHTS,
        *EOMT_IGNORED_WEIGHTS,
    ]

    # How far training is, from 0 to 1; whoever trains sets it before each step. Some parts change on the way.
    training_progress: float = 1.0

    def __init__(self, config: PreTrainedConfig, *args: Any, **kwargs: Any):
        super().__init__(config, *args, **kwargs)
        self._no_split_modules = layer_names(config)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Any,
        *model_args: Any,
        config: Any = None,
        key_mapping: dict[str, str] | None = None,
        **kwargs: Any,
    ) -> Any:
        """As in transformers, from our checkpoints and from those of its own MaskFormer, Mask2Former and EoMT.

        With other labels than the checkpoint's (`num_labels`, `id2label`, `label2id`, or a `config` that has them) the
        rows of the classifier are kept where labels have the same name, no-object is kept in any case, and a warning
        says what starts afresh.

        Raises:
            ValueError: If the checkpoint is one of another model, or a file of it is broken.
        """
        config_class: Any = cls.config_class
        labels: dict[str, Any] = {}
        wanted = None
        trained = _saved_config(config_class, pretrained_model_name_or_path, kwargs)
        if not isinstance(config, PreTrainedConfig):
            # Load the model as it was trained and change its labels afterwards: only the classifier may differ in size.
            labels = {name: kwargs.pop(name) for name in (*LABEL_FIELDS, "label_ids_to_fuse") if name in kwargs}
        else:
            if config.model_type != config_class.model_type:
                config = config_class.from_dict(config.to_dict())
            if trained is not None and trained.id2label != config.id2label:
                wanted, config = config, copy.deepcopy(config)
                _set_labels(config, trained)
        try:
            loaded = super().from_pretrained(
                pretrained_model_name_or_path,
                *model_args,
                config=config,
                key_mapping={**WEIGHT_NAMES, **eomt_names(trained), **(key_mapping or {})},
                **kwargs,
            )
        except SafetensorError as error:
            raise ValueError(_describe_broken_files(pretrained_model_name_or_path, error)) from error
        model: Any = loaded[0] if isinstance(loaded, tuple) else loaded
        # Save under our own names; transformers would rename them back to those that were read.
        model._weight_conversions = None
        if labels:
            wanted = type(model.config).from_dict(model.config.to_dict(), **labels)
        if wanted is not None:
            model.change_labels(wanted)
        model.base_model.backbone.stop_gradients()
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
            ValueError: If any weight of the backbone would stay random, or its last blocks are those of a decoder.
        """
        if config_fields.get("backbone_pyramid") == "tokens":
            raise ValueError(
                f"from_backbone({source!r}) cannot start a model with `backbone_pyramid='tokens'`: its last blocks are "
                "those of the transformer decoder. Start from a trained EoMT by from_pretrained, or use "
                "`backbone_pyramid='simple'`."
            )
        config_class: Any = cls.config_class
        backbone_config = pretrained_backbone_config(source)
        for name, value in (config_fields.pop("backbone_config", None) or {}).items():
            setattr(backbone_config, name, value)
        model = cls(config_class(backbone_config=backbone_config, **config_fields))
        base_model: Any = model.base_model
        load_pretrained_backbone(base_model.backbone, source, backbone_weights)
        return model

    def parts_without_code(self) -> list[str]:
        return self.config.parts_without_code()

    @property
    def progress(self) -> float:
        """How far training is; 1 in evaluation."""
        return self.training_progress if self.training else 1.0

    @property
    def dtype(self) -> torch.dtype:
        """That of the first part behind the backbone which has weights: a frozen backbone may have fewer bits."""
        for name in ("pixel_decoder", "transformer_decoder"):
            part: Any = getattr(self.base_model, name, None)
            for parameter in () if part is None else part.parameters():
                return parameter.dtype
        return torch.get_default_dtype()

    def complete_folder(self, folder: Path):
        # The processor beside reads results by what the model's configuration says of them.
        update_saved_processor(folder, self.config)

    def get_input_embeddings(self) -> Any:
        """None: no table of tokens. FSDP through Accelerate asks."""
        return None

    def change_labels(self, config: PreTrainedConfig):
        """Take the labels of `config`: what belongs to classes with a known name is kept, the rest starts afresh."""
        old: Any = self.config.id2label
        new: Any = config.id2label
        rows = matching_labels(old, new)
        if rows != list(range(len(old))) and (always_kept := self._change_classes(rows, config)) is not None:
            logger.warning(
                "The checkpoint knows %d classes, now there are %d. Kept: %s. Re-initialised, hence to be trained: %s.",
                len(old),
                len(new),
                always_kept + _abridge([new[label] for label, row in enumerate(rows) if row is not None]),
                _abridge([new[label] for label, row in enumerate(rows) if row is None]),
            )
        _set_labels(self.config, config)

    def _change_classes(self, rows: Sequence[int | None], config: Any) -> str | None:
        """Make class i the former class `rows[i]`, or a new one; `config` says which of them are stuff.

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
