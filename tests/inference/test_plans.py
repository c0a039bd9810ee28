"""Plans: which one is chosen, and that one of one's own can do what those to come will need."""

from itertools import count

import numpy as np
import pytest
import torch
from PIL import Image

from maskformer_hf import Prediction, predict
from maskformer_hf.inference.batches import forward_batch
from maskformer_hf.inference.plans import Tiles, View
from maskformer_hf.models import parts
from maskformer_hf.models.modeling_maskformer import image_sizes_of, size_rows
from maskformer_hf.models.result_options import ResultOptions
from maskformer_hf.models.results import class_scores_of


@pytest.fixture
def photo(photo_paths):
    return Image.open(photo_paths[0]).convert("RGB").resize((150, 110))


@pytest.fixture
def register(monkeypatch):
    """Registers a plan for as long as a test lasts."""

    def register(name, part):
        monkeypatch.setitem(parts._TABLE, "plan", dict(parts._TABLE["plan"]))
        parts.register("plan", name, part)

    return register


@pytest.fixture
def num_images(tiny_model, monkeypatch):
    """How many images each batch had."""
    counts = []
    forward = tiny_model.forward

    def spy(pixel_values, **kwargs):
        counts.append(len(pixel_values))
        return forward(pixel_values, **kwargs)

    monkeypatch.setattr(tiny_model, "forward", spy)
    return counts


def test_the_plan_is_chosen_by_name_or_by_the_size_of_tiles(tiny_model, tiny_processor, photo, num_images):
    for options, expected in (
        ({}, 1),
        ({"plan": "whole"}, 1),
        ({"tile_size": 80, "tile_overlap": 0}, 4),
        ({"plan": "tiles", "tile_size": 80, "tile_overlap": 0}, 4),
        ({"plan": "whole", "tile_size": 80}, 1),
        ({"plan": "tiles", "tile_size": 150}, 1),
    ):
        num_images.clear()
        predict(tiny_model, tiny_processor, photo, task="semantic", **options)
        assert sum(num_images) == expected, options


def test_what_is_wrong_is_named(tiny_model, tiny_processor, photo, register):
    with pytest.raises(ValueError, match=r"plan.*'whole', 'tiles'.*'mirrors'"):
        predict(tiny_model, tiny_processor, photo, plan="mirrors")
    with pytest.raises(ValueError, match="'tiles' needs `tile_size`"):
        predict(tiny_model, tiny_processor, photo, plan="tiles")

    def refuse(config):
        raise ValueError(f"no mirrors for {config.num_queries} queries")

    register("mirrors", parts.Part(Mirrors, check=refuse))
    with pytest.raises(ValueError, match="no mirrors for 12 queries"):
        predict(tiny_model, tiny_processor, photo, plan="mirrors")


class Mirrors:
    """Merges scores, not results: the mean of the class scores of a photo and of its mirror image."""

    num_views = 2
    unit = "mirror"

    def __init__(self, request):
        self.request = request
        self.scores = 0

    def views(self):
        for image in (self.request.image, self.request.image.flip(-1)):
            yield View(self.request.processor.preprocess([image], return_tensors="pt"))

    def add(self, number, outputs):
        [scores] = class_scores_of(outputs, self.request.options, [self.request.size])
        self.scores += scores.flip(-1) if number else scores

    def result(self):
        return Prediction("semantic", self.request.size, segmentation=self.scores.argmax(0))


def test_a_plan_can_merge_scores(tiny_model, tiny_processor, photo, register, num_images):
    register("mirrors", parts.Part(Mirrors))
    small = photo.resize((60, 60))
    found = predict(tiny_model, tiny_processor, [photo, small, photo], task="semantic", plan="mirrors", batch_size=4)
    # The views of one photo share a batch with those of another.
    assert sorted(num_images) == [2, 4]
    for image, prediction in zip((photo, small, photo), found, strict=True):
        size = (image.height, image.width)
        expected = 0
        for turn in (lambda pixels: pixels, lambda pixels: pixels[:, ::-1]):
            inputs = tiny_processor(images=[turn(np.array(image)).copy()], return_tensors="pt")
            with torch.no_grad():
                outputs = tiny_model(**inputs)
            [scores] = class_scores_of(outputs, ResultOptions("semantic"), [size])
            expected = expected + torch.from_numpy(turn(scores.numpy().transpose(1, 2, 0)).copy())
        assert prediction.size == tuple(prediction.segmentation.shape) == size
        assert (prediction.segmentation != expected.argmax(-1)).float().mean() < 1e-3


class GlobalQueries(Tiles):
    """Encodes the photo and decodes its queries once; each tile gives pixel embeddings of its own only."""

    def views(self):
        request, model = self.request, self.request.model.model
        pixel_values = request.processor.preprocess([request.image], return_tensors="pt")["pixel_values"]
        self.ask = model.ask(pixel_values)
        self.decoded = model.decode(model.encode(pixel_values, self.ask), self.ask)
        for view in super().views():
            yield View(view.inputs, self.masks_of_tile)

    def masks_of_tile(self, model, inputs):
        [tile] = inputs
        pixels = tile["pixel_values"]
        found = model.head(self.decoded, model.model.encode(pixels, self.ask), self.ask)[-1]
        return model.output_class(
            class_queries_logits=found.class_logits[-1],
            masks=found.masks,
            image_sizes=image_sizes_of(pixels, tile["pixel_mask"], self.ask),
            padded_sizes=size_rows(pixels, pixels.shape[-2:]),
        )


def test_a_plan_can_decode_queries_once_for_all_tiles(tiny_model, tiny_processor, photo, register, monkeypatch):
    register("global_queries", parts.Part(GlobalQueries))
    encoded, decoded = [], []
    for name, calls in (("encode", encoded), ("decode", decoded)):
        method = getattr(tiny_model.model, name)
        monkeypatch.setattr(
            tiny_model.model, name, lambda *args, _method=method, _calls=calls: _calls.append(1) or _method(*args)
        )
    options = {"task": "panoptic", "threshold": 0.3}
    [found] = predict(tiny_model, tiny_processor, photo, plan="global_queries", tile_size=80, tile_overlap=0, **options)
    assert (len(encoded), len(decoded)) == (5, 1)
    assert found.size == tuple(found.segmentation.shape) == (photo.height, photo.width)
    assert found.segments
    [one] = predict(tiny_model, tiny_processor, photo, plan="global_queries", tile_size=150, **options)
    [whole] = predict(tiny_model, tiny_processor, photo, **options)
    # Merging numbers segments anew.
    assert [(s["label"], s["area"]) for s in one.segments] == [(s["label"], s["area"]) for s in whole.segments]


def test_views_may_run_something_else_than_the_model(tiny_model, tiny_processor, photo, register, num_images):
    runs = []

    def forward_alone(model, inputs):
        runs.append(len(inputs))
        return forward_batch(model, inputs)

    class Two:
        """Runs a photo whole, and its mirror image by a function of its own; shows how often the model ran."""

        num_views = 2
        unit = "view"
        numbers = count()

        def __init__(self, request):
            self.request = request
            self.received = []

        def views(self):
            inputs = self.request.processor.preprocess([self.request.image], return_tensors="pt")
            yield View(inputs)
            yield View(inputs, forward_alone)

        def add(self, number, outputs):
            assert len(outputs.class_queries_logits) == 1
            self.received.append(number)

        def result(self):
            return Prediction("semantic", self.request.size, [{"id": next(self.numbers), "views": self.received}])

    register("two", parts.Part(Two))
    found = predict(tiny_model, tiny_processor, [photo] * 3, task="semantic", plan="two", batch_size=2)
    assert runs == [2, 1]
    assert num_images == [2, 2, 1, 1]
    assert [prediction.segments for prediction in found] == [[{"id": index, "views": [0, 1]}] for index in range(3)]
