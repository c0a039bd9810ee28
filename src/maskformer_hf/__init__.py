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
    from .models.configuration_maskformer import MaskFormerHfConfig as MaskFormerConfig
    from .models.configuration_per_pixel import MaskFormerHfPerPixelConfig as PerPixelBaselineConfig
    from .models.configuration_video import MaskFormerHfVideoConfig as MaskFormerVideoConfig
    from .models.image_processing_maskformer import MaskFormerHfImageProcessor as MaskFormerImageProcessor
    from .models.modeling_maskformer import MaskFormerHfForUniversalSegmentation as MaskFormerForInstanceSegmentation
    from .models.modeling_maskformer import MaskFormerHfForUniversalSegmentation as MaskFormerForUniversalSegmentation
    from .models.modeling_maskformer import MaskFormerHfModel as MaskFormerModel
    from .models.modeling_per_pixel import MaskFormerHfPerPixelBaseline as PerPixelBaseline
    from .models.modeling_video import MaskFormerHfForVideoSegmentation as MaskFormerForVideoSegmentation
    from .models.modeling_video import MaskFormerHfVideoModel as MaskFormerVideoModel
    from .models.video_processing_maskformer import MaskFormerHfVideoProcessor as MaskFormerVideoProcessor
    from .visualize import draw_segmentation

__version__: str

# Public name -> where it is; imported when first asked for. The names of the classes are transformers', so that code
# written for its MaskFormer moves over. What is saved says "MaskFormerHf...": names that transformers does not have, so
# that it can never load a class of its own in their place. `MaskFormerForInstanceSegmentation` is the only second name:
# transformers calls its one class so, where ours is named after the Auto class that takes it.
_PUBLIC = {
    "MaskFormerConfig": "models.configuration_maskformer.MaskFormerHfConfig",
    "MaskFormerForInstanceSegmentation": "models.modeling_maskformer.MaskFormerHfForUniversalSegmentation",
    "MaskFormerForUniversalSegmentation": "models.modeling_maskformer.MaskFormerHfForUniversalSegmentation",
    "MaskFormerForVideoSegmentation": "models.modeling_video.MaskFormerHfForVideoSegmentation",
    "MaskFormerImageProcessor": "models.image_processing_maskformer.MaskFormerHfImageProcessor",
    "MaskFormerImageSegmentationPipeline": "inference.pipeline.MaskFormerImageSegmentationPipeline",
    "MaskFormerModel": "models.modeling_maskformer.MaskFormerHfModel",
    "MaskFormerVideoConfig": "models.configuration_video.MaskFormerHfVideoConfig",
    "MaskFormerVideoModel": "models.modeling_video.MaskFormerHfVideoModel",
    "MaskFormerVideoProcessor": "models.video_processing_maskformer.MaskFormerHfVideoProcessor",
    "PerPixelBaseline": "models.modeling_per_pixel.MaskFormerHfPerPixelBaseline",
    "PerPixelBaselineConfig": "models.configuration_per_pixel.MaskFormerHfPerPixelConfig",
    "Prediction": "inference.prediction.Prediction",
    "VideoPrediction": "inference.video.VideoPrediction",
    "bundled_checkpoints": "inference.load.bundled_checkpoints",
    "draw_segmentation": "visualize.draw_segmentation",
    "load": "inference.load.load",
    "predict": "inference.predict.predict",
    "predict_video": "inference.video.predict_video",
}

__all__ = [
    "MaskFormerConfig",
    "MaskFormerForInstanceSegmentation",
    "MaskFormerForUniversalSegmentation",
    "MaskFormerForVideoSegmentation",
    "MaskFormerImageProcessor",
    "MaskFormerImageSegmentationPipeline",
    "MaskFormerModel",
    "MaskFormerVideoConfig",
    "MaskFormerVideoModel",
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
    module, _, attribute = _PUBLIC[name].rpartition(".")
    value = getattr(import_module(f".{module}", __name__), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def register() -> None:
    """Make transformers' Auto classes and `pipeline` find our models, and `from_pretrained` the bundled checkpoints.

    The import does it; twice changes nothing.
    """
    _check_torchvision()
    import transformers

    from .inference.pipeline import register_pipeline
    from .models.auto_classes import MODELS, PROCESSORS, class_of
    from .models.remote_code import register_checkpoints

    for model_type, auto_map in MODELS.items():
        classes = {name: class_of(reference) for name, reference in {**auto_map, **PROCESSORS[model_type]}.items()}
        config_class = classes.pop("AutoConfig")
        transformers.AutoConfig.register(model_type, config_class, exist_ok=True)
        for name, registered in classes.items():
            auto_class = getattr(transformers, name)
            if name == "AutoImageProcessor":
                # Under both keys: a "pil" entry alone warns wherever torchvision is installed.
                backends = dict.fromkeys(("pil", "torchvision"), registered)
                auto_class.register(config_class, image_processor_classes=backends, exist_ok=True)
            else:
                auto_class.register(config_class, registered, exist_ok=True)
    register_checkpoints(Path(__file__).parent / "checkpoints")
    register_pipeline()


def _check_torchvision() -> None:
    """Name a torchvision that cannot be imported, and the reason: transformers' own error has neither."""
    try:
        import torchvision  # noqa: F401
    except ImportError:
        # It is not installed. Only the image processor needs it, and says so.
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
