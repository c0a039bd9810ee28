"""Load from the Hub where neither this package nor what inference can do without is installed.

without_package.py RESULT PHOTO HIDDEN,... [COPY]: HIDDEN are top-level modules, and `torchvision._C`, which are not
found. COPY is a folder of `save_pretrained`, copied from the machine that has them.
"""

import importlib.machinery
import json
import sys
from pathlib import Path

result_file, photo, hidden, copy = sys.argv[1], sys.argv[2], set(sys.argv[3].split(",")), sys.argv[4:]


class Hiding:
    """A finder that leaves out some modules of another, as if they were not installed."""

    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in hidden else self.finder.find_spec(name, path, target)


sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
if "torchvision._C" in hidden:
    # torchvision looks its operators up by a finder of its own.
    find_spec = importlib.machinery.FileFinder.find_spec

    def find_no_operators(self, name, target=None):
        is_operators = name.startswith("_C") and "torchvision" in self.path
        return None if is_operators else find_spec(self, name, target)

    importlib.machinery.FileFinder.find_spec = find_no_operators

import torch  # noqa: E402

if "torchvision._C" in hidden:
    # The two that torchvision 0.29 cannot be imported without are there in name only: whoever calls one fails.
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from huggingface_hub import snapshot_download  # noqa: E402
from results import summarize  # noqa: E402
from transformers import (  # noqa: E402
    AutoImageProcessor,
    AutoModel,
    AutoModelForInstanceSegmentation,
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
    pipeline,
)

results = {}


def message(function, *arguments, **options) -> str:
    try:
        function(*arguments, **options)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


if "torchvision" in hidden:
    results["no torchvision"] = message(AutoImageProcessor.from_pretrained, "me/tiny", trust_remote_code=True)
    Path(result_file).write_text(json.dumps(results))
    sys.exit()

import torchvision  # noqa: E402

results["has operators"] = torchvision.extension._has_ops()
results["no flag"] = message(AutoModelForUniversalSegmentation.from_pretrained, "me/tiny")
results["segments"] = summarize(pipeline("image-segmentation", model="me/tiny", trust_remote_code=True), photo)
local = snapshot_download("me/tiny")
results["files"] = sorted(path.name for path in Path(local).iterdir())
# In a local folder the classes of a model and of its configuration lie in two modules that are not each other's.
results["segments of a local copy"] = summarize(
    pipeline("image-segmentation", model=local, trust_remote_code=True), photo
)
for name, way in {"hf upload": "me/folder", "Trainer": "me/trained", "a copy": copy[0]}.items():
    segmenter = pipeline("image-segmentation", model=way, trust_remote_code=True)
    assert type(segmenter.model).__module__.startswith("transformers_modules.")
    results[f"segments by way of {name}"] = summarize(segmenter, photo)
# Pushed piece by piece.
results["segments of parts"] = summarize(
    pipeline("image-segmentation", model="me/parts", trust_remote_code=True), photo
)

model = AutoModelForUniversalSegmentation.from_pretrained("me/tiny", trust_remote_code=True)
results["classes"] = [
    type(auto_class.from_pretrained("me/tiny", trust_remote_code=True)).__name__
    for auto_class in (AutoModel, AutoModelForInstanceSegmentation, AutoModelForSemanticSegmentation)
]
pixels = torch.zeros(1, 3, 64, 64)
masks, classes = [torch.ones(1, 64, 64, dtype=torch.bool)], [torch.tensor([1])]
results["no scipy"] = message(model, pixel_values=pixels, mask_labels=masks, class_labels=classes)
processor = AutoImageProcessor.from_pretrained("me/tiny", trust_remote_code=True)
results["no pycocotools"] = message(
    processor.post_process_instance_segmentation,
    model(pixel_values=pixels),
    threshold=0.0,
    return_coco_annotation=True,
)
timm_config = type(model.config)(backbone_config={"model_type": "timm_backbone", "backbone": "resnet18"})
results["no timm"] = message(type(model), timm_config)

# Whoever changes a model without having the package can share it too, in every way.
model.push_to_hub("me/changed")
processor.push_to_hub("me/changed")
model.save_pretrained("saved")
processor.save_pretrained("saved")
# This model's classes lie in several folders of transformers' cache, one a file that was loaded.
local_model = AutoModelForUniversalSegmentation.from_pretrained(copy[0], trust_remote_code=True)
local_model.save_pretrained("saved_from_local")
AutoImageProcessor.from_pretrained(copy[0], trust_remote_code=True).save_pretrained("saved_from_local")
for name in ("saved", "saved_from_local"):
    results[name] = sorted(path.name for path in Path(name).iterdir())
    results[f"segments of {name}"] = summarize(
        pipeline("image-segmentation", model=name, trust_remote_code=True), photo
    )
model.save_pretrained("saved_without_code", with_code=False)
results["saved without code"] = sorted(path.name for path in Path("saved_without_code").iterdir())
Path(result_file).write_text(json.dumps(results))
