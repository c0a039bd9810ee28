"""Our checkpoints in SAHI (https://github.com/obss/sahi), which cuts photos into slices and merges what it finds.

SAHI knows models of transformers by the names of their classes, and ours have other names. `predict` with a
`tile_size` needs no SAHI, and joins objects across tiles instead of suppressing all but one part.
"""

import copy
from typing import Any

from sahi.models.huggingface_segmentation import HuggingfaceSegmentationModel

from ..models.saved_facts import copy_facts
from .load import load
from .views_of_models import private_view


class SahiModel(HuggingfaceSegmentationModel):
    """A `detection_model` of SAHI, such as `sahi.predict.get_sliced_prediction` takes.

    Args:
        model_path: What `load` takes: a bundled name, a folder or a name on the Hub. Or `model` and `processor`, which
            are left as they are.
        segmentation_type: SAHI's enumeration of instance, semantic and panoptic.
        image_size: Side of the square to which slices are resized; the checkpoint's own rule if None.
    """

    def load_model(self) -> None:
        model, processor = load(str(self.model_path), self.device)
        if self.image_size is not None:
            processor.size = {"height": self.image_size, "width": self.image_size}
        self.set_model(model, processor)

    def set_model(self, model: Any, processor: Any = None, **kwargs: Any) -> None:
        processor = processor or self.processor
        if processor is None:
            raise ValueError("SahiModel needs the processor of its model: give processor=, or model_path=.")
        if model.config.kind == "clip" or model.config.is_per_pixel:
            raise ValueError("SAHI merges segments of photos, which this model does not find: use `predict`.")
        self.model = private_view(model).eval().to(self.device)
        # The processor reads results alone, and may be of another checkpoint.
        self._processor = copy.deepcopy(processor)
        copy_facts(model.config, self._processor)
        self.category_mapping = model.config.id2label
