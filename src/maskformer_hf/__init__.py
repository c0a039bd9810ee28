"""The MaskFormer family for Hugging Face.

Importing this package registers its models with transformers' Auto classes and with `transformers.pipeline`.
"""

import sys
import sysconfig
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .inference.load import bundled_checkpoints, load
    from .inference.pipeline import MaskFormerImageSegmentationPipeline
    from .inference.predict import predict
    from .inference.prediction import Prediction
    from .inference.video import VideoPrediction, predict_video
    from .models.configuration_maskformer import MaskFormerHfConfig
    from .models.configuration_maskformer import MaskFormerHfConfig as MaskFormerConfig
    from .models.configuration_per_pixel import MaskFormerHfPerPixelConfig
    from .models.configuration_per_pixel import MaskFormerHfPerPixelConfig as PerPixelBaselineConfig
    from .models.configuration_video import MaskFormerHfVideoConfig
    from .models.configuration_video import MaskFormerHfVideoConfig as MaskFormerVideoConfig
    from .models.image_processing_maskformer import MaskFormerHfImageProcessor
    from .models.image_processing_maskformer import MaskFormerHfImageProcessor as MaskFormerImageProcessor
    from .models.modeling_maskformer import MaskFormerHfForUniversalSegmentation, MaskFormerHfModel
    from .models.modeling_maskformer import MaskFormerHfForUniversalSegmentation as MaskFormerForInstanceSegmentation
    from .models.modeling_maskformer import MaskFormerHfForUniversalSegmentation as MaskFormerForUniversalSegmentation
    from .models.modeling_maskformer import MaskFormerHfModel as MaskFormerModel
    from .models.modeling_per_pixel import MaskFormerHfPerPixelBaseline
    from .models.modeling_per_pixel import MaskFormerHfPerPixelBaseline as PerPixelBaseline
    from .models.modeling_video import MaskFormerHfForVideoSegmentation, MaskFormerHfVideoModel
    from .models.modeling_video import MaskFormerHfForVideoSegmentation as MaskFormerForVideoSegmentation
    from .models.video_processing_maskformer import MaskFormerHfVideoProcessor
    from .models.video_processing_maskformer import MaskFormerHfVideoProcessor as MaskFormerVideoProcessor
    from .visualize import draw_segmentation

__version__: str

# Public name -> module and name in it; imported when first asked for. The aliases are transformers' names, so that code
# written for its MaskFormer moves over; what is saved carries the names on the right, which transformers has not.
_PUBLIC = {
    "MaskFormerConfig": ("models.configuration_maskformer", "MaskFormerHfConfig"),
    "MaskFormerForInstanceSegmentation": ("models.modeling_maskformer", "MaskFormerHfForUniversalSegmentation"),
    "MaskFormerForUniversalSegmentation": ("models.modeling_maskformer", "MaskFormerHfForUniversalSegmentation"),
    "MaskFormerForVideoSegmentation": ("models.modeling_video", "MaskFormerHfForVideoSegmentation"),
    "MaskFormerHfConfig": ("models.configuration_maskformer", "MaskFormerHfConfig"),
    "MaskFormerHfForUniversalSegmentation": ("models.modeling_maskformer", "MaskFormerHfForUniversalSegmentation"),
    "MaskFormerHfForVideoSegmentation": ("models.modeling_video", "MaskFormerHfForVideoSegmentation"),
    "MaskFormerHfImageProcessor": ("models.image_processing_maskformer", "MaskFormerHfImageProcessor"),
    "MaskFormerHfModel": ("models.modeling_maskformer", "MaskFormerHfModel"),
    "MaskFormerHfPerPixelBaseline": ("models.modeling_per_pixel", "MaskFormerHfPerPixelBaseline"),
    "MaskFormerHfPerPixelConfig": ("models.configuration_per_pixel", "MaskFormerHfPerPixelConfig"),
    "MaskFormerHfVideoConfig": ("models.configuration_video", "MaskFormerHfVideoConfig"),
    "MaskFormerHfVideoModel": ("models.modeling_video", "MaskFormerHfVideoModel"),
    "MaskFormerHfVideoProcessor": ("models.video_processing_maskformer", "MaskFormerHfVideoProcessor"),
    "MaskFormerImageProcessor": ("models.image_processing_maskformer", "MaskFormerHfImageProcessor"),
    "MaskFormerImageSegmentationPipeline": ("inference.pipeline", "MaskFormerImageSegmentationPipeline"),
    "MaskFormerModel": ("models.modeling_maskformer", "MaskFormerHfModel"),
    "MaskFormerVideoConfig": ("models.configuration_video", "MaskFormerHfVideoConfig"),
    "MaskFormerVideoProcessor": ("models.video_processing_maskformer", "MaskFormerHfVideoProcessor"),
    "PerPixelBaseline": ("models.modeling_per_pixel", "MaskFormerHfPerPixelBaseline"),
    "PerPixelBaselineConfig": ("models.configuration_per_pixel", "MaskFormerHfPerPixelConfig"),
    "Prediction": ("inference.prediction", "Prediction"),
    "VideoPrediction": ("inference.video", "VideoPrediction"),
    "bundled_checkpoints": ("inference.load", "bundled_checkpoints"),
    "draw_segmentation": ("visualize", "draw_segmentation"),
    "load": ("inference.load", "load"),
    "predict": ("inference.predict", "predict"),
    "predict_video": ("inference.video", "predict_video"),
}

__all__ = [
    "MaskFormerConfig",
    "MaskFormerForInstanceSegmentation",
    "MaskFormerForUniversalSegmentation",
    "MaskFormerForVideoSegmentation",
    "MaskFormerHfConfig",
    "MaskFormerHfForUniversalSegmentation",
    "MaskFormerHfForVideoSegmentation",
    "MaskFormerHfImageProcessor",
    "MaskFormerHfModel",
    "MaskFormerHfPerPixelBaseline",
    "MaskFormerHfPerPixelConfig",
    "MaskFormerHfVideoConfig",
    "MaskFormerHfVideoModel",
    "MaskFormerHfVideoProcessor",
    "MaskFormerImageProcessor",
    "MaskFormerImageSegmentationPipeline",
    "MaskFormerModel",
    "MaskFormerVideoConfig",
    "MaskFormerVideoProcessor",
    "PerPixelBaseline",
    "PerPixelBaselineConfig",
    "Prediction",
    "VideoPrediction",
    "__version__",
    "bundled_checkpoints",
    "draw_segmentation",
    "load",
    "predict",
    "predict_video",
    "register",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("maskformer-hf")
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _PUBLIC[name]
    value = getattr(import_module(f".{module}", __name__), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def register() -> None:
    """Make transformers' Auto classes and `pipeline` find our models. The import does it; twice changes nothing."""
    _check_torchvision()
    from transformers import (
        AutoConfig,
        AutoImageProcessor,
        AutoModel,
        AutoModelForImageSegmentation,
        AutoModelForInstanceSegmentation,
        AutoModelForSemanticSegmentation,
        AutoModelForUniversalSegmentation,
        AutoVideoProcessor,
    )

    from .inference.pipeline import register_pipeline
    from .models.configuration_maskformer import MaskFormerHfConfig
    from .models.configuration_per_pixel import MaskFormerHfPerPixelConfig
    from .models.configuration_video import MaskFormerHfVideoConfig
    from .models.image_processing_maskformer import MaskFormerHfImageProcessor
    from .models.modeling_maskformer import MaskFormerHfForUniversalSegmentation, MaskFormerHfModel
    from .models.modeling_per_pixel import MaskFormerHfPerPixelBaseline
    from .models.modeling_video import MaskFormerHfForVideoSegmentation, MaskFormerHfVideoModel
    from .models.video_processing_maskformer import MaskFormerHfVideoProcessor

    AutoConfig.register(MaskFormerHfConfig.model_type, MaskFormerHfConfig, exist_ok=True)
    AutoModel.register(MaskFormerHfConfig, MaskFormerHfModel, exist_ok=True)
    for auto_class in (
        AutoModelForUniversalSegmentation,
        AutoModelForInstanceSegmentation,
        # `pipeline` asks these two and no other; the first of them is to be deprecated.
        AutoModelForImageSegmentation,
        AutoModelForSemanticSegmentation,
    ):
        auto_class.register(MaskFormerHfConfig, MaskFormerHfForUniversalSegmentation, exist_ok=True)
    AutoConfig.register(MaskFormerHfPerPixelConfig.model_type, MaskFormerHfPerPixelConfig, exist_ok=True)
    for auto_class in (AutoModelForImageSegmentation, AutoModelForSemanticSegmentation):
        auto_class.register(MaskFormerHfPerPixelConfig, MaskFormerHfPerPixelBaseline, exist_ok=True)
    AutoConfig.register(MaskFormerHfVideoConfig.model_type, MaskFormerHfVideoConfig, exist_ok=True)
    AutoModel.register(MaskFormerHfVideoConfig, MaskFormerHfVideoModel, exist_ok=True)
    AutoModelForUniversalSegmentation.register(MaskFormerHfVideoConfig, MaskFormerHfForVideoSegmentation, exist_ok=True)
    AutoVideoProcessor.register(MaskFormerHfVideoConfig, MaskFormerHfVideoProcessor, exist_ok=True)
    processors = {
        MaskFormerHfConfig: MaskFormerHfImageProcessor,
        MaskFormerHfPerPixelConfig: MaskFormerHfImageProcessor,
        MaskFormerHfVideoConfig: MaskFormerHfVideoProcessor,
    }
    for config_class, processor in processors.items():
        # Under both keys: a "pil" entry alone warns wherever torchvision is installed.
        AutoImageProcessor.register(
            config_class, image_processor_classes={"pil": processor, "torchvision": processor}, exist_ok=True
        )
    register_pipeline()


def _check_torchvision() -> None:
    """Of a torchvision that cannot be imported, transformers says neither its name nor the reason."""
    try:
        import torchvision  # noqa: F401
    except ImportError:
        # Not there at all: only the image processor needs it, and says so.
        pass
    except RuntimeError as error:
        raise ImportError(
            f"torchvision cannot be imported ({error}), because its compiled operators are missing or belong to "
            "another torch: install the torchvision that fits."
        ) from error


def _starts_command_line() -> bool:
    """Whether this process is the `maskformer` script or `python -m maskformer_hf`, which register nothing.

    Registering takes seconds, because transformers can only be told of classes that are imported already, and
    `maskformer --help` needs none. Both ways to start import this file before a line of the command runs, so the
    arguments of the process are all there is to know it by.
    """
    program = sys.argv[0] if sys.argv else ""
    if program == "-m":
        # Python's placeholder while it looks for the module, whose name stands before the arguments.
        return sys.orig_argv[-len(sys.argv) :][:1] == [__name__]
    scripts = Path(sysconfig.get_path("scripts")).resolve()
    return Path(program).stem == "maskformer" and Path(program).resolve().parent == scripts


if not _starts_command_line():
    register()
