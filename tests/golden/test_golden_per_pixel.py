"""The per-pixel baselines with the original's weights compute what the original computed.

Tolerances: tests/fixtures/golden/README.md.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from maskformer_hf import MaskFormerImageProcessor, PerPixelBaseline
from maskformer_hf.conversion.detectron2 import convert_state_dict, load_detectron2
from maskformer_hf.conversion.detectron2_config import config_from_detectron2
from maskformer_hf.conversion.detectron2_names import tensor_names
from maskformer_hf.models.criterion_per_pixel import per_pixel_loss
from maskformer_hf.models.interfaces import Ask, Decoded, Encoded, PixelDecoderOutput
from maskformer_hf.models.modeling_outputs import MaskFormerHfForSemanticSegmentationOutput

GOLDEN = Path(__file__).parent.parent / "fixtures" / "golden"
VOID = 255


def assert_close(actual: torch.Tensor, expected: torch.Tensor):
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-4)


def pad(image: torch.Tensor, size: tuple[int, int], value: int = 0) -> torch.Tensor:
    return F.pad(image, (0, size[1] - image.shape[-1], 0, size[0] - image.shape[-2]), value=value)


def labels(case, run: str) -> torch.Tensor:
    size = case.pixel_values(run).shape[-2:]
    maps = [case.expected[f"target.{run}.{image}.sem_seg"] for image in range(len(case.runs[run]))]
    return torch.stack([pad(labels_HW.long(), size, VOID) for labels_HW in maps])


def pixel_mask(case, run: str) -> torch.Tensor:
    size = case.pixel_values(run).shape[-2:]
    photos = [case.inputs[f"image.{entry['image']}"][0] for entry in case.runs[run]]
    return torch.stack([pad(torch.ones_like(photo), size) for photo in photos])


def assert_segmentations(outputs, runs: list[dict], expected: dict[str, torch.Tensor], run: str):
    """At the size that was asked of the original, or else at that of the photo."""
    sizes = [
        (entry["height"] or height, entry["width"] or width)
        for entry, (height, width) in zip(runs, outputs.image_sizes.tolist(), strict=True)
    ]
    processor = MaskFormerImageProcessor()
    scored = processor.post_process_semantic_segmentation(outputs, sizes, return_segmentation_scores=True)
    segmentations = processor.post_process_semantic_segmentation(outputs, sizes)
    assert len(segmentations) == len(runs)
    for image, (segmentation, scores) in enumerate(zip(segmentations, scored, strict=True)):
        name = f"{run}.sem_seg.{image}"
        assert_close(scores["segmentation_scores"][:, ::8, ::8], expected[f"{name}.every_8th"])
        assert torch.equal(segmentation, scores["segmentation"])
        assert (segmentation != expected[f"{name}.argmax"]).float().mean() < 1e-3


# --- PerPixelBaseline+


def test_kind(per_pixel_plus):
    assert type(per_pixel_plus.model) is PerPixelBaseline
    assert per_pixel_plus.model.config.transformer_decoder == "detr"


@pytest.mark.parametrize("run", ["A", "B", "C"])
def test_predictions(per_pixel_plus, run):
    case = per_pixel_plus
    with torch.no_grad():
        outputs = case.model(case.pixel_values(run), pixel_mask=pixel_mask(case, run), output_auxiliary_logits=True)
    if run != "A":
        assert_close(outputs.logits, case.expected[f"{run}.raw.stride4_logits"])
    if run == "C":
        assert len(outputs.auxiliary_logits) == 2
        for layer, logits in enumerate(outputs.auxiliary_logits):
            assert_close(logits, case.expected[f"C.raw.aux{layer}.stride4_logits"])
    assert_segmentations(outputs, case.runs[run], case.expected, run)


@pytest.mark.parametrize("run", ["A", "C"])
def test_losses(per_pixel_plus, run):
    case = per_pixel_plus
    with torch.no_grad():
        outputs = case.model(case.pixel_values(run), labels=labels(case, run))
    record = case.record["losses"][run]
    assert {name: loss.item() for name, loss in outputs.loss_dict.items()} == pytest.approx(record["losses"], rel=1e-4)
    assert outputs.loss.item() == pytest.approx(record["total"], rel=1e-4)


def test_gradients(per_pixel_plus):
    """Gradients are those of the total, for every parameter."""
    case = per_pixel_plus
    case.model.zero_grad()
    case.model(case.pixel_values("A"), labels=labels(case, "A")).loss.backward()
    gradients = {name: parameter.grad for name, parameter in case.model.named_parameters()}
    case.model.zero_grad()
    names = tensor_names(case.model.config)
    record = case.record["gradients"]["A"]
    largest = max(norm for norm, _ in record.values())
    for name, (norm, peak) in record.items():
        targets = (names[name],) if isinstance(names[name], str) else names[name]
        gradient = torch.cat([gradients.pop(target).flatten() for target in targets])
        assert gradient.norm().item() == pytest.approx(norm, rel=5e-3, abs=1e-5 * largest), name
        assert gradient.abs().max().item() == pytest.approx(peak, rel=5e-3, abs=1e-5 * largest), name
    assert not gradients, "parameters that the original has not"


# --- PerPixelBaseline


@pytest.fixture(scope="module")
def plain() -> tuple[PerPixelBaseline, dict[str, torch.Tensor], dict]:
    """The model with the original's classifier, and what the original made of its own pixel embeddings."""
    folder = GOLDEN / "perpixel_swin"
    config = config_from_detectron2(json.loads((folder / "config.json").read_text()))
    names = tensor_names(config)
    model = PerPixelBaseline(config).eval()
    for name, value in load_file(folder / "state_dict.safetensors").items():
        model.get_parameter(names[name]).data.copy_(value)
    return model, load_file(folder / "expected.safetensors"), json.loads((folder / "expected.json").read_text())


def test_plain_baseline(plain, per_pixel_plus):
    model, expected, record = plain
    assert model.config.transformer_decoder is None
    pixel_values = per_pixel_plus.pixel_values("C")
    with torch.no_grad():
        pixels = PixelDecoderOutput(expected["C.mask_features"], memory=())
        [logits] = model.head(Decoded(()), Encoded((), pixels), Ask())
    maps = [pad(expected[f"target.C.{image}.sem_seg"].long(), (96, 96), VOID) for image in range(2)]
    loss, losses = per_pixel_loss(logits[None], torch.stack(maps), VOID)
    assert loss.item() == pytest.approx(record["losses"]["C"]["total"], rel=1e-4)
    assert losses.keys() == record["losses"]["C"]["losses"].keys()
    with torch.no_grad():
        sizes = model(pixel_values, pixel_mask=pixel_mask(per_pixel_plus, "C"))
    outputs = MaskFormerHfForSemanticSegmentationOutput(
        logits=logits, image_sizes=sizes.image_sizes, padded_sizes=sizes.padded_sizes
    )
    assert_close(logits, expected["C.raw.stride4_logits"])
    assert_segmentations(outputs, per_pixel_plus.runs["C"], expected, "C")


@pytest.mark.parametrize("case", ["perpixel_swin", "perpixel_plus_swin"])
def test_both_layouts_of_names(case, tmp_path):
    """Every tensor has its place, whether the pixel decoder's name is in the keys or not."""
    cfg = json.loads((GOLDEN / case / "config.json").read_text())
    config = config_from_detectron2(cfg)
    own = PerPixelBaseline(config).state_dict()
    state = {}
    for name, target in tensor_names(config).items():
        parts = [torch.randn(own[part].shape) for part in ([target] if isinstance(target, str) else target)]
        state[name] = torch.cat(parts)
    old_layout = {name.replace("sem_seg_head.pixel_decoder.", "sem_seg_head."): value for name, value in state.items()}
    assert old_layout.keys() != state.keys()
    expected, converted = convert_state_dict(state, config), convert_state_dict(old_layout, config)
    assert expected.keys() == own.keys() == converted.keys()
    assert all(torch.equal(converted[name], expected[name]) for name in expected)


def test_a_baseline_is_no_maskformer():
    folder = GOLDEN / "perpixel_plus_swin"
    path = folder / "state_dict.safetensors"
    cfg = json.loads((folder / "config.json").read_text())["MODEL"]
    cfg["META_ARCHITECTURE"], cfg["SEM_SEG_HEAD"]["NAME"] = "MaskFormer", "MaskFormerHead"
    with pytest.raises(ValueError, match=r"the checkpoint lacks: .*class_embed"):
        load_detectron2(path, config_from_detectron2(cfg))


def test_more_queries_than_classes_are_named():
    cfg = json.loads((GOLDEN / "perpixel_plus_swin" / "config.json").read_text())["MODEL"]
    cfg["MASK_FORMER"]["NUM_OBJECT_QUERIES"] = 100
    with pytest.raises(ValueError, match=r"NUM_OBJECT_QUERIES is 100; only 7 can be converted"):
        config_from_detectron2(cfg)
