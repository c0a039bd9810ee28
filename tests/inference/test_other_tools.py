"""What supervision and SAHI expect of results and of models, tried with the packages themselves."""

import numpy as np
import pytest
import torch
from PIL import Image

from maskformer_hf import MaskFormerImageProcessor, predict


@pytest.fixture(scope="module")
def photo(photo_paths):
    return np.array(Image.open(photo_paths[0]).convert("RGB").resize((150, 110)))


@pytest.fixture(scope="module")
def outputs(tiny_model, tiny_processor, photo):
    with torch.inference_mode():
        return tiny_model(**tiny_processor(photo))


def test_ids_of_binary_maps_are_their_places(tiny_processor, outputs):
    [maps] = tiny_processor.post_process_instance_segmentation(outputs, 0.1, return_binary_maps=True)
    [drawn] = tiny_processor.post_process_instance_segmentation(outputs, 0.1)
    assert len(maps["segments_info"]) > 1
    assert [segment["id"] for segment in maps["segments_info"]] == list(range(len(maps["segmentation"])))
    # 0 is void in the map that all of them share.
    assert [segment["id"] for segment in drawn["segments_info"]] == list(range(1, len(maps["segmentation"]) + 1))


class TestSupervision:
    @pytest.fixture(scope="class", autouse=True)
    def sv(self):
        return pytest.importorskip("supervision", reason="pip install supervision")

    def test_instances(self, sv, tiny_model, tiny_processor, outputs, photo):
        labels, size = tiny_model.config.id2label, [photo.shape[:2]]
        for binary in (False, True):
            [result] = tiny_processor.post_process_instance_segmentation(
                outputs, 0.1, target_sizes=size, return_binary_maps=binary
            )
            found = sv.Detections.from_transformers(result, labels)
            assert len(found) > 1
            assert found.mask.shape == (len(found), *photo.shape[:2])
            for segment, mask, class_id, name, score in zip(
                result["segments_info"], found.mask, found.class_id, found["class_name"], found.confidence, strict=True
            ):
                assert (segment["label_id"], segment["score"]) == (class_id, score)
                assert labels[segment["label_id"]] == name
                if binary:
                    assert mask.sum() == segment["area"]
        assert np.array_equal(found.mask, result["masks"].numpy())
        [nothing] = tiny_processor.post_process_instance_segmentation(outputs, 1.0, target_sizes=size)
        assert len(sv.Detections.from_transformers(nothing, labels)) == 0

    def test_panoptic_segments(self, sv, tiny_model, tiny_processor, outputs, photo):
        [result] = tiny_processor.post_process_panoptic_segmentation(outputs, 0.3, target_sizes=[photo.shape[:2]])
        found = sv.Detections.from_transformers(result, tiny_model.config.id2label)
        assert len(found) == len(result["segments_info"]) > 1
        assert [mask.sum() for mask in found.mask] == [segment["area"] for segment in result["segments_info"]]

    def test_semantic_maps(self, sv, tiny_model, tiny_processor, outputs, photo):
        for scores in (False, True):
            [result] = tiny_processor.post_process_semantic_segmentation(
                outputs, [photo.shape[:2]], return_segmentation_scores=scores
            )
            found = sv.Detections.from_transformers(result, tiny_model.config.id2label)
            assert found.mask.sum() == photo.shape[0] * photo.shape[1]
            assert list(found["class_name"]) == [tiny_model.config.id2label[index] for index in found.class_id]


class TestSahi:
    @pytest.fixture(scope="class", autouse=True)
    def sahi(self):
        return pytest.importorskip("sahi", reason="pip install sahi")

    @pytest.mark.parametrize("how", ["path", "model"])
    def test_a_slice_gives_what_predict_gives(self, tiny_checkpoint, tiny_model, tiny_processor, photo, how):
        from sahi.predict import get_prediction

        from maskformer_hf.inference.sahi_model import SahiModel

        options = {"confidence_threshold": 0.2, "device": "cpu", "min_segment_area": 1}
        if how == "path":
            model = SahiModel(model_path=str(tiny_checkpoint), **options)
        else:
            model = SahiModel(model=tiny_model, processor=tiny_processor, **options)
        found = get_prediction(photo, model).object_prediction_list
        [expected] = predict(tiny_model, tiny_processor, photo, task="instance", threshold=0.2)
        assert len(found) == len(expected.segments) > 1
        for item, segment, mask in zip(found, expected.segments, expected.masks, strict=True):
            assert (item.category.id, item.category.name) == (segment["label_id"], segment["label"])
            assert item.score.value == pytest.approx(segment["score"], abs=1e-5)
            # SAHI draws polygons through the middles of pixels.
            drawn = torch.from_numpy(item.mask.bool_mask)
            assert (drawn & mask).sum() > 0.8 * (drawn | mask).sum() or segment["area"] < 50

    def test_results_are_those_of_the_model_whatever_the_processor_came_with(self, tiny_model, photo):
        from sahi.predict import get_prediction

        from maskformer_hf.inference.sahi_model import SahiModel

        size = {"shortest_edge": 96, "longest_edge": 256}
        stranger = MaskFormerImageProcessor(size=size, label_ids_to_fuse=[2, 3])
        model = SahiModel(model=tiny_model, processor=stranger, device="cpu", confidence_threshold=0.2)
        found = get_prediction(photo, model).object_prediction_list
        assert {item.category.name for item in found} <= {"car", "person"}
        assert found
        assert stranger.label_ids_to_fuse == [2, 3]

    def test_sliced(self, tiny_checkpoint, photo):
        from sahi.models.huggingface_segmentation import SegmentationType
        from sahi.predict import get_sliced_prediction

        from maskformer_hf.inference.sahi_model import SahiModel

        for kind in SegmentationType:
            model = SahiModel(
                model_path=str(tiny_checkpoint), device="cpu", confidence_threshold=0.2, segmentation_type=kind
            )
            found = get_sliced_prediction(photo, model, slice_height=80, slice_width=80, verbose=0)
            assert found.object_prediction_list
            assert {item.category.name for item in found.object_prediction_list} <= {"sky", "road", "car", "person"}

    def test_what_finds_no_segments_of_photos_is_refused(self, tiny_processor, tiny_model):
        from builders import random_model, tiny_config
        from maskformer_hf.inference.sahi_model import SahiModel

        for kind in ("video", "per_pixel"):
            with pytest.raises(ValueError, match="use `predict`"):
                SahiModel(model=random_model(tiny_config(kind)), processor=tiny_processor, device="cpu")
        with pytest.raises(ValueError, match="needs the processor"):
            SahiModel(model=tiny_model, device="cpu")
