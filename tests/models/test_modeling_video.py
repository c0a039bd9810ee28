"""Mask2Former-VIS: the contract of every model, on clips, and what is true of clips alone."""

import copy

import pytest
import torch
from test_modeling import (
    LOGITS,
    NUM_HEADS,
    NUM_LABELS,
    NUM_LAYERS,
    NUM_QUERIES,
    RESNET,
    SWIN,
    WIDTH,
    Mask2FormerContract,
)
from transformers import AutoConfig, AutoModel, AutoModelForUniversalSegmentation

from maskformer_hf import MaskFormerConfig, MaskFormerForUniversalSegmentation, MaskFormerHfVideoModel
from maskformer_hf import MaskFormerForVideoSegmentation as Model
from maskformer_hf import MaskFormerVideoConfig as Config
from maskformer_hf.conversion.to_transformers import to_transformers
from maskformer_hf.models.modeling_auto import model_class_of
from maskformer_hf.models.position_encoding import clip_position_encoding, sine_position_encoding
from maskformer_hf.presets import MASK2FORMER

NUM_FRAMES = 3


class TestVideo(Mask2FormerContract):
    fields = {"encoder_ffn_dim": 40, "num_points": 64}  # noqa: RUF012

    def config(self, **fields) -> Config:
        base = {
            "backbone_config": copy.deepcopy(self.backbone),
            "feature_size": WIDTH,
            "mask_feature_size": 16,
            "hidden_size": WIDTH,
            "num_attention_heads": NUM_HEADS,
            "ffn_dim": 48,
            "encoder_layers": 1,
            "decoder_layers": NUM_LAYERS,
            "num_queries": NUM_QUERIES,
            "num_labels": NUM_LABELS,
        }
        return Config(**{**base, **self.fields, **fields})

    def model(self, attn_implementation=None, **fields) -> Model:
        torch.manual_seed(0)
        config = self.config(**fields)
        config._attn_implementation = attn_implementation
        return Model(config).eval()

    @staticmethod
    def images(height=64, width=96, batch_size=2) -> torch.Tensor:
        return torch.randn(batch_size, NUM_FRAMES, 3, height, width, generator=torch.manual_seed(1))

    @staticmethod
    def targets(height=64, width=96) -> dict[str, list[torch.Tensor]]:
        """Two objects in the first clip, of which one leaves after the first frame; none in the second."""
        masks = torch.zeros(2, NUM_FRAMES, height, width, dtype=torch.bool)
        masks[0, :, : height // 2] = masks[1, 0, :, width // 3 :] = True
        return {
            "mask_labels": [masks, masks[:0]],
            "class_labels": [torch.tensor([2, 0]), torch.zeros(0, dtype=torch.int64)],
        }

    @pytest.mark.parametrize("size", [(64, 96), (70, 90), (97, 131)], ids=str)
    def test_shapes(self, shared, size):
        height, width = size
        pixel_mask = torch.zeros(2, NUM_FRAMES, height, width, dtype=torch.int64)
        pixel_mask[0], pixel_mask[1, :, :40, :50] = 1, 1
        with torch.no_grad():
            outputs = shared(self.images(height, width), pixel_mask=pixel_mask)
        assert outputs.class_queries_logits.shape == (2, NUM_QUERIES, NUM_LABELS + 1)
        size = -(-height // 4), -(-width // 4)
        assert outputs.masks_queries_logits.shape == (2, NUM_QUERIES, NUM_FRAMES, *size)
        assert outputs.image_sizes.tolist() == [[height, width], [40, 50]]
        assert outputs.padded_sizes.tolist() == [[height, width]] * 2
        assert not {"loss", "loss_dict", "auxiliary_logits", "encoder_hidden_states"} & outputs.keys()

    def test_hidden_states(self, shared):
        super().test_hidden_states(shared)
        with torch.no_grad():
            outputs = shared(self.images(), output_hidden_states=True)
        maps = [
            *outputs.encoder_hidden_states,
            *outputs.pixel_decoder_hidden_states,
            outputs.pixel_decoder_last_hidden_state,
        ]
        assert [tuple(state.shape[:2]) for state in maps] == [(2, NUM_FRAMES)] * 8

    def test_attentions(self, shared):
        eager = self.model(attn_implementation="eager")
        eager.load_state_dict(shared.state_dict())
        with torch.no_grad():
            outputs, plain = eager(self.images(), output_attentions=True), shared(self.images())
        cells = [NUM_FRAMES * height * width for height, width in self.memory_sizes[:NUM_LAYERS]]
        expected = [(2, NUM_HEADS, NUM_QUERIES, count) for count in cells]
        assert [tuple(weights.shape) for weights in outputs.cross_attentions] == expected
        assert outputs.encoder_attentions[0].shape == (2, NUM_FRAMES, NUM_HEADS, *self.encoder_attention_size)
        for name in LOGITS:
            torch.testing.assert_close(outputs[name], plain[name], rtol=1e-4, atol=1e-5)

    def test_round_trip(self, shared, tmp_path):
        shared.save_pretrained(tmp_path)
        assert model_class_of(tmp_path) is Model
        assert isinstance(AutoConfig.from_pretrained(tmp_path), Config)
        assert isinstance(AutoModel.from_pretrained(tmp_path), MaskFormerHfVideoModel)
        again, info = AutoModelForUniversalSegmentation.from_pretrained(tmp_path, output_loading_info=True)
        assert isinstance(again, Model)
        assert not any(info.values())
        with torch.no_grad():
            expected, got = shared(self.images()), again(self.images())
        for name in LOGITS:
            torch.testing.assert_close(got[name], expected[name], rtol=1e-5, atol=1e-5)

    def test_export(self, shared):
        exported = torch.export.export(_Masks(shared), (self.images(),)).module()
        with torch.no_grad():
            got, expected = exported(self.images()), shared(self.images())
        torch.testing.assert_close(got, expected.masks_queries_logits, rtol=1e-4, atol=1e-5)

    def test_one_frame_is_an_image(self, shared):
        """Results and losses are those of Mask2Former: the encoding of a single time is the same on every key."""
        fields = self.config().to_dict()
        shared_fields = {name: fields[name] for name in MASK2FORMER if name != "intersect_with_mask"}
        sizes = ("feature_size", "mask_feature_size", "hidden_size", "num_attention_heads", "ffn_dim")
        sizes += ("encoder_layers", "num_queries", "num_points")
        config = MaskFormerConfig(
            backbone_config=copy.deepcopy(RESNET),
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


class _Masks(torch.nn.Module):
    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values).masks_queries_logits


@pytest.mark.parametrize("source", ["ours", "transformers"])
def test_training_starts_from_a_model_of_images(source, tmp_path):
    contract = Mask2FormerContract()
    contract.backbone = SWIN
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
    Config(backbone_config=copy.deepcopy(RESNET)).save_pretrained(tmp_path)
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
