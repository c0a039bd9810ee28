"""The code that goes to the Hub with a checkpoint, so that it works where this package is not installed.

With `trust_remote_code=True` transformers imports the files that `auto_map`, in config.json and
preprocessor_config.json, names in the same folder. `save_pretrained` writes neither: a folder of one's own needs no
copy of the package. Whatever is uploaded gets both. Where the package is imported its classes are taken and not the
uploaded ones, and no flag is needed.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from transformers.dynamic_module_utils import get_relative_import_files
from transformers.utils import PushToHubMixin

_UNIVERSAL = "modeling_maskformer.MaskFormerHfForUniversalSegmentation"
_PER_PIXEL = "modeling_per_pixel.MaskFormerHfPerPixelBaseline"
_VIDEO = "modeling_video.MaskFormerHfForVideoSegmentation"
# By `model_type`: each of transformers' Auto classes, and the file and class it takes.
MODELS = {
    "maskformer_hf": {
        "AutoConfig": "configuration_maskformer.MaskFormerHfConfig",
        "AutoModel": "modeling_maskformer.MaskFormerHfModel",
        # `pipeline` asks this one and the next, and no other.
        "AutoModelForImageSegmentation": _UNIVERSAL,
        "AutoModelForSemanticSegmentation": _UNIVERSAL,
        "AutoModelForUniversalSegmentation": _UNIVERSAL,
        "AutoModelForInstanceSegmentation": _UNIVERSAL,
    },
    "maskformer_hf_per_pixel": {
        "AutoConfig": "configuration_per_pixel.MaskFormerHfPerPixelConfig",
        "AutoModelForImageSegmentation": _PER_PIXEL,
        "AutoModelForSemanticSegmentation": _PER_PIXEL,
    },
    "maskformer_hf_video": {
        "AutoConfig": "configuration_video.MaskFormerHfVideoConfig",
        "AutoModel": "modeling_video.MaskFormerHfVideoModel",
        "AutoModelForUniversalSegmentation": _VIDEO,
    },
}
IMAGE_PROCESSOR = {"AutoImageProcessor": "image_processing_maskformer.MaskFormerHfImageProcessor"}
VIDEO_PROCESSOR = dict.fromkeys(
    ("AutoImageProcessor", "AutoVideoProcessor"), "video_processing_maskformer.MaskFormerHfVideoProcessor"
)


class CodeOnTheHub(PushToHubMixin):
    """Makes `push_to_hub` and `save_pretrained(push_to_hub=True)` upload the code along with the files they write."""

    def _upload_modified_files(self, working_dir: Any, *args: Any, **kwargs: Any) -> Any:
        # What both of them call when the folder is complete.
        add_code(working_dir, Path(sys.modules[type(self).__module__].__file__ or "").parent)
        return super()._upload_modified_files(working_dir, *args, **kwargs)


def add_code(folder: str | Path, source: Path = Path(__file__).parent) -> None:
    """Complete config.json and preprocessor_config.json, whichever is in `folder`, with `auto_map` and its files.

    Args:
        source: The folder of the code. A class that itself came from the Hub lies in transformers' cache, which holds
            only the files that have been needed; what is not there is not named either.
    """
    for name in ("config.json", "preprocessor_config.json"):
        path = Path(folder) / name
        if not path.is_file():
            continue
        content = json.loads(path.read_text(encoding="utf-8"))
        if name == "config.json":
            auto_map = MODELS[content["model_type"]]
        else:
            is_video = content.get("image_processor_type") == "MaskFormerHfVideoProcessor"
            auto_map = VIDEO_PROCESSOR if is_video else IMAGE_PROCESSOR
        auto_map = {key: value for key, value in auto_map.items() if _file_of(value, source).is_file()}
        path.write_text(json.dumps({**content, "auto_map": auto_map}, indent=2) + "\n", encoding="utf-8")
        for entry in {_file_of(value, source) for value in auto_map.values()}:
            for file in (entry, *map(Path, get_relative_import_files(entry))):
                shutil.copyfile(file, Path(folder) / file.name)


def _file_of(reference: str, source: Path) -> Path:
    return source / f"{reference.partition('.')[0]}.py"
