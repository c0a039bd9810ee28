"""From the name of a checkpoint to a model and its processor: `load`."""

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError

from ..models.image_opening import first_line
from ..models.image_processing_maskformer import MaskFormerHfImageProcessor
from ..models.modeling_auto import MODEL_CLASSES, model_class_of, processor_class_of
from ..models.modeling_maskformer import MaskFormerHfForUniversalSegmentation
from ..models.modeling_per_pixel import MaskFormerHfPerPixelBaseline
from ..models.modeling_video import MaskFormerHfForVideoSegmentation
from ..models.saved_facts import copy_facts
from ..models.video_processing_maskformer import MaskFormerHfVideoProcessor

Model = MaskFormerHfForUniversalSegmentation | MaskFormerHfPerPixelBaseline

CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"
DEFAULT_CHECKPOINT = "street"
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


def bundled_checkpoints() -> dict[str, Path]:
    """Names of the checkpoints that come with the package, and their folders."""
    return {path.parent.name: path.parent for path in sorted(CHECKPOINTS.glob("*/config.json"))}


def checkpoint_path(name_or_path: str | Path) -> str:
    """Where `from_pretrained` finds a checkpoint: the folder of a bundled one, a local folder, or the Hub name itself.

    Raises:
        ValueError: There is no such folder, and the name is neither bundled nor has the shape of a Hub name.
    """
    name = str(name_or_path)
    bundled = bundled_checkpoints()
    if name in bundled:
        return str(bundled[name])
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(f"The folder {name!r} holds no config.json, so it is no checkpoint.")
        return str(path)
    is_local = path.exists() or path.is_absolute() or name.startswith((".", "~"))
    if is_local or name.count("/") != 1 or name.endswith("/"):
        raise ValueError(
            f"There is no checkpoint {name!r}: give the name of a bundled one "
            f"({', '.join(bundled) or 'this installation has none'}), a folder, or a Hub name such as "
            "'facebook/maskformer-swin-base-ade'."
        )
    return name


def load(
    name_or_path: str | Path = DEFAULT_CHECKPOINT,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    *,
    inference_layers: int | None = None,
    inference_encoder_layers: int | None = None,
) -> tuple[Model | MaskFormerHfForVideoSegmentation, MaskFormerHfImageProcessor | MaskFormerHfVideoProcessor]:
    """A model in evaluation mode, and its processor: for `predict`, or a model and a processor of videos for
    `predict_video`.

    In float32, BatchNorm is folded into the convolutions in front of it, which takes the memory of those weights once
    more: see `folding.py`. What the model saves is what was loaded.

    Args:
        name_or_path: A bundled checkpoint (see `bundled_checkpoints`), a folder, or a Hub name; checkpoints of
            transformers' MaskFormer and Mask2Former are read too.
        device: None is CUDA where there is one, and else the CPU.
        dtype: None is float32, whatever the weights are stored in; or "bfloat16", "float16" and their short names.
        inference_layers, inference_encoder_layers: So many layers of the transformer decoder, and of the pixel
            decoder's encoder, run. None is what the checkpoint says, and that is all of them unless it was saved
            otherwise.

    Raises:
        ValueError: No such checkpoint or device; a file that is damaged or not what it should be; a weight that is
            missing (it would be random) or not finite.
    """
    path = checkpoint_path(name_or_path)
    device = _resolve_device(device)
    dtype = _resolve_dtype(dtype)
    given = {"inference_layers": inference_layers, "inference_encoder_layers": inference_encoder_layers}
    fields: Any = {name: value for name, value in given.items() if value is not None}
    if Path(path).is_dir():
        _check_json(Path(path) / "config.json")
    try:
        model, loading = model_class_of(path).from_pretrained(path, dtype=dtype, output_loading_info=True, **fields)
        processor = processor_class_of(model.config).from_pretrained(path)
        copy_facts(model.config, processor)
    except (OSError, ValueError, StrictDataclassError) as error:
        # A strict dataclass names the check that failed in its first line; what the check said is the cause.
        cause = error.__cause__ if isinstance(error, StrictDataclassError) else None
        raise ValueError(f"Checkpoint {str(name_or_path)!r} cannot be loaded: {first_line(cause or error)}") from error
    absent = sorted(loading["missing_keys"]) + sorted(str(key) for key in loading["mismatched_keys"])
    if absent:
        raise ValueError(
            f"Checkpoint {str(name_or_path)!r} lacks {len(absent)} weights of its model, which would stay random "
            f"({', '.join(absent[:3])}{', ...' if len(absent) > 3 else ''})."
        )
    for name, weight in model.state_dict().items():
        if not torch.isfinite(weight).all():
            raise ValueError(f"Checkpoint {str(name_or_path)!r}: the weight {name} is not finite (NaN or infinity).")
    # Here, because it needs timm, which takes time to import.
    from .folding import fold_batch_norms

    fold_batch_norms(model.eval())
    # Convolutions of the CPU and of tensor cores run fastest on channels-last memory.
    return model.to(device=device, memory_format=torch.channels_last), processor


def _resolve_device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        # What cannot hold a tensor cannot hold a model.
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"The device {str(device)!r} cannot be used here: {first_line(error)}") from error


def _resolve_dtype(dtype: str | torch.dtype | None) -> torch.dtype:
    resolved = torch.float32 if dtype is None else DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if resolved is None or resolved not in DTYPES.values():
        raise ValueError(f"`dtype` must be one of {list(DTYPES)}, got {str(dtype)!r}.")
    return resolved


def _check_json(path: Path) -> None:
    """Refuses a configuration that is not one of our models, before transformers explains it at length."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{str(path)!r} is no valid JSON: {error}") from error
    if not isinstance(content, dict) or content.get("model_type") not in MODEL_CLASSES:
        found = content.get("model_type") if isinstance(content, dict) else type(content).__name__
        raise ValueError(
            f"{str(path)!r} is no configuration of a model of ours: its `model_type` must be one of "
            f"{list(MODEL_CLASSES)}, found {found!r}."
        )
