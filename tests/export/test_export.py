"""Exported files give what the model gives, at sizes and batches the export has not seen."""

import json
import subprocess
import sys

import numpy as np
import pytest
import timm.layers
import torch
from PIL import Image
from typer.testing import CliRunner

from builders import swin, timm_backbone
from maskformer_hf import (
    MaskFormerConfig,
    MaskFormerForUniversalSegmentation,
    PerPixelBaseline,
    PerPixelBaselineConfig,
    export,
)
from maskformer_hf.cli import app
from maskformer_hf.export import check
from maskformer_hf.export.any_size import conv_same, for_any_size
from maskformer_hf.models.image_geometry import image_geometries
from maskformer_hf.models.semantic import semantic_segmentation
from maskformer_hf.presets import MASK2FORMER

onnx = pytest.importorskip("onnx")
SWIN, TIMM = swin(drop_path_rate=0.0), timm_backbone()
# (batch, height, width); one cell a side at stride 32 more than one is the least.
SIZES = [(1, 64, 96), (1, 33, 40), (3, 97, 131), (2, 224, 160)]


def images(batch_size: int, height: int, width: int) -> torch.Tensor:
    """Blots, in which the tiny model sees several classes; in noise it sees one."""
    blots = 10 * torch.randn(batch_size, 3, 4, 4, generator=torch.manual_seed(height))
    return torch.nn.functional.interpolate(blots, size=(height, width), mode="bilinear")


def read_onnx(path):
    """The model, and what onnxruntime gives for `pixel_values`."""
    proto = onnx.load(path)
    session = export.onnx_session(proto)
    return proto, lambda pixel_values: export.run_session(session, pixel_values)


def assert_same_logits(model, run):
    for size in SIZES:
        pixel_values = images(*size)
        with torch.no_grad():
            expected = model(pixel_values)
        for name, logits in zip(export.LOGITS, run(pixel_values), strict=True):
            torch.testing.assert_close(logits, expected[name], rtol=0, atol=1e-3)


def assert_same_classes(model, run):
    for size in SIZES:
        pixel_values = images(*size)
        with torch.no_grad():
            outputs = model(pixel_values)
        [segmentation] = run(pixel_values)
        assert segmentation.dtype == torch.int64
        assert segmentation.shape == (size[0], *size[1:])
        for index, geometry in enumerate(image_geometries(outputs)):
            logits = outputs.class_queries_logits[index], outputs.masks_queries_logits[index]
            expected = semantic_segmentation(*logits, geometry)
            assert size[0] > 1 or len(expected.unique()) > 1
            assert_same_but_for_ties(segmentation[index], expected, outputs, index)


def assert_same_but_for_ties(found, expected, outputs, index=0):
    """The two class maps (H, W) differ nowhere but between classes of the same score, up to rounding."""
    logits = outputs.class_queries_logits[index, None], outputs.masks_queries_logits[index, None]
    padded_size = outputs.padded_sizes[index].tolist()
    scores = export.semantic_class_scores(*logits, padded_size)[0, :, : expected.shape[0], : expected.shape[1]]
    margin = scores.gather(0, expected[None]) - scores.gather(0, found[None])
    assert margin.abs().max() < 5e-5
    assert (found != expected).float().mean() < 0.05


@pytest.fixture(scope="module")
def post_processed(tiny_checkpoint, tmp_path_factory):
    """`maskformer export --post-process`: the file, and what was printed."""
    path = tmp_path_factory.mktemp("export") / "tiny.onnx"
    result = CliRunner().invoke(app, ["export", str(tiny_checkpoint), "--post-process", "--output", str(path)])
    assert result.exit_code == 0, result.output
    return path, result.output


@pytest.mark.slow
def test_post_processing_in_the_graph(post_processed, tiny_model):
    _, run = read_onnx(post_processed[0])
    assert_same_classes(tiny_model, run)


def test_padding_is_cut_off_by_the_caller(post_processed, tiny_model, tiny_processor):
    """The documented way from a photo to its classes, against the image processor's."""
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (75, 101, 3), dtype=np.uint8))
    inputs = tiny_processor(photo, return_tensors="pt")
    with torch.no_grad():
        outputs = tiny_model(**inputs)
    [expected] = tiny_processor.post_process_semantic_segmentation(outputs)
    _, run = read_onnx(post_processed[0])
    [segmentation] = run(inputs["pixel_values"])
    height, width = expected.shape
    assert segmentation.shape[1:] != expected.shape
    assert_same_but_for_ties(segmentation[0, :height, :width], expected, outputs)


def test_the_file_says_what_it_needs(post_processed, tiny_model, tiny_processor):
    path, printed = post_processed
    proto, _ = read_onnx(path)
    opset = {item.domain: item.version for item in proto.opset_import}[""]
    metadata = {item.key: item.value for item in proto.metadata_props}
    assert opset == export.OPSET == int(metadata["opset"])
    assert f"opset {opset}" in printed
    assert json.loads(metadata["class_names"]) == [tiny_model.config.id2label[label] for label in range(4)]
    assert json.loads(metadata["image_mean"]) == list(tiny_processor.image_mean)
    assert json.loads(metadata["image_std"]) == list(tiny_processor.image_std)
    assert json.loads(metadata["size_divisor"]) == 32
    assert json.loads(metadata["size"]) == {"shortest_edge": 96, "longest_edge": 256}
    assert metadata["task"] == "semantic"
    [pixel_values], [segmentation] = proto.graph.input, proto.graph.output
    dims = [
        [dim.dim_param or dim.dim_value for dim in x.type.tensor_type.shape.dim] for x in (pixel_values, segmentation)
    ]
    assert dims == [["batch", 3, "height", "width"], ["batch", "height", "width"]]
    # Nothing of the machine that wrote it.
    assert b"/maskformer_hf/" not in path.read_bytes()


VARIANTS = {
    "resnet with encoder": {"pixel_decoder": "transformer_fpn", "encoder_layers": 1, "task": "panoptic"},
    "timm": {"backbone_config": TIMM},
    "swin": {"backbone_config": SWIN},
    "swin with encoder": {"backbone_config": SWIN, "pixel_decoder": "transformer_fpn", "encoder_layers": 1},
    "mask2former": {**MASK2FORMER, "encoder_layers": 1, "encoder_ffn_dim": 32, "decoder_layers": 3},
}


def make_variant(tiny_model, **fields) -> MaskFormerForUniversalSegmentation:
    torch.manual_seed(0)
    return MaskFormerForUniversalSegmentation(MaskFormerConfig(**{**tiny_model.config.to_dict(), **fields})).eval()


def save_variant(name, tiny_model, tiny_processor, folder):
    model = make_variant(tiny_model, **VARIANTS[name])
    model.save_pretrained(folder)
    tiny_processor.save_pretrained(folder)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_onnx_logits(variant, tiny_model, tiny_processor, tmp_path):
    model = save_variant(variant, tiny_model, tiny_processor, tmp_path / "model")
    result = export.export_checkpoint(tmp_path / "model", tmp_path / "new" / "model.onnx")
    assert result.largest_difference < 1e-4
    assert result.metadata["task"] == model.config.task
    _, run = read_onnx(result.path)
    assert_same_logits(model, run)


@pytest.mark.slow
@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "swin"])
def test_torch_export_logits(variant, tiny_model, tiny_processor, tmp_path):
    model = save_variant(variant, tiny_model, tiny_processor, tmp_path / "model")
    path = export.export_checkpoint(tmp_path / "model", tmp_path / "model.pt2", "torch-export").path
    assert_same_logits(model, torch.export.load(path).module())


LOAD_WITHOUT_US = """
import json, sys
for name in ("maskformer_hf", "transformers", "timm"):
    sys.modules[name] = None
import torch
files = {"metadata.json": ""}
program = torch.export.load(sys.argv[1], extra_files=files).module()
inputs = torch.load(sys.argv[2], weights_only=True)
torch.save([program(x) for x in inputs], sys.argv[3])
print(files["metadata.json"])
"""


@pytest.mark.slow
def test_torch_export_runs_without_this_package(tiny_checkpoint, tiny_model, tmp_path):
    path = export.export_checkpoint(tiny_checkpoint, tmp_path / "tiny.pt2", "torch-export", post_process=True).path
    inputs, outputs = tmp_path / "inputs.pt", tmp_path / "outputs.pt"
    torch.save([images(*size) for size in SIZES], inputs)
    command = [sys.executable, "-c", LOAD_WITHOUT_US, str(path), str(inputs), str(outputs)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(json.loads(done.stdout)["class_names"]) == [
        tiny_model.config.id2label[label] for label in range(4)
    ]
    found = iter(torch.load(outputs, weights_only=True))
    assert_same_classes(tiny_model, lambda _: next(found))


@pytest.mark.parametrize("size", [(33, 40), (64, 96), (97, 131), (224, 224)], ids=str)
def test_layers_without_branches_compute_the_same(tiny_model, size):
    model = make_variant(tiny_model, backbone_config=SWIN)
    pixel_values = images(2, *size)
    with torch.no_grad():
        expected = model(pixel_values)
        with for_any_size(model):
            got = model(pixel_values)
        again = model(pixel_values)
    for name in export.LOGITS:
        torch.testing.assert_close(got[name], expected[name])
        assert torch.equal(again[name], expected[name])


@pytest.mark.parametrize("length", [7, 8, 9, 33])
@pytest.mark.parametrize(("kernel_size", "stride", "dilation"), [(3, 2, 1), (5, 2, 1), (1, 2, 1), (3, 2, 2), (4, 3, 1)])
def test_same_padding_is_that_of_timm(length, kernel_size, stride, dilation):
    convolution = timm.layers.Conv2dSame(2, 4, kernel_size, stride=stride, dilation=dilation)
    x = torch.randn(2, 2, length, length + 1)
    assert torch.equal(conv_same(convolution, x), convolution(x))


@pytest.mark.slow
@pytest.mark.parametrize("calibrated", [False, True], ids=["dynamic", "static"])
def test_int8(calibrated, tiny_checkpoint, tiny_model, tiny_processor, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for height in (60, 100, 140):
        pixels = (128 + 12 * images(1, height, 120)[0]).clamp(0, 255).to(torch.uint8).permute(1, 2, 0)
        Image.fromarray(pixels.numpy()).save(photos / f"{height}.png")
    path = tmp_path / "int8.onnx"
    result = export.export_checkpoint(tiny_checkpoint, path, int8=True, calibration=photos if calibrated else None)
    assert result.largest_difference is None
    assert result.metadata["quantisation"] == ("static int8" if calibrated else "dynamic int8")
    proto, run = read_onnx(path)
    num_convolutions = sum(isinstance(layer, torch.nn.Conv2d) for layer in tiny_model.modules())
    assert result.quantised["convolutions"] == num_convolutions
    assert result.quantised["matrix products"] >= 20
    assert {item.key: item.value for item in proto.metadata_props}["opset"] == str(export.OPSET)
    pixel_values = tiny_processor(Image.open(photos / "100.png"), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = tiny_model(pixel_values)
    for name, logits in zip(export.LOGITS, run(pixel_values), strict=True):
        pair = torch.stack((logits.flatten(), expected[name].flatten()))
        assert torch.corrcoef(pair)[0, 1] > 0.9
        assert not torch.equal(logits, expected[name])


def test_static_size(tiny_checkpoint, tiny_model, tmp_path):
    path = tmp_path / "tiny.pt2"
    arguments = ["export", str(tiny_checkpoint), "--format", "torch-export", "--static", "64x96", "-o", str(path)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "(batch, 3, 64, 96)" in result.output
    run = torch.export.load(path).module()
    pixel_values = images(3, 64, 96)
    with torch.no_grad():
        expected = tiny_model(pixel_values)
    for name, logits in zip(export.LOGITS, run(pixel_values), strict=True):
        torch.testing.assert_close(logits, expected[name], rtol=0, atol=1e-3)


def fails(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["export", *arguments])
    assert result.exit_code == 1
    [line] = result.output.strip().splitlines()
    return line


def test_a_missing_library_is_named(monkeypatch, tiny_checkpoint):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    line = fails(str(tiny_checkpoint))
    assert "needs onnxscript" in line
    assert "pip install 'maskformer-hf[export]'" in line


def test_impossible_requests(tiny_checkpoint, tmp_path):
    checkpoint = str(tiny_checkpoint)
    assert "'512' is no size" in fails(checkpoint, "--static", "512")
    assert "must end in .pt2" in fails(checkpoint, "--format", "torch-export", "--output", "model.onnx")
    assert "for format 'onnx' alone" in fails(checkpoint, "--format", "torch-export", "--int8")
    assert "for int8 alone" in fails(checkpoint, "--calibration", str(tmp_path))
    assert "holds no photos" in fails(checkpoint, "--int8", "--calibration", str(tmp_path))
    assert "There is no checkpoint 'nowhere'" in fails("nowhere")
    with pytest.raises(ValueError, match=r"must be one of .*'tflite'"):
        export.export_checkpoint(tiny_checkpoint, "model.tflite", "tflite")


def test_a_per_pixel_baseline_is_refused(tiny_model, tiny_processor, tmp_path):
    fields = {name: getattr(tiny_model.config, name) for name in ("backbone_config", "feature_size", "id2label")}
    PerPixelBaseline(PerPixelBaselineConfig(**fields)).save_pretrained(tmp_path / "baseline")
    tiny_processor.save_pretrained(tmp_path / "baseline")
    with pytest.raises(ValueError, match=r"baseline' is a per-pixel baseline, which cannot be exported"):
        export.export_checkpoint(tmp_path / "baseline", tmp_path / "model.onnx")


def test_a_backbone_of_one_size_is_refused(monkeypatch, tiny_checkpoint, tmp_path):
    def specialise(*args, **kwargs):
        raise RuntimeError("Constraints violated (height)!\nand much more")

    monkeypatch.setattr(torch.export, "export", specialise)
    with pytest.raises(
        ValueError, match=r"'resnet' cannot be exported .*\(Constraints violated.*--static HEIGHTxWIDTH"
    ):
        export.export_checkpoint(tiny_checkpoint, tmp_path / "tiny.pt2", "torch-export")


def test_a_wrong_file_is_not_written(monkeypatch, tiny_checkpoint, tmp_path):
    monkeypatch.setattr(check, "TOLERANCE", -1.0)
    with pytest.raises(ValueError, match=r"other results than the model .* nothing was written"):
        export.export_checkpoint(tiny_checkpoint, tmp_path / "tiny.pt2", "torch-export", static_size=(64, 96))
    assert not list(tmp_path.iterdir())
