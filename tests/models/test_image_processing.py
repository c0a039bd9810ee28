"""The image processor: images and targets in, padded tensors out."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from packaging.version import Version
from PIL import Image
from transformers import Mask2FormerImageProcessor as TheirMask2FormerProcessor
from transformers import MaskFormerImageProcessor as TheirProcessor

from maskformer_hf import MaskFormerImageProcessor
from maskformer_hf.models.image_processing_maskformer import MaskFormerHfImageProcessor

THEIRS_AS_DESCRIBED = Version(transformers.__version__).release[:2] == (5, 23)
MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
DEVIATION = torch.tensor([0.229, 0.224, 0.225])[:, None, None]


@pytest.fixture
def photo():
    """(H, W, C) uint8, smooth enough for resizing to be well defined."""
    return make_photo(60, 90)


def make_photo(height, width, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (5, 7, channels), dtype=np.uint8)
    bands = [np.array(Image.fromarray(band).resize((width, height))) for band in np.moveaxis(coarse, -1, 0)]
    return np.stack(bands, axis=-1)


def make_map(height, width, values=(0, 1, 2), seed=0):
    """Blocks of ids, uint8."""
    rng = np.random.default_rng(seed)
    coarse = np.asarray(values)[rng.integers(0, len(values), (4, 6))].astype(np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.NEAREST))


def plain():
    """A processor that neither resizes nor pads."""
    return MaskFormerImageProcessor(do_resize=False, size_divisor=0)


class TestImages:
    def test_values_without_resizing(self, photo):
        result = plain()(photo)
        expected = (torch.from_numpy(photo).permute(2, 0, 1) / 255 - MEAN) / DEVIATION
        torch.testing.assert_close(result.pixel_values[0], expected)
        assert result.pixel_values.dtype == torch.float32
        assert result.pixel_mask.dtype == torch.int64
        assert result.pixel_mask.all()
        assert set(result) == {"pixel_values", "pixel_mask"}

    def test_every_kind_of_input_gives_the_same(self, photo, tmp_path):
        path = tmp_path / "photo.png"
        Image.fromarray(photo).save(path)
        first = torch.from_numpy(photo).permute(2, 0, 1)
        inputs = [
            photo,
            photo[None],
            photo.transpose(2, 0, 1),
            first,
            first[None],
            torch.from_numpy(photo),
            Image.fromarray(photo),
            str(path),
            path,
            [photo],
            [[photo]],
            photo.astype(np.float64),
            photo[:, ::-1][:, ::-1],  # negative strides
        ]
        processor = MaskFormerImageProcessor(size={"shortest_edge": 40, "longest_edge": 80})
        expected = processor(inputs[0]).pixel_values
        for image in inputs[1:]:
            # Interpolation in uint8 rounds to whole grey levels, in float it does not.
            tolerance = 1 / 255 / 0.22 if getattr(image, "dtype", None) == np.float64 else 0
            torch.testing.assert_close(processor(image).pixel_values, expected, atol=tolerance, rtol=0)

    def test_batch_is_padded_right_and_below_after_normalisation(self):
        photos = [make_photo(33, 50), make_photo(70, 20)]
        result = MaskFormerImageProcessor(do_resize=False)(photos)
        assert result.pixel_values.shape == (2, 3, 96, 64)
        for index, (height, width) in enumerate([(33, 50), (70, 20)]):
            assert result.pixel_mask[index].sum() == height * width
            assert result.pixel_mask[index, :height, :width].all()
            outside = result.pixel_mask[index] == 0
            assert (result.pixel_values[index][:, outside] == 0).all()
            alone = plain()(photos[index]).pixel_values[0]
            assert torch.equal(result.pixel_values[index, :, :height, :width], alone)

    def test_divisor_zero_pads_to_the_largest_image_only(self):
        assert plain()([make_photo(33, 50), make_photo(70, 20)]).pixel_values.shape == (2, 3, 70, 50)

    def test_pad_size(self, photo):
        processor = plain()
        assert processor(photo, pad_size={"height": 100, "width": 101}).pixel_values.shape == (1, 3, 100, 101)
        with pytest.raises(ValueError, match=r"smaller than the largest image, \(60, 90\)"):
            processor(photo, pad_size={"height": 100, "width": 80})

    @pytest.mark.parametrize(
        ("size", "expected"),
        [
            (None, (800, 1200)),
            ({"shortest_edge": 40, "longest_edge": 1000}, (40, 60)),
            ({"shortest_edge": 40, "longest_edge": 50}, (33, 50)),
            ({"shortest_edge": 40}, (40, 60)),
            (40, (40, 60)),
            ({"height": 31, "width": 17}, (31, 17)),
            ({"max_height": 30, "max_width": 1000}, (30, 45)),
        ],
    )
    def test_sizes(self, photo, size, expected):
        processor = MaskFormerImageProcessor(size_divisor=0, **({} if size is None else {"size": size}))
        assert processor(photo).pixel_values.shape[-2:] == expected
        if size is not None:
            assert MaskFormerImageProcessor(size_divisor=0)(photo, size=size).pixel_values.shape[-2:] == expected

    def test_a_very_long_image_keeps_a_row(self):
        processor = MaskFormerImageProcessor(size={"shortest_edge": 32, "longest_edge": 64})
        assert processor(make_photo(2, 1000)).pixel_mask.sum() == 64

    def test_numpy_out(self, photo):
        result = plain()(photo, make_map(60, 90), return_tensors="np")
        assert isinstance(result.pixel_values, np.ndarray)
        assert isinstance(result.mask_labels[0], np.ndarray)
        assert result.class_labels[0].dtype == np.int64

    def test_moves_as_the_pipeline_does(self, photo):
        result = plain()(images=[Image.fromarray(photo)], return_tensors="pt").to(torch.bfloat16)
        assert result.pixel_values.dtype == torch.bfloat16
        assert result.pixel_mask.dtype == torch.int64

    def test_many_channels(self):
        bands = np.random.default_rng(0).random((20, 24, 13), dtype=np.float32)
        mean, deviation = [0.1 * index for index in range(13)], [0.5] * 13
        processor = MaskFormerImageProcessor(
            image_mean=mean, image_std=deviation, do_rescale=False, do_resize=False, size_divisor=0
        )
        for image in (bands, torch.from_numpy(bands).permute(2, 0, 1)):
            values = processor(image).pixel_values[0]
            expected = (torch.from_numpy(bands).permute(2, 0, 1) - torch.tensor(mean)[:, None, None]) / 0.5
            torch.testing.assert_close(values, expected)
        assert processor(bands, do_resize=True, size={"height": 10, "width": 12}).pixel_values.shape == (1, 13, 10, 12)

    def test_one_channel_where_one_is_wanted(self):
        processor = MaskFormerImageProcessor(image_mean=[0.5], image_std=[0.5], do_resize=False, size_divisor=0)
        assert processor(make_photo(10, 12, 1)[..., 0]).pixel_values.shape == (1, 1, 10, 12)

    def test_conversion_to_rgb(self, photo):
        processor = MaskFormerImageProcessor()
        grey = Image.fromarray(photo[..., 0])
        expected = processor(grey.convert("RGB")).pixel_values
        for image in (grey, photo[..., 0], torch.from_numpy(photo[..., 0].copy())):
            torch.testing.assert_close(processor(image).pixel_values, expected)
        transparent = np.dstack([photo, photo[..., :1]])
        for image in (Image.fromarray(transparent), transparent, torch.from_numpy(transparent).permute(2, 0, 1)):
            assert torch.equal(processor(image).pixel_values, processor(photo).pixel_values)

    @pytest.mark.parametrize(
        ("image", "message"),
        [
            (np.zeros((0, 10, 3), np.uint8), r"Image 1 has 0 pixels: its shape is \(0, 10, 3\)"),
            (np.zeros((10, 12, 7), np.uint8), r"Image 1 has shape \(10, 12, 7\).*the model's 3 channels"),
            (np.full((3, 10, 12), np.nan), r"Image 1 holds nan; replace"),
            (torch.full((3, 10, 12), float("inf")), r"Image 1 holds inf; replace"),
            (np.zeros(7), r"Image 1 has shape \(7,\)"),
            (42, r"Image 1 is a int; give a PIL image"),
        ],
    )
    def test_images_that_cannot_be(self, photo, image, message):
        with pytest.raises(ValueError, match=message):
            MaskFormerImageProcessor()([photo, image])

    @pytest.mark.parametrize("image", [np.zeros((10, 12), np.uint8), Image.new("L", (12, 10))])
    def test_conversion_to_rgb_may_be_forbidden(self, image):
        with pytest.raises(ValueError, match=r"Image 0 has 1 channels .* takes 3.*or do_convert_rgb=True"):
            MaskFormerImageProcessor(do_convert_rgb=False)(image)

    def test_no_images(self):
        with pytest.raises(ValueError, match="There are no images"):
            MaskFormerImageProcessor()([])

    def test_size_that_is_not_understood(self, photo):
        with pytest.raises(ValueError, match="size"):
            MaskFormerImageProcessor()(photo, size={"longest_edge": 30})

    def test_negative_divisor(self):
        with pytest.raises(ValueError, match="size_divisor=-1"):
            MaskFormerImageProcessor(size_divisor=-1)


class TestSavedFiles:
    def test_round_trip(self, tmp_path, photo):
        options = {
            "size": {"shortest_edge": 40, "longest_edge": 77},
            "size_divisor": 16,
            "ignore_index": 255,
            "do_reduce_labels": True,
            "num_labels": 9,
            "label_ids_to_fuse": {3, 1},
            "image_mean": [0.1, 0.2, 0.3],
        }
        processor = MaskFormerImageProcessor(**options)
        processor.save_pretrained(tmp_path)
        stored = json.loads((tmp_path / "preprocessor_config.json").read_text())
        assert stored["image_processor_type"] == "MaskFormerHfImageProcessor"
        assert not hasattr(transformers, stored["image_processor_type"])
        assert stored["label_ids_to_fuse"] == [1, 3]
        loaded = MaskFormerImageProcessor.from_pretrained(tmp_path)
        assert loaded.to_dict() == processor.to_dict()
        assert torch.equal(loaded(photo).pixel_values, processor(photo).pixel_values)

    @pytest.mark.parametrize("their_class", [TheirProcessor, TheirMask2FormerProcessor])
    @pytest.mark.parametrize("reduce_labels", [False, True])
    def test_files_of_transformers_give_their_values(self, tmp_path, their_class, reduce_labels):
        theirs = their_class(
            size={"shortest_edge": 50, "longest_edge": 120}, ignore_index=255, do_reduce_labels=reduce_labels
        )
        theirs.save_pretrained(tmp_path)
        ours = MaskFormerImageProcessor.from_pretrained(tmp_path)
        assert ours.round_to_divisor
        photos = [make_photo(60, 90), make_photo(200, 70), make_photo(50, 31)]
        maps = [make_map(*photo.shape[:2]) for photo in photos]
        expected, result = theirs(photos, maps, return_tensors="pt"), ours(photos, maps, return_tensors="pt")
        assert torch.equal(result.pixel_values, expected.pixel_values)
        assert torch.equal(result.pixel_mask, expected.pixel_mask)
        for index, pixels in enumerate(result.pixel_mask.bool()):
            assert torch.equal(result.class_labels[index], expected.class_labels[index])
            # Masks are resized by the original's rule, which differs from theirs by half a pixel along the edges.
            size = (int(pixels.any(1).sum()), int(pixels.any(0).sum()))
            resized = F.interpolate(torch.from_numpy(maps[index])[None, None].float(), size=size, mode="nearest")[0]
            labels = resized - 1 if reduce_labels else resized
            masks = result.mask_labels[index]
            assert torch.equal(masks[:, : size[0], : size[1]], labels == result.class_labels[index].view(-1, 1, 1))
            assert (masks != expected.mask_labels[index].bool())[:, pixels].float().mean() < 0.08
        # Saved again it is ours, and still rounds.
        ours.save_pretrained(tmp_path / "ours")
        again = MaskFormerImageProcessor.from_pretrained(tmp_path / "ours")
        assert torch.equal(again(photos).pixel_values, expected.pixel_values)
        assert not MaskFormerImageProcessor.from_pretrained(tmp_path, round_to_divisor=False).round_to_divisor

    def test_files_from_before_image_processors(self, photo):
        stored = {
            "feature_extractor_type": "MaskFormerFeatureExtractor",
            "size": 40,
            "max_size": 90,
            "size_divisibility": 32,
            "reduce_labels": True,
            "ignore_index": 255,
            "resample": 2,
        }
        processor = MaskFormerHfImageProcessor.from_dict(stored)
        assert processor.round_to_divisor
        assert processor.do_reduce_labels
        assert dict(processor.size) == {"shortest_edge": 40, "longest_edge": 90}
        theirs = TheirProcessor(size=40, max_size=90)
        assert torch.equal(processor(photo).pixel_values, theirs(photo, return_tensors="pt").pixel_values)

    def test_own_files_do_not_round(self, photo):
        assert not MaskFormerImageProcessor.from_dict(MaskFormerImageProcessor().to_dict()).round_to_divisor


class TestSegmentationMaps:
    def test_semantic(self, photo):
        segmentation = make_map(60, 90, (0, 3, 7))
        result = MaskFormerImageProcessor(do_resize=False)(photo, segmentation)
        assert result.class_labels[0].tolist() == [0, 3, 7]
        assert result.class_labels[0].dtype == torch.int64
        masks = result.mask_labels[0]
        assert masks.dtype == torch.bool
        assert masks.shape == (3, 64, 96)
        assert torch.equal(masks[1, :60, :90], torch.from_numpy(segmentation == 3))
        assert masks.sum() == 60 * 90

    def test_every_kind_of_map_gives_the_same(self, photo, tmp_path):
        segmentation = make_map(60, 90)
        path = tmp_path / "map.png"
        Image.fromarray(segmentation).save(path)
        maps = [
            segmentation,
            [segmentation],
            segmentation[None],
            [segmentation[None]],
            [segmentation[..., None]],
            torch.from_numpy(segmentation),
            segmentation.astype(np.uint16),
            segmentation.astype(np.float32),
            Image.fromarray(segmentation),
            [str(path)],
            path,
        ]
        processor = MaskFormerImageProcessor(size={"shortest_edge": 33})
        expected = processor(photo, maps[0])
        for other in maps[1:]:
            result = processor(photo, other)
            assert torch.equal(result.mask_labels[0], expected.mask_labels[0])
            assert torch.equal(result.class_labels[0], expected.class_labels[0])

    def test_ids_above_two_to_the_sixteenth(self, photo):
        segmentation = make_map(60, 90, (0, 1)).astype(np.int64) * (2**24 - 1)
        mapping = {0: 4, 2**24 - 1: 5}
        result = MaskFormerImageProcessor(size={"shortest_edge": 33})(photo, segmentation, mapping)
        assert result.class_labels[0].tolist() == [4, 5]

    def test_instances(self, photo):
        segmentation = make_map(60, 90, (0, 1, 2, 9))
        result = plain()(photo, segmentation, {1: 5, 2: 5, 9: 3})
        assert result.class_labels[0].tolist() == [5, 5, 3]  # id 0 is void in a map of segment ids
        assert torch.equal(result.mask_labels[0][2], torch.from_numpy(segmentation == 9))
        with_zero = plain()(photo, segmentation, {0: 1, 1: 5, 2: 5, 9: 3})
        assert with_zero.class_labels[0].tolist() == [1, 5, 5, 3]

    def test_one_dict_an_image(self):
        photos, maps = [make_photo(20, 20), make_photo(30, 25)], [make_map(20, 20, (1, 2)), make_map(30, 25, (1, 2))]
        result = plain()(photos, maps, [{1: 0, 2: 1}, {1: 8, 2: 8}])
        assert [labels.tolist() for labels in result.class_labels] == [[0, 1], [8, 8]]
        with pytest.raises(ValueError, match="1 dicts for 2 images"):
            plain()(photos, maps, [{1: 0, 2: 1}])

    def test_ignored_semantic_id_in_an_instance_map(self, photo):
        result = plain()(photo, make_map(60, 90, (1, 2)), {1: 255, 2: 0}, ignore_index=255)
        assert result.class_labels[0].tolist() == [0]

    def test_all_void(self, photo):
        result = plain()([photo, photo], [np.full((60, 90), 255), make_map(60, 90)], ignore_index=255)
        assert result.mask_labels[0].shape == (0, 60, 90)
        assert result.mask_labels[0].dtype == torch.bool
        assert result.class_labels[0].shape == (0,)
        assert len(result.class_labels[1]) == 3

    def test_segments_too_small_for_the_new_size_are_dropped(self, photo):
        segmentation = np.zeros((60, 90), np.uint8)
        segmentation[5, 5] = 1  # every tenth pixel is taken, from 0 on
        result = MaskFormerImageProcessor(size={"height": 6, "width": 9})(photo, segmentation)
        assert result.class_labels[0].tolist() == [0]

    @pytest.mark.parametrize(
        ("segmentation", "options", "message"),
        [
            (
                make_map(60, 90, (0, 19)),
                {"num_labels": 19},
                r"map 1 holds label 19.*num_labels is 19.*Set ig",
            ),
            (make_map(60, 90, (0, 255)), {"num_labels": 19}, r"holds label 255.*Set ignore_index=255"),
            (make_map(60, 90, (0, 1)).astype(int) - 1, {}, r"holds label -1.*labels count from 0"),
            (make_map(60, 90, (0, 20)), {"num_labels": 19, "do_reduce_labels": True}, r"label 20.*has become void"),
            (make_map(60, 90).astype(float) + 0.5, {}, r"Segmentation map 1 holds fractions"),
            (make_map(60, 91), {}, r"Segmentation map 1 has shape \(60, 91\) and its image is \(60, 90\)"),
            (np.zeros((60, 90, 3), int), {}, r"Segmentation map 1 has shape \(60, 90, 3\).*R \+ 256 G"),
            (
                make_map(60, 90, (0, 5, 6)),
                {"instance_id_to_semantic_id": {5: 1}},
                r"map 1 holds id 6.*it has 5\); add it",
            ),
        ],
    )
    def test_maps_that_cannot_be(self, photo, segmentation, options, message):
        good = np.full((60, 90), 5)
        with pytest.raises(ValueError, match=message):
            plain()([photo, photo], [good, segmentation], **options)

    def test_number_of_maps(self, photo):
        with pytest.raises(ValueError, match="segmentation_maps has 1 entries for 2 images"):
            plain()([photo, photo], [make_map(60, 90)])


class TestMasks:
    def test_masks_that_overlap(self, photo):
        masks = np.zeros((2, 60, 90), np.uint8)
        masks[0, 10:40, 10:40] = masks[1, 20:50, 20:80] = 1
        for given in (masks, masks.astype(bool), torch.from_numpy(masks), list(masks)):
            result = MaskFormerImageProcessor(do_resize=False)([photo], mask_labels=[given], class_labels=[[4, 2]])
            assert torch.equal(result.mask_labels[0][:, :60, :90], torch.from_numpy(masks).bool())
            assert result.mask_labels[0].shape == (2, 64, 96)
            assert result.mask_labels[0].dtype == torch.bool
            assert result.class_labels[0].tolist() == [4, 2]
            assert result.class_labels[0].dtype == torch.int64
        single = MaskFormerImageProcessor(do_resize=False)(photo, mask_labels=masks, class_labels=np.array([4, 2]))
        assert torch.equal(single.mask_labels[0], result.mask_labels[0])

    def test_masks_are_resized_as_maps_are(self, photo):
        segmentation = make_map(60, 90)
        processor = MaskFormerImageProcessor(size={"shortest_edge": 41})
        expected = processor(photo, segmentation)
        masks = np.stack([segmentation == value for value in range(3)])
        result = processor(photo, mask_labels=[masks], class_labels=[[0, 1, 2]])
        assert torch.equal(result.mask_labels[0], expected.mask_labels[0])

    def test_no_masks(self, photo):
        for nothing in ([], np.zeros((0, 60, 90), bool)):
            result = plain()([photo], mask_labels=[nothing], class_labels=[[]])
            assert result.mask_labels[0].shape == (0, 60, 90)
            assert result.class_labels[0].shape == (0,)
            assert result.class_labels[0].dtype == torch.int64

    def test_empty_masks_are_dropped(self, photo):
        masks = np.zeros((2, 60, 90), bool)
        masks[1, :9] = True
        assert plain()([photo], mask_labels=[masks], class_labels=[[4, 2]]).class_labels[0].tolist() == [2]

    @pytest.mark.parametrize(
        ("masks", "labels", "options", "message"),
        [
            (np.full((1, 60, 90), 255), [0], {}, r"mask_labels\[0\] holds 255; masks are of zeros and ones"),
            (np.full((1, 60, 90), 0.5), [0], {}, r"mask_labels\[0\] holds 0.5"),
            (np.ones((1, 60, 80)), [0], {}, r"mask_labels\[0\] has shape \(1, 60, 80\) and its image is \(60, 90\)"),
            (np.ones((2, 60, 90)), [0], {}, r"Image 0 has 2 masks and 1 class labels"),
            (np.ones((1, 60, 90)), [7], {"num_labels": 7}, r"class_labels\[0\] holds 7, .*num_labels is 7"),
            (np.ones((1, 60, 90)), [-1], {}, r"class_labels\[0\] holds -1"),
            (np.ones((1, 60, 90)), None, {}, r"belong together"),
            (np.ones((1, 60, 90)), [0], {"segmentation_maps": [make_map(60, 90)]}, r"not both"),
        ],
    )
    def test_masks_that_cannot_be(self, photo, masks, labels, options, message):
        labels = None if labels is None else [labels]
        with pytest.raises(ValueError, match=message):
            plain()([photo], mask_labels=[masks], class_labels=labels, **options)


class TestDefectsOfTransformers:
    """Rows of the list of defects found in transformers 5.23; each assertion about it holds for that version."""

    def test_1_masks_are_padded_with_zeros(self):
        photos = [make_photo(64, 64), make_photo(64, 128)]
        maps = [make_map(64, 64, (0, 1, 255)), make_map(64, 128, (0, 1, 255))]
        options = {"ignore_index": 255, "do_resize": False}
        for mask in MaskFormerImageProcessor(**options)(photos, maps).mask_labels:
            assert mask.dtype == torch.bool
            assert mask.shape == (2, 64, 128)
        assert not MaskFormerImageProcessor(**options)(photos, maps).mask_labels[0][..., 64:].any()
        if THEIRS_AS_DESCRIBED:
            theirs = TheirProcessor(**options)(photos, maps, return_tensors="pt").mask_labels[0]
            assert (theirs[..., 64:] == 255).all()

    def test_8_void_stays_void_when_labels_are_reduced(self):
        photo, segmentation = make_photo(60, 90), make_map(60, 90, (0, 1, 2, 255))
        options = {"do_reduce_labels": True, "do_resize": False, "size_divisor": 0}
        for ignore_index in (255, None):
            result = MaskFormerImageProcessor(ignore_index=ignore_index, **options)(photo, segmentation)
            assert result.class_labels[0].tolist() == [0, 1]
            assert torch.equal(result.mask_labels[0][0], torch.from_numpy(segmentation == 1))
        # ignore_index is a label of the map, before it is reduced, hence 0 does not hit the first class.
        result = MaskFormerImageProcessor(ignore_index=0, **options)(photo, segmentation)
        assert result.class_labels[0].tolist() == [0, 1]
        # Where there are so many labels, 255 is one.
        result = MaskFormerImageProcessor(num_labels=847, **options)(photo, segmentation)
        assert result.class_labels[0].tolist() == [0, 1, 254]
        # Instance ids are no labels.
        instances = make_map(60, 90, (1, 255))
        result = plain()(photo, instances, {1: 0, 255: 3}, ignore_index=255)
        assert result.class_labels[0].tolist() == [0, 3]
        result = MaskFormerImageProcessor(ignore_index=255, **options)(photo, instances, {1: 0, 255: 3})
        assert result.class_labels[0].tolist() == [2]
        if THEIRS_AS_DESCRIBED:
            theirs = TheirProcessor(ignore_index=255, **options)(photo, segmentation, return_tensors="pt")
            assert theirs.class_labels[0].tolist() == [0, 1, 254]
            theirs = TheirProcessor(ignore_index=0, **options)(photo, segmentation, return_tensors="pt")
            assert 0 not in theirs.class_labels[0]
            theirs = TheirProcessor(ignore_index=255, do_resize=False)(
                photo, instances, {1: 0, 255: 3}, return_tensors="pt"
            )
            assert theirs.class_labels[0].tolist() == [0]

    def test_9_labels_beyond_the_classes_are_refused(self):
        photo, segmentation = make_photo(60, 90), make_map(60, 90, (0, 3))
        with pytest.raises(ValueError, match=r"Segmentation map 0 holds label 3.*num_labels is 3"):
            plain()(photo, segmentation, num_labels=3)
        assert plain()(photo, segmentation, num_labels=4).class_labels[0].tolist() == [0, 3]
        with pytest.raises(ValueError, match=r"holds label 3"):
            plain()(photo, segmentation, {3: 3}, num_labels=3)
        if THEIRS_AS_DESCRIBED:
            theirs = TheirProcessor(num_labels=3, do_resize=False)(photo, segmentation, return_tensors="pt")
            assert theirs.class_labels[0].tolist() == [0, 3]

    def test_11_overlapping_targets_can_be_given(self):
        masks = np.ones((2, 60, 90), bool)
        result = plain()(make_photo(60, 90), mask_labels=masks, class_labels=np.array([0, 1]))
        assert result.mask_labels[0].all()
        if THEIRS_AS_DESCRIBED:
            with pytest.raises(TypeError):
                TheirProcessor()(make_photo(60, 90), mask_labels=masks, class_labels=np.array([0, 1]))

    def test_13_void_can_be_told_from_background(self):
        photos = [make_photo(60, 90), make_photo(40, 50)]
        maps = [make_map(60, 90, (0, 1, 255)), make_map(40, 50, (0, 1, 255))]
        result = MaskFormerImageProcessor(do_resize=False, ignore_index=255, return_void_masks=True)(photos, maps)
        assert result.void_masks.shape == result.pixel_mask.shape
        assert result.void_masks.dtype == torch.bool
        for index, segmentation in enumerate(maps):
            height, width = segmentation.shape
            assert torch.equal(result.void_masks[index, :height, :width], torch.from_numpy(segmentation == 255))
            assert not result.void_masks[index][result.pixel_mask[index] == 0].any()
        assert "void_masks" not in MaskFormerImageProcessor(ignore_index=255)(photos, maps)
        if THEIRS_AS_DESCRIBED:
            theirs = TheirProcessor(ignore_index=255)(photos, maps, return_tensors="pt")
            assert set(theirs) == {"pixel_values", "pixel_mask", "mask_labels", "class_labels"}

    @pytest.mark.parametrize("shape", [(300, 900), (500, 500)])
    def test_14_the_aspect_ratio_is_kept(self, shape):
        photo = make_photo(*shape)
        size = {"shortest_edge": 500, "longest_edge": 1000}
        mask = MaskFormerImageProcessor(size=size)(photo).pixel_mask[0]
        height, width = int(mask[:, 0].sum()), int(mask[0].sum())
        assert abs(width * shape[0] - height * shape[1]) <= max(shape)  # within one pixel
        assert mask.shape[0] % 32 == mask.shape[1] % 32 == 0
        if THEIRS_AS_DESCRIBED:
            theirs = TheirProcessor(size=size)(photo, return_tensors="pt").pixel_mask[0]
            assert theirs.all()
            assert abs(theirs.shape[1] * shape[0] / shape[1] - theirs.shape[0]) > 5 or shape == (500, 500)
            assert tuple(theirs.shape) != (height, width)
