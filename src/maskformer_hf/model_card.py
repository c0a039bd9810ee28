"""The model card of a checkpoint's folder: README.md, filled from the records that lie beside the weights.

| record | from | says |
|---|---|---|
| config.json, preprocessor_config.json, *.safetensors | `save_pretrained` | task, classes, parts, sizes |
| training.json | `maskformer train` | command, recipe, data, steps, time, machine, evaluation of these weights |
| evaluation.json | `maskformer evaluate FOLDER DATA -o FOLDER/evaluation.json` | a later one, which counts instead |
| speed.json | `maskformer_hf.hub.measure_speed` | time for a photo, and the machine |
| model_card.yaml | its author | what no program knows: see `WORDS` |
"""

import json
import platform
import re
import struct
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from .models.auto_classes import MODELS
from .models.modeling_auto import sees_clips

TEMPLATE = Path(__file__).parent / "model_card.md"
WORDS_FILE = "model_card.yaml"
RECORDS = ("training.json", "evaluation.json", "speed.json", WORDS_FILE)
# What model_card.yaml and the keyword arguments may say; all of it may be left out.
WORDS = {
    "title": "the first line",
    "description": "what the model is, a few sentences",
    "data": "what it was trained on: source, size, terms",
    "dataset_name": "the name of the data, such as CamVid",
    "dataset_id": "its name on the Hub, or a short one without spaces",
    "limits": "what it is not for",
    "licence": "of the weights, by the Hub's short name, such as apache-2.0",
    "licence_note": "what else to say of it",
    "base_model": "the model on the Hub it was made from",
    "tags": "a list, for the Hub's search",
}
# Whoever rewrites a card by hand takes this line out, and the card is left alone from then on.
MARK = "<!-- Written by maskformer_hf from the records in this folder; remove this line to edit it by hand. -->"
SAMPLE, SAMPLE_LICENCE = "sample.png", "sample.LICENSE.txt"

# Figures of an evaluation: the Hub's name for the measure, and ours. IoU is published as a share of 1, AP and PQ in
# percent.
_FIGURES = {
    "mean_iou": ("mean_iou", "mean IoU"),
    "boundary_iou": ("boundary_iou", "boundary IoU"),
    "pixel_accuracy": ("accuracy", "pixel accuracy"),
    "mean_accuracy": ("mean_accuracy", "mean accuracy of the classes"),
    "frequency_weighted_iou": ("frequency_weighted_iou", "frequency-weighted IoU"),
}
_PERCENTAGES = {
    "ap": ("mask_ap", "mask AP"),
    "ap50": ("mask_ap50", "mask AP50"),
    "ap75": ("mask_ap75", "mask AP75"),
    "ap_small": ("mask_ap_small", "mask AP, small objects"),
    "ap_medium": ("mask_ap_medium", "mask AP, medium objects"),
    "ap_large": ("mask_ap_large", "mask AP, large objects"),
    "boundary_ap": ("boundary_ap", "boundary AP"),
    "ar": ("mask_ar", "average recall"),
    "pq": ("pq", "panoptic quality, PQ"),
    "pq_things": ("pq_things", "PQ of things"),
    "pq_stuff": ("pq_stuff", "PQ of stuff"),
    "sq": ("sq", "segmentation quality, SQ"),
    "rq": ("rq", "recognition quality, RQ"),
}
# Columns of the table of classes, in percent: what of a class marks the task, and name and key of each.
_CLASS_COLUMNS = {
    "iou": {"IoU": "iou", "accuracy": "accuracy", "share of pixels": "share"},
    "ap": {"AP": "ap", "AP50": "ap50", "average recall": "ar"},
    "pq": {"PQ": "pq", "SQ": "sq", "RQ": "rq"},
}
# In videos "ap" and "ar" are those of tubes.
_VIDEO_PERCENTAGES = {
    "ap": ("video_ap", "video AP"),
    "ap50": ("video_ap50", "video AP50"),
    "ap75": ("video_ap75", "video AP75"),
    "ar": ("video_ar", "average recall"),
    "j": ("region_similarity", "region similarity, J"),
    "flicker": ("flicker", "flicker"),
}
_PIXEL_DECODERS = {
    "fpn": "FPN, {0.feature_size} channels",
    "transformer_fpn": "FPN with {0.encoder_layers} transformer encoder layers, {0.feature_size} channels",
    "deformable": "{0.encoder_layers} layers of multi-scale deformable attention, {0.feature_size} channels",
}
# By transformer decoder.
_PAPERS = {
    "detr": ("MaskFormer", "https://arxiv.org/abs/2107.06278"),
    "masked": ("Mask2Former", "https://arxiv.org/abs/2112.01527"),
}
_VIDEO_PAPER = ("Mask2Former-VIS", "https://arxiv.org/abs/2112.10764")
# Statistics of BatchNorm, which no training step learns.
_STATISTICS = (".running_mean", ".running_var", ".num_batches_tracked")


def write_model_card(folder: str | Path, *, repo_id: str | None = None, name: str | None = None, **words: Any) -> Path:
    """Writes `folder`/README.md and returns its path.

    Args:
        repo_id: Where the folder goes on the Hub; the card then says how to use it from there.
        name: What `load` takes in the card's example where there is no `repo_id`; the folder's own name if not given.
        words: In place of those of model_card.yaml: see `WORDS`.

    Raises:
        ValueError: The folder holds no checkpoint of ours, or model_card.yaml or `words` say what no card has a place
            for.
    """
    folder = Path(folder)
    config = _read_config(folder)
    words = {**_read_words(folder), **words}
    unknown = sorted(words.keys() - WORDS.keys())
    if unknown:
        raise ValueError(f"A model card has no place for {', '.join(unknown)}; it has one for {', '.join(WORDS)}.")
    training = _read_record(folder / "training.json")
    evaluation = _read_record(folder / "evaluation.json") or training.get("evaluation") or {}
    data = training.get("data") or {}
    dataset_name = words.get("dataset_name") or data.get("name")
    dataset, part = _evaluated_on(evaluation, data, dataset_name)
    backbone = _backbone_name(config)
    title = words.get("title") or (repo_id.split("/")[-1] if repo_id else f"{_paper(config)[0]} on {backbone}")
    content = ModelCard.from_template(
        _card_data(config, training, evaluation, dataset, title, words),
        template_path=str(TEMPLATE),
        title=title,
        description=words.get("description", "").strip() or _describe(config, dataset_name),
        sample=(folder / SAMPLE).is_file(),
        sample_licence=SAMPLE_LICENCE if (folder / SAMPLE_LICENCE).is_file() else None,
        repo_id=repo_id,
        load_name=repo_id or name or folder.name,
        task=config.task,
        is_video=sees_clips(config),
        uses_timm=config.backbone_config.model_type == "timm_backbone",
        parts=_parts(folder, config, backbone),
        data=words.get("data", "").strip() or _describe_data(data),
        command=training.get("command"),
        recipe=_as_yaml(training.get("recipe")),
        steps=_describe_training(training, sees_clips(config)),
        measured_on=_describe_evaluation(evaluation, dataset, part),
        figures=_figures(evaluation),
        classes=_class_table(evaluation),
        speed=_describe_speed(_read_record(folder / "speed.json"), "frame" if sees_clips(config) else "photo"),
        limits=words.get("limits", "").strip() or _default_limits(config),
        licence=_describe_licence(words),
        mark=MARK,
    ).content
    path = folder / "README.md"
    # The template's conditions leave empty lines behind.
    path.write_text(re.sub(r"\n{3,}", "\n\n", content).strip() + "\n", encoding="utf-8")
    return path


def is_written_by_hand(card: Path) -> bool:
    return card.is_file() and MARK not in card.read_text(encoding="utf-8")


def machine_name(device: Any = "cpu") -> str:
    """What a model runs on, for the records: the name of the GPU, or that of the processor and the threads used."""
    import torch

    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), flags=re.MULTILINE)
        name = found[1] if found else name
    threads = torch.get_num_threads()
    return f"{threads} thread{'s' if threads > 1 else ''} of {name}"


def _read_config(folder: Path) -> Any:
    model_type = _read_record(folder / "config.json").get("model_type")
    if model_type not in MODELS:
        raise ValueError(
            f"The folder {str(folder)!r} holds no config.json of a model of ours: its `model_type` must be one of "
            f"{list(MODELS)}, found {model_type!r}."
        )
    module, _, name = MODELS[model_type]["AutoConfig"].partition(".")
    return getattr(import_module(f".models.{module}", __package__), name).from_pretrained(folder)


def _read_record(path: Path) -> dict[str, Any]:
    """The dictionary in a JSON file; empty where there is none."""
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{str(path)!r} is no valid JSON: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"{str(path)!r} holds a {type(record).__name__}; expected names and values.")
    return record


def _read_words(folder: Path) -> dict[str, Any]:
    path = folder / WORDS_FILE
    if not path.is_file():
        return {}
    try:
        words = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{str(path)!r} is no valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(words, dict):
        raise ValueError(f"{str(path)!r} holds a {type(words).__name__}; expected names and values.")
    return words


def _card_data(
    config: Any,
    training: dict[str, Any],
    evaluation: dict[str, Any],
    dataset: str,
    title: str,
    words: dict[str, Any],
) -> ModelCardData:
    own_name = dataset == words.get("dataset_name") and words.get("dataset_id")
    dataset_id = own_name or re.sub(r"[^\w.-]+", "-", dataset).lower()
    results: Any = [
        EvalResult(
            task_type="image-segmentation",
            task_name=f"{str(evaluation.get('task', 'semantic')).capitalize()} segmentation",
            dataset_type=dataset_id,
            dataset_name=dataset,
            metric_type=metric,
            metric_name=name,
            metric_value=round(evaluation[key], 5),
        )
        for key, (metric, name) in {**_FIGURES, **_percentages(evaluation)}.items()
        if _is_number(evaluation, key)
    ]
    return ModelCardData(
        library_name="transformers",
        # The Hub has no word for the segmentation of videos.
        pipeline_tag=None if sees_clips(config) else "image-segmentation",
        license=words.get("licence"),
        base_model=words.get("base_model") or _base_model(training),
        tags=[
            "maskformer",
            "maskformer_hf",
            f"{'video-' if sees_clips(config) else ''}{config.task}-segmentation",
            *words.get("tags", []),
        ],
        # `datasets:` lists names on the Hub only.
        datasets=[words["dataset_id"]] if "/" in words.get("dataset_id", "") else None,
        model_name=title if results else None,
        eval_results=results or None,
    )


def _base_model(training: dict[str, Any]) -> str | None:
    """The Hub name a model was fine-tuned from; a folder has none."""
    checkpoint = ((training.get("recipe") or {}).get("model") or {}).get("checkpoint")
    return checkpoint if checkpoint and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", checkpoint) else None


def _backbone_name(config: Any) -> str:
    backbone = config.backbone_config
    if backbone.model_type == "timm_backbone":
        return f"timm's {backbone.backbone}"
    depths = getattr(backbone, "depths", None)
    return backbone.model_type + (f" ({'-'.join(map(str, depths))} blocks)" if depths else "")


def _describe(config: Any, dataset_name: str | None) -> str:
    trained = f", trained on {dataset_name}" if dataset_name else ""
    model, paper = _paper(config)
    where = " of videos" if sees_clips(config) else ""
    classes = f"{len(config.id2label)} class{'es' if len(config.id2label) > 1 else ''}"
    return f"{model} ({paper}) for {config.task} segmentation{where} into {classes}{trained}."


def _paper(config: Any) -> tuple[str, str]:
    """The model's name, and where it is described."""
    return _VIDEO_PAPER if sees_clips(config) else _PAPERS.get(config.transformer_decoder, _PAPERS["detr"])


def _parts(folder: Path, config: Any, backbone: str) -> dict[str, str]:
    num_weights, num_bytes, types = _weights(folder)
    labels = [config.id2label[label] for label in sorted(config.id2label)]
    shown = ", ".join(labels[:40]).replace("|", "\\|")
    if len(labels) > 40:
        shown += f" and {len(labels) - 40} more, see config.json"
    return {
        "Task": config.task + ", in videos" * sees_clips(config),
        "Classes": f"{len(labels)}: {shown}",
        "Backbone": backbone,
        "Pixel decoder": _PIXEL_DECODERS.get(config.pixel_decoder, config.pixel_decoder).format(config),
        "Transformer decoder": f"{config.decoder_layers} layers, {config.num_queries} queries, "
        f"{config.hidden_size} channels"
        if config.transformer_decoder
        else "none",
        "Input": _describe_input(_read_record(folder / "preprocessor_config.json")),
        "Weights": f"{num_weights / 1e6:.2f} million, {num_bytes / 1e6:.1f} MB in {' and '.join(types)}",
    }


def _describe_input(processor: dict[str, Any]) -> str:
    size = processor.get("size") or {}
    parts = []
    if processor.get("do_resize", True) and "shortest_edge" in size:
        parts.append(f"shorter side {size['shortest_edge']} pixels, aspect ratio kept")
        if size.get("longest_edge"):
            parts.append(f"longer side {size['longest_edge']} at most")
    if processor.get("size_divisor"):
        parts.append(f"padded to multiples of {processor['size_divisor']}")
    if processor.get("do_normalize", True) and processor.get("image_mean"):
        mean, std = ([round(value, 3) for value in processor[name]] for name in ("image_mean", "image_std"))
        parts.append(f"mean {mean}, deviation {std}")
    return "; ".join(parts) or "as given"


def _weights(folder: Path) -> tuple[int, int, list[str]]:
    """How many there are, the bytes of their files, and their types, the most frequent first; from the headers."""
    count, num_bytes, types = 0, 0, {}
    for path in sorted(folder.glob("*.safetensors")):
        num_bytes += path.stat().st_size
        with path.open("rb") as file:
            # safetensors: eight bytes with the length of the header, which is JSON.
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        for name, tensor in header.items():
            if name == "__metadata__" or name.endswith(_STATISTICS):
                continue
            elements = 1
            for side in tensor["shape"]:
                elements *= side
            count += elements
            types[tensor["dtype"]] = types.get(tensor["dtype"], 0) + elements
    if not count:
        raise ValueError(f"The folder {str(folder)!r} holds no weights (*.safetensors).")
    names = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    return count, num_bytes, [names.get(kind, kind) for kind in sorted(types, key=lambda kind: -types[kind])]


def _describe_data(data: dict[str, Any]) -> str | None:
    if not data:
        return None
    validation = f", and {data['validation_images']} for validation" if data.get("validation_images") else ""
    images = f"{data['training_images'] or 'streamed'} images"
    if data.get("training_videos"):
        images = f"{data['training_images']} frames of {data['training_videos']} videos"
    return f"`{data['name']}`: {images} for training{validation}."


def _describe_training(training: dict[str, Any], of_clips: bool = False) -> str:
    recipe = training.get("recipe") or {}
    parts = []
    if training.get("step") is not None:
        parts.append(f"These are the weights after step {training['step']} of {recipe.get('steps')}")
    if recipe.get("batch_size"):
        images = recipe["batch_size"] * recipe.get("accumulation", 1) * training.get("processes", 1)
        parts.append(
            f"{images} clips of {recipe['data']['frames']} frames a step" if of_clips else f"{images} images a step"
        )
    if recipe.get("seed") is not None:
        parts.append(f"seed {recipe['seed']}")
    if training.get("seconds"):
        hours, minutes = divmod(round(training["seconds"] / 60), 60)
        parts.append(f"{hours} h {minutes:02} min" + (f" on {training['machine']}" if training.get("machine") else ""))
    elif training.get("machine"):
        parts.append(f"on {training['machine']}")
    versions = ", ".join(f"{name} {version}" for name, version in (training.get("versions") or {}).items())
    return "; ".join(parts) + "." + (f" With {versions}." if versions else "")


def _as_yaml(recipe: dict[str, Any] | None) -> str | None:
    return yaml.safe_dump(recipe, sort_keys=False, default_flow_style=None, width=120).strip() if recipe else None


def _evaluated_on(evaluation: dict[str, Any], data: dict[str, Any], name: str | None) -> tuple[str, str | None]:
    """The name of the data that was measured on, and which part of it."""
    if "data" not in evaluation:
        return name or "the validation data", data.get("validation")
    path = Path(evaluation["data"], evaluation.get("split") or "").resolve()
    # As in a recipe: parts of a data set are folders below one that has its name.
    if name and path.parent.name in (data.get("name"), name):
        return name, path.name
    return path.parent.name, path.name


def _describe_evaluation(evaluation: dict[str, Any], dataset: str, part: str | None) -> str:
    images, unit = f"{evaluation['images']} images of " if evaluation.get("images") else "", "an image"
    if evaluation.get("videos"):
        images, unit = f"{evaluation['videos']} videos ({evaluation['frames']} frames) of ", "a video"
    limit = evaluation.get("max_detections")
    best = f" The {limit} best objects of {unit} count." if limit else ""
    return f"On {images}{dataset}{f', `{part}`' if part else ''}, each at its own size.{best}"


def _is_number(evaluation: dict[str, Any], key: str) -> bool:
    # NaN was written as null.
    return isinstance(evaluation.get(key), int | float)


def _percentages(evaluation: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return _VIDEO_PERCENTAGES if evaluation.get("task") == "video" else _PERCENTAGES


def _figures(evaluation: dict[str, Any]) -> dict[str, str]:
    """Name and value of each figure there is."""
    shares = {ours: f"{evaluation[key]:.4f}" for key, (_, ours) in _FIGURES.items() if _is_number(evaluation, key)}
    percent = {
        ours: f"{100 * evaluation[key]:.1f}"
        for key, (_, ours) in _percentages(evaluation).items()
        if _is_number(evaluation, key)
    }
    return {**shares, **percent}


def _class_table(evaluation: dict[str, Any]) -> list[str]:
    """The lines of the table of classes; none where no class was measured."""
    classes = evaluation.get("per_class") or []
    columns = next((columns for key, columns in _CLASS_COLUMNS.items() if classes and key in classes[0]), None)
    if columns is None:
        return []
    pixels = sum(row.get("pixels", 0) for row in classes) or 1
    lines = [f"| {' | '.join(['class', *columns])} |", "|---" * (1 + len(columns)) + "|"]
    for row in classes:
        values = {**row, "share": row.get("pixels", 0) / pixels}
        cells = ["" if values[key] is None else f"{values[key]:.1%}" for key in columns.values()]
        lines.append("| " + " | ".join([row["label"].replace("|", "\\|"), *cells]) + " |")
    return lines


def _describe_speed(speed: dict[str, Any], unit: str) -> str | None:
    if not speed:
        return None
    return (
        f"{speed['milliseconds']:.0f} ms for a {unit} of {speed['width']} x {speed['height']} pixels, from the {unit} "
        f"to its segments ({speed['task']}, {speed['dtype']}), on {speed['machine']}."
    )


def _default_limits(config: Any) -> str:
    return (
        f"It knows the {len(config.id2label)} classes above and no others, as they look in the data it was trained on; "
        "on other cameras, places or weather it is worse, without saying so. Nobody's safety may depend on it. It was "
        f"trained for {config.task} segmentation; what it makes of other tasks was not measured."
    )


def _describe_licence(words: dict[str, Any]) -> str:
    weights = f"The weights: {words['licence']}." if words.get("licence") else "None was stated for the weights."
    note = f" {words['licence_note'].strip()}" if words.get("licence_note") else ""
    return f"{weights}{note} The code files beside them are Apache-2.0, from the package `maskformer_hf`."
