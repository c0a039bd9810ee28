"""What a checkpoint of tests/fixtures/remote_code_before answers, by its own code where this package is not installed.

saved_before.py RESULT FOLDER PHOTO: the answers go to the safetensors file RESULT.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file

# Whatever the defaults of a later version are.
THRESHOLDS = {"threshold": 0.5, "mask_threshold": 0.5}
OVERLAP = {"overlap_mask_area_threshold": 0.5}


def answers_of(model: Any, processor: Any, photo: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, list]]:
    """Logits and maps by name, and the records of the segments by task."""
    image = Image.open(photo)
    sizes = [(image.height, image.width)]
    is_video = "Video" in type(processor).__name__
    inputs = processor(
        [image, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)] if is_video else image, return_tensors="pt"
    )
    with torch.inference_mode():
        outputs = model.eval()(**inputs)
    if "logits" in outputs:
        [semantic] = processor.post_process_semantic_segmentation(outputs, target_sizes=sizes)
        return {"pixel_values": inputs["pixel_values"], "logits": outputs.logits, "semantic": semantic}, {}
    tensors = {name: inputs[name] for name in ("pixel_values",)}
    tensors |= {name: outputs[name] for name in ("class_queries_logits", "masks_queries_logits")}
    if is_video:
        [video] = processor.post_process_instance_segmentation(outputs, target_sizes=sizes, **THRESHOLDS)
        tensors["instance"] = video["masks"]
        return tensors, {"instance": _records(video)}
    options = {**THRESHOLDS, **OVERLAP, "target_sizes": sizes}
    [panoptic] = processor.post_process_panoptic_segmentation(outputs, intersect_with_mask=True, **options)
    [instance] = processor.post_process_instance_segmentation(outputs, top_k=20, **options)
    [tensors["semantic"]] = processor.post_process_semantic_segmentation(outputs, target_sizes=sizes)
    tensors |= {"panoptic": panoptic["segmentation"], "instance": instance["segmentation"]}
    return tensors, {"panoptic": _records(panoptic), "instance": _records(instance)}


def _records(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [{name: record[name] for name in ("label_id", "score")} for record in result["segments_info"]]


if __name__ == "__main__":
    result_file, folder, photo = sys.argv[1:]

    class NotInstalled:
        """A finder that knows one package is not there."""

        @staticmethod
        def find_spec(name, path=None, target=None):
            if name.split(".")[0] == "maskformer_hf":
                raise ModuleNotFoundError(name)

    sys.meta_path.insert(0, NotInstalled())

    import transformers

    config = json.loads(Path(folder, "config.json").read_text())
    auto_class = getattr(transformers, list(config["auto_map"])[-1])
    loaded = auto_class.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32)
    loaded_processor = transformers.AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
    for item in (loaded, loaded_processor):
        assert type(item).__module__.startswith("transformers_modules."), type(item).__module__
    found, segments = answers_of(loaded, loaded_processor, photo)
    save_file(
        {name: value.contiguous() for name, value in found.items()}, result_file, {"segments": json.dumps(segments)}
    )
