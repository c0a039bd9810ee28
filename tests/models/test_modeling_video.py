"""Mask2Former-VIS: the contract of every model, on clips, and what is true of clips alone."""

import pytest
import torch

from builders import resnet, swin
from maskformer_hf import MaskFormerConfig, MaskFormerForUniversalSegmentation
from maskformer_hf import MaskFormerForVideoSegmentation as Model
from maskformer_hf import MaskFormerVideoConfig as Config
from maskformer_hf.conversion.to_transformers import to_transformers
from maskformer_hf.models.position_encoding import clip_position_encoding, sine_position_encoding
from maskformer_hf.presets import MASK2FORMER
from tests.models.contract import NUM_LABELS, Mask2FormerContract

NUM_FRAMES = 3


class TestVideo(Mask2FormerContract):
    kind = "video"
    frames = (NUM_FRAMES,)

    @classmethod
    def targets(cls, height=64, width=96):
        """The second object of the first clip leaves after the first frame."""
        targets = super().targets(height, width)
        targets["mask_labels"][0][1, 1:] = False
        return targets

    def test_one_frame_is_an_image(self, shared):
        """Results and losses are those of Mask2Former: the encoding of a single time is the same on every key."""
        fields = self.config().to_dict()
        shared_fields = {name: fields[name] for name in MASK2FORMER if name != "intersect_with_mask"}
        sizes = ("feature_size", "mask_feature_size", "hidden_size", "num_attention_heads", "ffn_dim")
        sizes += ("encoder_layers", "num_queries", "num_points")
        config = MaskFormerConfig(
            backbone_config=resnet(),
            num_labels=NUM_LABELS,
            **shared_fields,
            **{name: fields[name] for name in sizes},
        )
        image_model = MaskFormerForUniversalSegmentation(config).eval()
        image_model.load_state_dict(shared.state_dict())
        targets = self.targets()
        masks = [clip[:, 0] for clip in targets["mask_labels"]]
        with torch.no_grad():
            clips = shared(
                self.images()[:, :1],
                mask_labels=[image[:, None] for image in masks],
                class_labels=targets["class_labels"],
            )
            images = image_model(self.images()[:, 0], mask_labels=masks, class_labels=targets["class_labels"])
        torch.testing.assert_close(clips.class_queries_logits, images.class_queries_logits, rtol=0, atol=1e-5)
        mask_logits = clips.masks_queries_logits[:, :, 0]
        torch.testing.assert_close(mask_logits, images.masks_queries_logits, rtol=0, atol=1e-5)
        for name, loss in images.loss_dict.items():
            torch.testing.assert_close(clips.loss_dict[name], loss, rtol=1e-4, atol=1e-5)

    def test_time_runs_both_ways_without_its_encoding(self, shared, monkeypatch):
        clip = self.images()[:1]
        with torch.no_grad():
            forwards, backwards = shared(clip), shared(clip.flip(1))
        backwards_masks = backwards.masks_queries_logits.flip(2)
        assert not torch.allclose(forwards.masks_queries_logits, backwards_masks, atol=1e-4)
        monkeypatch.setattr(
            "maskformer_hf.models.transformer_decoder_masked.clip_position_encoding",
            lambda frames, *size: sine_position_encoding(*size).expand(frames, -1, -1, -1),
        )
        with torch.no_grad():
            forwards, backwards = shared(clip), shared(clip.flip(1))
            still = shared(clip[:, :1].expand(-1, NUM_FRAMES, -1, -1, -1)).masks_queries_logits
        backwards_masks = backwards.masks_queries_logits.flip(2)
        torch.testing.assert_close(forwards.masks_queries_logits, backwards_masks, rtol=0, atol=1e-5)
        torch.testing.assert_close(still, still[:, :, :1].expand_as(still), rtol=0, atol=1e-5)


@pytest.mark.parametrize("source", ["ours", "transformers"])
def test_training_starts_from_a_model_of_images(source, tmp_path):
    contract = Mask2FormerContract()
    contract.backbone = swin(drop_path_rate=0.0)
    images = contract.model(task="panoptic", id2label={0: "cat", 1: "dog", 2: "sky"}, label_ids_to_fuse=[2])
    saved = images if source == "ours" else to_transformers(images)[0]
    saved.save_pretrained(tmp_path)
    model, info = Model.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert (model.config.model_type, model.config.task) == ("maskformer_hf_video", "instance")
    assert model.config.mask_weight == images.config.mask_weight == 5
    clips = TestVideo.images()[:, :1]
    with torch.no_grad():
        expected, got = images(clips[:, 0]), model.eval()(clips)
    torch.testing.assert_close(got.masks_queries_logits[:, :, 0], expected.masks_queries_logits, rtol=0, atol=1e-4)
    # The classes of the data that it is trained on next; those it knows stay.
    other = Model.from_pretrained(tmp_path, id2label={0: "dog", 1: "bird"})
    assert other.config.num_labels == 2
    kept = other.head.class_predictor.weight[[0, 2]]
    torch.testing.assert_close(kept, model.head.class_predictor.weight[[1, 3]])


def test_a_maskformer_cannot_see_videos(tmp_path, tiny_checkpoint):
    with pytest.raises(
        ValueError,
        match=r"`transformer_decoder='detr'` attends to one image at a time: choose 'masked' for a model of clips",
    ):
        Model.from_pretrained(tiny_checkpoint)
    Config(backbone_config=resnet()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a 'maskformer_hf_video' model; only 'maskformer_hf' and transformers'"):
        MaskFormerForUniversalSegmentation.from_pretrained(tmp_path)


def test_encoding_of_time():
    encoding = clip_position_encoding(3, 4, 6, 32, torch.device("cpu"), torch.float32)
    assert encoding.shape == (3, 32, 4, 6)
    time = encoding - sine_position_encoding(4, 6, 32, torch.device("cpu"), torch.float32)
    # One value a frame and channel; the last frame is a whole turn.
    torch.testing.assert_close(time, time[:, :, :1, :1].expand_as(time), rtol=0, atol=1e-6)
    turn = torch.tensor([[0.0], [1.0]]).expand(2, 16).T.flatten()
    assert torch.allclose(time[2, :2, 0, 0], turn[:2], atol=1e-4)
    assert torch.allclose(time[0, 0, 0, 0], torch.tensor(2 * torch.pi / 3).sin(), atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"transformer_decoder": "detr"},
            r"`transformer_decoder='detr'` attends to one image at a time: choose 'masked' for a model of clips",
        ),
        ({"task": "panoptic"}, r"`task` must be one of \['instance'\], got 'panoptic'"),
    ],
)
def test_configuration_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Config(**fields)


def test_wrong_shapes_are_named():
    model = TestVideo().model()
    clips, targets = TestVideo.images(), TestVideo.targets()
    with pytest.raises(ValueError, match=r"must have shape \(batch, frames, 3, height, width\), got \(2, 3, 64, 96\)"):
        model(clips[:, 0])
    targets["mask_labels"][0] = targets["mask_labels"][0][:, :2]
    with pytest.raises(ValueError, match=r"clip 0 of the batch have shape \(2, 2, 64, 96\): .* with the 3 frames"):
        model(clips, **targets)
