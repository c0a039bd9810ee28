"""Our image classes under transformers' own common tests. `test_common_tests.py` runs this file and judges the results.

To run it alone: `pytest -o addopts=--import-mode=importlib tests/parity/common_tests.py`, with the folder of
transformers' tests in TRANSFORMERS_TESTS.
"""

import operator
import os
import unittest
from pathlib import Path
from typing import Any

import torch

from builders import tiny_config
from maskformer_hf import (
    MaskFormerForUniversalSegmentation,
    MaskFormerImageProcessor,
    MaskFormerModel,
    PerPixelBaseline,
)
from maskformer_hf.models import modeling_outputs
from tests.parity.sdist import import_tests

import_tests(Path(os.environ["TRANSFORMERS_TESTS"]))
from transformers_tests import test_modeling_common  # noqa: E402
from transformers_tests.test_image_processing_common import (  # noqa: E402
    ImageProcessingTester,
    ImageProcessingTestMixin,
    PostProcessSemanticSegmentationTestMixin,
)

HEIGHT, WIDTH = 64, 96
# Their tests know one list of hidden states and one of attentions; here each part of a model has its own.
NAMES = {"hidden_states": "transformer_decoder_hidden_states", "attentions": "decoder_attentions"}
# They know by name which classes have no loss, and which are for semantic segmentation.
KNOWN = {
    id(test_modeling_common.MODEL_MAPPING_NAMES): MaskFormerModel.__name__,
    id(test_modeling_common.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES): PerPixelBaseline.__name__,
}


def translate_names(output_class: type) -> None:
    get = output_class.__getitem__
    output_class.__getitem__ = lambda self, key: get(self, NAMES.get(key, key))
    for name, own_name in NAMES.items():
        setattr(output_class, name, property(operator.attrgetter(own_name)))


for name in (
    "MaskFormerHfModelOutput",
    "MaskFormerHfForUniversalSegmentationOutput",
    "MaskFormerHfForSemanticSegmentationOutput",
):
    translate_names(getattr(modeling_outputs, name))
get_values = test_modeling_common.get_values
test_modeling_common.get_values = lambda mapping: [*get_values(mapping), KNOWN.get(id(mapping))]


class ModelTester:
    """What the common tests ask a model's own tests for."""

    batch_size, num_labels, is_training = 2, 3, True
    # Those of the encoder, the pixel decoder and the transformer decoder.
    num_hidden_states_types = 3

    def __init__(self, kind: str, fields: dict[str, Any]):
        self.kind, self.fields = kind, fields
        config = self.get_config()
        self.num_hidden_layers = config.decoder_layers
        # The first prediction of Mask2Former is made of the learned queries.
        self.expected_num_hidden_layers = config.decoder_layers + (kind == "mask2former")
        self.num_attention_heads = config.num_attention_heads
        self.hidden_size = config.hidden_size
        self.seq_length = config.num_queries

    def get_config(self):
        return tiny_config(self.kind, num_labels=self.num_labels, **self.fields)

    def prepare_config_and_inputs_for_common(self):
        return self.get_config(), {"pixel_values": torch.randn(self.batch_size, 3, HEIGHT, WIDTH)}


class ModelTests(test_modeling_common.ModelTesterMixin):
    kind: str
    fields: dict[str, Any] = {}  # noqa: RUF012
    # No words: there is nothing to resize.
    test_resize_embeddings = False
    # They ask it of models since 2023, and take our files, which have no such line, for older.
    test_can_init_all_missing_weights_before_2023 = True

    def setUp(self):
        self.model_tester = ModelTester(self.kind, self.fields)


class MaskFormerTest(ModelTests, unittest.TestCase):
    kind = "maskformer"
    all_model_classes = (MaskFormerModel, MaskFormerForUniversalSegmentation)

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
        if return_labels and model_class is MaskFormerForUniversalSegmentation:
            masks = torch.zeros(2, HEIGHT, WIDTH, dtype=torch.bool)
            masks[0, : HEIGHT // 2] = masks[1, HEIGHT // 2 :] = True
            inputs["mask_labels"] = [masks] * self.model_tester.batch_size
            inputs["class_labels"] = [torch.tensor([0, 2])] * self.model_tester.batch_size
        return inputs


class Mask2FormerTest(MaskFormerTest):
    kind = "mask2former"
    fields: dict[str, Any] = {"decoder_layers": 2}  # noqa: RUF012


class PerPixelTest(ModelTests, unittest.TestCase):
    kind = "per_pixel"
    fields: dict[str, Any] = {"transformer_decoder": "detr"}  # noqa: RUF012
    all_model_classes = (PerPixelBaseline,)


class ProcessorTester(ImageProcessingTester):
    num_labels = 3

    def __init__(self, parent):
        super().__init__(parent, size={"shortest_edge": 32, "longest_edge": 64})

    def _get_image_processing_classes(self):
        return {"torchvision": MaskFormerImageProcessor}

    def expected_output_image_shape(self, images):
        """Theirs, padded to a multiple of 32."""
        channels, *sides = super().expected_output_image_shape(images)
        return channels, *(-(-side // 32) * 32 for side in sides)

    def prepare_post_process_semantic_segmentation_inputs(self):
        size = torch.tensor([[HEIGHT, WIDTH]] * self.batch_size)
        logits = torch.randn(self.batch_size, self.num_labels, HEIGHT // 4, WIDTH // 4)
        outputs = modeling_outputs.MaskFormerHfForSemanticSegmentationOutput(
            logits=logits, image_sizes=size, padded_sizes=size
        )
        return {"outputs": outputs}, {"num_labels": self.num_labels, "height": HEIGHT, "width": WIDTH}


class ImageProcessorTest(ImageProcessingTestMixin, PostProcessSemanticSegmentationTestMixin, unittest.TestCase):
    image_processor_tester_class = ProcessorTester
