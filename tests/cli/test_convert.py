"""`maskformer convert`: files of the original to folders, folders to transformers, and what is refused."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from maskformer_hf import MaskFormerForUniversalSegmentation, MaskFormerImageProcessor, load
from tests.cli.command_line import one_line_error

GOLDEN = Path(__file__).parent.parent / "fixtures" / "golden"
RESNET, SWIN = GOLDEN / "maskformer_r50_fpn", GOLDEN / "maskformer_swin_tenc"
PKL = RESNET / "model_zoo_style.pkl"
FILES = {"config.json", "model.safetensors", "preprocessor_config.json"}


@pytest.fixture
def convert(run):
    return lambda *arguments: run("convert", *arguments)


def files_of(folder: Path) -> set[str]:
    """All but the code that a folder carries."""
    return {path.name for path in folder.iterdir() if path.suffix != ".py"}


def lines_of(result) -> list[list[str]]:
    assert result.exit_code == 0, result.output
    return [line.strip().split("  ", 1) for line in result.stdout.splitlines()]


def test_a_file_of_the_zoo_becomes_a_folder(convert, tmp_path):
    result = convert(PKL, "--output", "converted")
    lines = lines_of(result)
    assert result.stderr == ""
    assert files_of(tmp_path / "converted") == FILES
    assert (tmp_path / "converted" / "modeling_maskformer.py").is_file()
    assert files_of(tmp_path) == {"converted"}
    parts = {name: text.strip() for name, text in lines[:-1]}
    assert parts["backbone"] == "resnet, depths 3 4 6 3, widths 24 48 96 192"
    assert parts["pixel decoder"] == "fpn, width 32"
    assert parts["decoder"] == "3 layers, 12 queries, width 32, 8 heads"
    assert parts["classes"].startswith("7 (LABEL_0, ")
    assert parts["task"] == "semantic"
    assert parts["ignored"].startswith("criterion.empty_weight (1): the class weights of the loss")
    assert lines[-1] == ["Saved converted"]
    notes = " ".join(text for name, text in lines[:-1] if name == "note")
    assert "No data set of the presets has 7 classes" in notes
    assert "8 attention heads" in notes
    model, processor = load(tmp_path / "converted", device="cpu")
    assert int(parts["parameters"].replace(",", "")) == sum(parameter.numel() for parameter in model.parameters())
    assert processor.num_labels == 7


def test_a_dumped_configuration_completes_it(convert, tmp_path):
    dump = json.loads((SWIN / "config.json").read_text())
    dump["INPUT"] |= {"MIN_SIZE_TEST": 96, "MAX_SIZE_TEST": 200}
    dump["MODEL"]["SEM_SEG_HEAD"]["IGNORE_VALUE"] = 254
    (tmp_path / "dump.json").write_text(json.dumps(dump))
    result = convert(SWIN / "state_dict.safetensors", "--config", "dump.json", "--output", "new/converted")
    parts = [text.strip() for _, text in lines_of(result)[:-1]]
    assert "3 layers, 12 queries, width 32, 4 heads" in parts
    assert "transformer_fpn, width 32, 2 encoder layers" in parts
    assert not any("No tensor tells" in text for text in parts)
    assert any(text.startswith("attn.relative_position_index (5)") for text in parts)
    _, processor = load(tmp_path / "new" / "converted", device="cpu")
    assert (processor.size.shortest_edge, processor.size.longest_edge) == (96, 200)
    assert (processor.size_divisor, processor.ignore_index) == (32, 254)
    assert processor.image_mean == pytest.approx([123.675 / 255, 116.28 / 255, 103.53 / 255])


def test_the_configuration_beside_a_file_is_taken(convert, tmp_path):
    shutil.copy(PKL, tmp_path / "model_final.pkl")
    (tmp_path / "config.yaml").write_text((RESNET / "config.json").read_text())  # JSON is YAML
    result = convert("model_final.pkl", "--output", "converted")
    assert "12 queries, width 32, 2 heads" in result.stdout
    assert "config.yaml" in result.stdout


def test_class_names_by_their_number(convert, tmp_path):
    """A model in no table, trained on the 19 classes of Cityscapes."""
    state = load_file(SWIN / "state_dict.safetensors")
    for kind in ("weight", "bias"):
        name = f"sem_seg_head.predictor.class_embed.{kind}"
        state[name] = torch.cat([state[name]] * 3)[:20].clone()
    save_file(state, tmp_path / "model.safetensors")
    result = convert("model.safetensors", "--output", "converted")
    assert "19 (road, sidewalk, building, wall, ...), 11 of them stuff" in result.stdout
    assert "which has 19 classes too" in result.stdout
    model, processor = load(tmp_path / "converted", device="cpu")
    assert model.config.id2label[0] == "road"
    assert model.config.task == "semantic"
    assert processor.label_ids_to_fuse == model.config.label_ids_to_fuse == list(range(11))
    assert processor.size.shortest_edge == 1024


def test_to_transformers(convert, tiny_checkpoint, tiny_model, tmp_path):
    result = convert(tiny_checkpoint, "--to", "transformers", "--output", "theirs")
    told = " ".join(text for _, text in lines_of(result)[:-1])
    assert files_of(tmp_path / "theirs") == FILES
    for text in ("Logits of the same pixels differ by", "stretches them to multiples of 32", "BatchNorm is not frozen"):
        assert text in told
    theirs, info = transformers.MaskFormerForInstanceSegmentation.from_pretrained("theirs", output_loading_info=True)
    assert not any(info.values()), info
    pixel_values = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, got = tiny_model(pixel_values), theirs(pixel_values)
    for name in ("class_queries_logits", "masks_queries_logits"):
        torch.testing.assert_close(got[name], expected[name], rtol=1e-5, atol=1e-5)
    assert type(transformers.AutoImageProcessor.from_pretrained("theirs")) is transformers.MaskFormerImageProcessor
    # And back, again by the command.
    assert convert("theirs", "--output", "ours").exit_code == 0
    again, processor = load("ours", device="cpu")
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["model_type"] == "maskformer_hf"
    for name, value in tiny_model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    assert processor.to_dict() == MaskFormerImageProcessor.from_pretrained(tiny_checkpoint).to_dict()
    assert again.config.label_ids_to_fuse == [0, 1]


def test_a_file_to_transformers_at_once(convert):
    assert convert(PKL, "--output", "theirs", "--to", "transformers").exit_code == 0
    theirs = transformers.MaskFormerForInstanceSegmentation.from_pretrained("theirs")
    assert theirs.config.num_labels == 7


def test_force_overwrites_what_it_writes_and_nothing_else(convert, tiny_checkpoint, tmp_path):
    folder = tmp_path / "converted"
    folder.mkdir()
    assert convert(PKL, "--output", "converted").exit_code == 0, "an empty folder is as good as none"
    (folder / "notes.txt").write_text("keep")
    result = convert(tiny_checkpoint, "--output", "converted")
    assert one_line_error(result).endswith("is not empty; choose another, or overwrite files in it with --overwrite")
    assert MaskFormerForUniversalSegmentation.from_pretrained(folder).config.num_labels == 7
    assert convert(tiny_checkpoint, "--output", "converted", "--force").exit_code == 0
    assert files_of(folder) == {*FILES, "notes.txt"}
    assert MaskFormerForUniversalSegmentation.from_pretrained(folder).config.num_labels == 4
    assert files_of(tmp_path) == {"converted"}


@pytest.mark.parametrize("existing", [False, True])
def test_nothing_half_written_stays(convert, monkeypatch, tmp_path, existing):
    def fail(self, folder, **kwargs):
        assert (Path(folder) / "model.safetensors").is_file()
        raise OSError("No space left on device")

    monkeypatch.setattr(MaskFormerImageProcessor, "save_pretrained", fail)
    if existing:
        (tmp_path / "converted").mkdir()
        (tmp_path / "converted" / "config.json").write_text("before")
    result = convert(PKL, "--output", "converted", "--force")
    assert "No space left" in one_line_error(result)
    assert files_of(tmp_path) == ({"converted"} if existing else set())
    if existing:
        assert files_of(tmp_path / "converted") == {"config.json"}
        assert (tmp_path / "converted" / "config.json").read_text() == "before"


# --- refusals


class Hostile:
    def __init__(self, proof: Path):
        self.proof = proof

    def __reduce__(self):
        return touch, (str(self.proof),)


def touch(path: str):
    Path(path).touch()


def test_a_hostile_pickle_runs_nothing(convert, tmp_path):
    proof = tmp_path / "proof"
    content = {"model": {"backbone.stem.conv1.weight": Hostile(proof)}, "__author__": "Detectron2 Model Zoo"}
    (tmp_path / "hostile.pkl").write_bytes(pickle.dumps(content, protocol=3))
    error = one_line_error(convert("hostile.pkl", "--output", "converted"))
    assert "hostile.pkl" in error
    assert f"`{touch.__module__}.touch`" in error
    assert "It was not run." in error
    assert files_of(tmp_path) == {"hostile.pkl"}
    pickle.loads((tmp_path / "hostile.pkl").read_bytes())
    assert proof.exists(), "the pickle is harmless and proves nothing"


REFUSALS = {
    "no file": (["none.pkl"], "there is no file 'none.pkl'"),
    "no checkpoint of that name": (["nonsense"], "no checkpoint 'nonsense'"),
    "truncated pickle": (["truncated.pkl"], "truncated.pkl is no pickle of numpy arrays by name"),
    "truncated safetensors": (["truncated.safetensors"], "truncated.safetensors is no complete safetensors file"),
    "text": (["text.pkl"], "text.pkl is no pickle of numpy arrays by name"),
    "a backbone": (["backbone.safetensors"], "no checkpoint of a MaskFormer or Mask2Former in Detectron2: it has no"),
    "half a Mask2Former": (
        ["mask2former.safetensors"],
        "transformer.level_embed, which every such model has",
    ),
    "weights of ours": (["{tiny}/model.safetensors"], "give the folder that they and their config.json lie in"),
    "not finite": (["nan.safetensors"], "the tensor sem_seg_head.predictor.query_embed.weight is not finite"),
    "another preset": (
        ["{pkl}", "--preset", "maskformer_resnet50_coco_panoptic"],
        "preset maskformer_resnet50_coco_panoptic does not fit the checkpoint: num_labels is 7 in the checkpoint, not "
        "133; pixel_decoder is fpn in the checkpoint, not transformer_fpn; ",
    ),
    "an unknown preset": (["{pkl}", "--preset", "resnet"], "no preset 'resnet'; there are maskformer_resnet50_ade20k,"),
    "preset and configuration": (["{pkl}", "--preset", "x", "--config", "{swin_config}"], "give one of them"),
    "another configuration": (
        ["{pkl}", "--config", "{swin_config}"],
        "does not fit the checkpoint: pixel_decoder is fpn in the checkpoint, not transformer_fpn; backbone is resnet",
    ),
    "no configuration": (["{pkl}", "--config", "text.pkl"], "text.pkl has no section MODEL"),
    "a part of a configuration": (["{pkl}", "--config", "part.yaml"], "dump the whole `cfg`"),
    "broken YAML": (["{pkl}", "--config", "broken.yaml"], "broken.yaml is no valid YAML or JSON"),
    "no such configuration": (["{pkl}", "--config", "none.yaml"], "none.yaml"),
    "BGR": (["{pkl}", "--config", "bgr.json"], "INPUT.FORMAT is 'BGR'"),
    "preset of a folder": (["{tiny}", "--preset", "maskformer_resnet50_ade20k"], "a folder says it itself"),
    "output is a file": (["{pkl}", "--output", "text.pkl"], "'text.pkl' is a file"),
    "output is the source": (["{tiny}", "--output", "{tiny}", "--force"], "is the checkpoint itself"),
    "no counterpart": (
        ["{swin}", "--config", "{swin_config}", "--to", "transformers"],
        "no counterpart of pixel_decoder='transformer_fpn'",
    ),
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_refusals_are_one_line_and_leave_nothing(convert, tiny_checkpoint, tmp_path, refusal):
    write_mistakes(tmp_path)
    before = files_of(tmp_path)
    arguments, message = REFUSALS[refusal]
    places = {
        "tiny": tiny_checkpoint,
        "pkl": PKL,
        "swin": SWIN / "state_dict.safetensors",
        "swin_config": SWIN / "config.json",
    }
    arguments = [argument.format(**places) for argument in arguments]
    if "--output" not in arguments:
        arguments += ["--output", "converted"]
    assert message in one_line_error(convert(*arguments))
    assert files_of(tmp_path) == before


def write_mistakes(folder: Path):
    state = load_file(SWIN / "state_dict.safetensors")
    (folder / "truncated.pkl").write_bytes(PKL.read_bytes()[:200_000])
    (folder / "truncated.safetensors").write_bytes((SWIN / "state_dict.safetensors").read_bytes()[:200_000])
    (folder / "text.pkl").write_text("hello")
    backbone = {name.removeprefix("backbone."): value for name, value in state.items() if name.startswith("backbone.")}
    save_file(backbone, folder / "backbone.safetensors")
    query_embed = "sem_seg_head.predictor.query_embed.weight"
    cross_attention = "sem_seg_head.predictor.transformer_cross_attention_layers.0.norm.weight"
    save_file(state | {cross_attention: torch.ones(32)}, folder / "mask2former.safetensors")
    save_file(state | {query_embed: torch.full_like(state[query_embed], torch.nan)}, folder / "nan.safetensors")
    (folder / "part.yaml").write_text("MODEL:\n  META_ARCHITECTURE: MaskFormer\n")
    (folder / "broken.yaml").write_text("MODEL: [1,\n  x: {")
    dump = json.loads((RESNET / "config.json").read_text())
    dump["INPUT"]["FORMAT"] = "BGR"
    (folder / "bgr.json").write_text(json.dumps(dump))


def test_help_has_examples(convert):
    result = convert("--help")
    assert "maskformer convert model_final_d8dbeb.pkl --output maskformer-r50-ade" in result.stdout
    assert "--to transformers" in result.stdout
