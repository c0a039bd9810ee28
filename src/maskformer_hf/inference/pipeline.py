"""`transformers.pipeline("image-segmentation")` for our models; every other model gets the pipeline it always got.

The stock pipeline cannot batch photos of different shapes, starts with the panoptic task whatever the checkpoint was
trained for, has no score for semantic segments and no option `label_ids_to_fuse`. Where this module is not imported,
or `transformers.ImageSegmentationPipeline` is called by its name, those limits hold for our models too.
"""

from collections.abc import Collection, Iterable, Iterator
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader
from transformers.pipelines import PIPELINE_REGISTRY, ImageSegmentationPipeline
from transformers.pipelines.pt_utils import PipelineDataset, PipelineIterator

from ..models.result_options import ResultOptions
from ..models.results import results_of
from .batches import forward_batch, padded_size, same_size_batches, slice_outputs
from .images import image_size, preprocess, read_image, reading_of
from .predict import check_task
from .prediction import Prediction
from .views_of_models import private_view

TASK_NAME = "image-segmentation"
MODEL_TYPES = ("maskformer_hf", "maskformer_hf_per_pixel")


class MaskFormerImageSegmentationPipeline(ImageSegmentationPipeline):
    """Photos to `[{"score", "label", "mask"}, ...]`, where `mask` is a PIL image of 0 and 255 in the photo's size.

    Takes what the stock pipeline takes, at construction or at a call, `label_ids_to_fuse`, and photos of every kind
    that `predict` takes. What is not given comes
    from the model's configuration: `subtask` is its `task`. With `batch_size`, photos that are padded to the same size
    run together, and the answers are those of one photo at a time. Photos are not cut into tiles, even if the
    checkpoint's image processor asks for it; `predict` does that.
    """

    # The pipeline that was registered before ours: a class, or its dotted name.
    _stock: Any = ImageSegmentationPipeline
    # Segmentation needs no video processor, and looking for one asks to trust code of the repository that nobody runs.
    _load_video_processor = False
    model: Any

    def __new__(cls, model: Any = None, *args: Any, **kwargs: Any):
        if getattr(getattr(model, "config", None), "model_type", None) in MODEL_TYPES:
            return super().__new__(cls)
        # Not an instance of this class, so Python leaves it as it is and calls no further `__init__`.
        return _resolve(cls._stock)(model, *args, **kwargs)

    def __init__(self, model: Any, *args: Any, **kwargs: Any) -> None:
        # The caller's model keeps its mode and stays on its device.
        super().__init__(private_view(model).eval(), *args, **kwargs)

    def check_model_type(self, supported_models: Any) -> None:
        """Our models are supported, though transformers' own table does not name them."""

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict, dict, dict]:
        preprocess, forward, postprocess = super()._sanitize_parameters(**kwargs)
        if "subtask" in postprocess:
            check_task(postprocess["subtask"], self.model)
        if "label_ids_to_fuse" in kwargs:
            postprocess["label_ids_to_fuse"] = kwargs["label_ids_to_fuse"]
        return preprocess, forward, postprocess

    def preprocess(self, image: Any, subtask: str | None = None, timeout: float | None = None) -> Any:
        """What `predict` takes as an image, to the inputs of the model."""
        reading = reading_of(self.image_processor)
        read = read_image(image, "The image", reading, timeout=timeout)
        inputs = preprocess(self.image_processor, read).to(self.dtype)
        inputs["target_size"] = [image_size(read)]
        return inputs

    def get_iterator(
        self,
        inputs: Any,
        num_workers: int,
        batch_size: int,
        preprocess_params: dict,
        forward_params: dict,
        postprocess_params: dict,
    ) -> Any:
        make_dataset = PipelineDataset if hasattr(inputs, "__len__") else PipelineIterator
        dataset = make_dataset(inputs, self.preprocess, preprocess_params)
        if hasattr(inputs, "__len__"):
            length = len(inputs)
        else:
            # Every worker would run through the whole stream.
            length, num_workers = None, min(num_workers, 1)
        loader = DataLoader(dataset, num_workers=num_workers, batch_size=batch_size, collate_fn=list)
        return _Results(self, loader, length, forward_params, postprocess_params)

    def _forward(self, model_inputs: Any) -> Any:
        """The inputs of one photo to its outputs, or a list to a list."""
        if not isinstance(model_inputs, list):
            return self._forward([model_inputs])[0]
        outputs: list[Any] = [None] * len(model_inputs)
        numbered = enumerate(model_inputs)
        for batch in same_size_batches(numbered, lambda item: padded_size(item[1])):
            found = forward_batch(self.model, [inputs for _, inputs in batch])
            for position, (index, inputs) in enumerate(batch):
                [target_size] = inputs["target_size"]
                outputs[index] = _Outputs(slice_outputs(found, position), tuple(target_size))
        return outputs

    def postprocess(
        self,
        model_outputs: "_Outputs",
        subtask: str | None = None,
        threshold: float | None = None,
        mask_threshold: float | None = None,
        overlap_mask_area_threshold: float | None = None,
        label_ids_to_fuse: Collection[int] | None = None,
    ) -> list[dict[str, Any]]:
        options = ResultOptions.of(
            self.model.config,
            check_task(subtask, self.model),
            threshold=threshold,
            mask_threshold=mask_threshold,
            overlap_mask_area_threshold=overlap_mask_area_threshold,
            label_ids_to_fuse=label_ids_to_fuse,
        )
        [result] = results_of(model_outputs.outputs, options, [model_outputs.target_size])
        prediction = Prediction.of(result, options.task, model_outputs.target_size, self.model.config.id2label)
        return [
            {
                "score": segment["score"],
                "label": segment["label"],
                "mask": Image.fromarray(prediction.mask(segment).numpy().astype(np.uint8) * 255),
            }
            for segment in prediction.segments
        ]


class _Outputs:
    """The outputs of one photo. The stock pipeline moves tensors and containers of tensors to the CPU. It does not look
    into this object, so results are made on the device of the model."""

    def __init__(self, outputs: Any, target_size: tuple[int, int]) -> None:
        self.outputs = outputs
        self.target_size = target_size


class _Results:
    """Answers in the order of the photos, made as they are asked for. It has a length if its input has one."""

    def __init__(
        self,
        pipeline: MaskFormerImageSegmentationPipeline,
        batches: Iterable[list],
        length: int | None,
        forward_params: dict,
        postprocess_params: dict,
    ):
        self.pipeline = pipeline
        self.batches = batches
        self.length = length
        self.forward_params = forward_params
        self.postprocess_params = postprocess_params
        self._iterator: Iterator[list[dict[str, Any]]] | None = None

    def __len__(self) -> int:
        if self.length is None:
            raise TypeError("A stream of images has no length.")
        return self.length

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        for batch in self.batches:
            for outputs in self.pipeline.forward(batch, **self.forward_params):
                yield self.pipeline.postprocess(outputs, **self.postprocess_params)

    def __next__(self) -> list[dict[str, Any]]:
        # Some callers take the first answer of a dataset by `next(pipe(dataset))`.
        if self._iterator is None:
            self._iterator = iter(self)
        return next(self._iterator)


def register_pipeline() -> None:
    """Let `transformers.pipeline("image-segmentation")` find this module. Doing it twice changes nothing."""
    entry = PIPELINE_REGISTRY.supported_tasks[TASK_NAME]
    if entry["impl"] is not MaskFormerImageSegmentationPipeline:
        MaskFormerImageSegmentationPipeline._stock = entry["impl"]
        entry["impl"] = MaskFormerImageSegmentationPipeline


def _resolve(implementation: Any) -> Any:
    """A pipeline class from what the registry holds, which is the class or its dotted name."""
    if isinstance(implementation, str):
        from importlib import import_module

        module, _, name = implementation.rpartition(".")
        return getattr(import_module(module), name)
    return implementation
