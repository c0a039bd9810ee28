"""What `save_pretrained` writes besides transformers' files: the code of the classes, and the `auto_map` naming it."""

import copy
import json
import os
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image
from transformers.dynamic_module_utils import get_relative_imports

import maskformer_hf
from maskformer_hf import MaskFormerConfig, MaskFormerForUniversalSegmentation, MaskFormerImageProcessor
from maskformer_hf.models import auto_classes, parts, remote_code

MODEL, PROCESSOR = "config.json", "preprocessor_config.json"


def read(folder: Path, name: str) -> dict:
    return json.loads((folder / name).read_text())


def code_in(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.py")}


def test_a_model_and_a_processor_save_their_code(tiny_model, tiny_processor, tmp_path):
    tiny_model.save_pretrained(tmp_path / "model")
    assert read(tmp_path / "model", MODEL)["auto_map"] == auto_classes.MODELS["maskformer_hf"]
    assert {"modeling_maskformer.py", "configuration_maskformer.py", "criterion.py"} <= code_in(tmp_path / "model")
    tiny_processor.save_pretrained(tmp_path / "processor")
    assert read(tmp_path / "processor", PROCESSOR)["auto_map"] == auto_classes.IMAGE_PROCESSOR
    assert "image_processing_maskformer.py" in code_in(tmp_path / "processor")
    assert "modeling_maskformer.py" not in code_in(tmp_path / "processor")
    for folder in (tmp_path / "model", tmp_path / "processor"):
        imported = {f"{name}.py" for path in folder.glob("*.py") for name in get_relative_imports(path)}
        assert len(imported) >= 3
        assert imported <= code_in(folder)
        assert sum(path.stat().st_size for path in folder.glob("*.py")) < 800_000


def test_a_configuration_alone_saves_its_code(tiny_model, tmp_path):
    tiny_model.config.save_pretrained(tmp_path)
    assert read(tmp_path, MODEL)["auto_map"] == auto_classes.MODELS["maskformer_hf"]
    assert "configuration_maskformer.py" in code_in(tmp_path)
    # What is loaded does not hand on whose code was beside it.
    assert not hasattr(MaskFormerConfig.from_pretrained(tmp_path), "auto_map")


def test_the_switch(tiny_model, tiny_processor, tmp_path, monkeypatch):
    for item in (tiny_model, tiny_processor, tiny_model.config):
        item.save_pretrained(tmp_path / "argument", with_code=False)
    monkeypatch.setenv("MASKFORMER_HF_SAVE_CODE", "0")
    for item in (tiny_model, tiny_processor, tiny_model.config):
        item.save_pretrained(tmp_path / "environment")
    for folder in (tmp_path / "argument", tmp_path / "environment"):
        assert {path.name for path in folder.iterdir()} == {MODEL, PROCESSOR, "model.safetensors"}
        assert not any("auto_map" in read(folder, name) for name in (MODEL, PROCESSOR))
    # Whoever says so means it.
    tiny_model.save_pretrained(tmp_path / "environment", with_code=True)
    assert "auto_map" in read(tmp_path / "environment", MODEL)


def test_other_files_are_left_alone(tiny_model, tmp_path):
    (tmp_path / "train.py").write_text("print('mine')\n")
    theirs = transformers.MaskFormerImageProcessor()
    theirs.save_pretrained(tmp_path)
    content = {**read(tmp_path, PROCESSOR), "auto_map": {"AutoImageProcessor": "theirs.Processor"}}
    before = json.dumps(content)
    (tmp_path / PROCESSOR).write_text(before)
    tiny_model.save_pretrained(tmp_path)
    remote_code.add_code(tmp_path)
    assert (tmp_path / "train.py").read_text() == "print('mine')\n"
    assert (tmp_path / PROCESSOR).read_text() == before
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_code_that_is_there_is_not_written_again(tiny_model, tiny_processor, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    tiny_processor.save_pretrained(tmp_path)
    for path in tmp_path.glob("*.py"):
        os.utime(path, (1, 1))
    (tmp_path / "layers.py").write_text("of another version")
    tiny_model.save_pretrained(tmp_path)
    tiny_processor.save_pretrained(tmp_path)
    written = {path.name for path in tmp_path.glob("*.py") if path.stat().st_mtime != 1}
    assert written == {"layers.py"}
    assert (tmp_path / "layers.py").read_bytes() == (remote_code.CODE / "layers.py").read_bytes()


def test_the_code_of_a_folder_is_of_one_version(tiny_model, tiny_processor, tmp_path):
    tiny_processor.save_pretrained(tmp_path)
    (tmp_path / "image_processing_maskformer.py").write_text("of another version")
    tiny_model.save_pretrained(tmp_path)
    assert "of another version" not in (tmp_path / "image_processing_maskformer.py").read_text()
    # A processor that was saved without code stays so.
    tiny_processor.save_pretrained(tmp_path, with_code=False)
    tiny_model.save_pretrained(tmp_path)
    assert "auto_map" not in read(tmp_path, PROCESSOR)


def test_a_save_that_breaks_off_leaves_no_name_without_its_file(tiny_model, tmp_path, monkeypatch):
    replace, calls = os.replace, []

    def break_off(*arguments):
        calls.append(arguments)
        if len(calls) == 5:
            raise OSError("No space left on device")
        replace(*arguments)

    monkeypatch.setattr(remote_code.os, "replace", break_off)
    with pytest.raises(OSError, match="No space left"):
        tiny_model.config.save_pretrained(tmp_path)
    assert "auto_map" not in read(tmp_path, MODEL)
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]
    monkeypatch.undo()
    # The next save is not taken for a part of the one that failed.
    tiny_model.config.save_pretrained(tmp_path)
    assert "auto_map" in read(tmp_path, MODEL)


def test_only_the_main_process_writes(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path, is_main_process=False)
    assert list(tmp_path.iterdir()) == []
    tiny_model.save_pretrained(tmp_path, with_code=False)
    tiny_model.save_pretrained(tmp_path, is_main_process=False)
    assert code_in(tmp_path) == set()


class OwnModel(MaskFormerForUniversalSegmentation):
    """A class that `auto_map` could not load."""


def test_a_class_from_elsewhere_is_not_passed_off_as_ours(tiny_model, tmp_path):
    OwnModel(copy.deepcopy(tiny_model.config)).save_pretrained(tmp_path)
    assert "auto_map" not in read(tmp_path, MODEL)
    assert code_in(tmp_path) == set()
    try:
        OwnModel.register_for_auto_class("AutoModelForImageSegmentation")
        assert OwnModel._auto_class == "AutoModelForImageSegmentation"
        MaskFormerForUniversalSegmentation.register_for_auto_class("AutoModelForImageSegmentation")
        assert MaskFormerForUniversalSegmentation._auto_class is None
    finally:
        OwnModel._auto_class = None


def test_a_part_from_outside_is_named_once(tiny_model, tmp_path, caplog):
    parts.register("class_head", "elsewhere", parts.part_of("class_head", "linear"), exist_ok=True)
    try:
        config = MaskFormerConfig.from_dict({**tiny_model.config.to_dict(), "class_head": "elsewhere"})
        for folder in ("first", "second"):
            config.save_pretrained(tmp_path / folder)
        [warning] = warnings(caplog)
        assert "class_head='elsewhere', which was registered from outside" in warning
        MaskFormerForUniversalSegmentation(config).save_pretrained(tmp_path / "without", with_code=False)
        assert len(warnings(caplog)) == 1
        assert type(config).from_pretrained(tmp_path / "first").class_head == "elsewhere"
    finally:
        del parts._TABLE["class_head"]["elsewhere"]


def test_bundled_checkpoints_have_no_code():
    checkpoints = maskformer_hf.bundled_checkpoints()
    assert len(checkpoints) >= 4
    for folder in checkpoints.values():
        assert code_in(folder) == set()
        assert not any("auto_map" in read(folder, name) for name in (MODEL, PROCESSOR))


def warnings(caplog) -> list[str]:
    # `AutoModel` reports that it has no heads, with code and without.
    return [record.getMessage() for record in caplog.records if "LOAD REPORT" not in record.getMessage()]


def test_where_the_package_is_imported_nobody_is_asked(tiny_checkpoint, caplog):
    """There is nobody to answer: transformers would raise an error."""
    assert "auto_map" in read(tiny_checkpoint, MODEL)
    found = [
        getattr(transformers, name).from_pretrained(tiny_checkpoint)
        for name in (*auto_classes.MODELS["maskformer_hf"], *auto_classes.IMAGE_PROCESSOR)
    ]
    segmenter = transformers.pipeline("image-segmentation", model=str(tiny_checkpoint))
    segmenter(Image.new("RGB", (64, 48)))
    # Consent to code that is not needed changes nothing.
    found += [
        transformers.AutoModelForUniversalSegmentation.from_pretrained(tiny_checkpoint, trust_remote_code=True),
        transformers.AutoImageProcessor.from_pretrained(tiny_checkpoint, trust_remote_code=True),
    ]
    for item in (*found, segmenter, segmenter.model, segmenter.image_processor):
        assert type(item).__module__.startswith("maskformer_hf."), type(item)
    assert warnings(caplog) == []


def test_a_video_processor_is_found_by_both_auto_classes(tmp_path, caplog):
    maskformer_hf.MaskFormerVideoConfig(backbone_config={"model_type": "resnet"}).save_pretrained(tmp_path)
    maskformer_hf.MaskFormerVideoProcessor().save_pretrained(tmp_path)
    assert read(tmp_path, PROCESSOR)["auto_map"] == auto_classes.VIDEO_PROCESSOR
    for name in auto_classes.VIDEO_PROCESSOR:
        processor = getattr(transformers, name).from_pretrained(tmp_path)
        assert type(processor) is maskformer_hf.MaskFormerVideoProcessor
    assert warnings(caplog) == []


def test_bundled_checkpoints_are_found_by_name(tmp_path, monkeypatch, tiny_model):
    config = MaskFormerConfig.from_pretrained("street")
    processor = MaskFormerImageProcessor.from_pretrained("street")
    model = MaskFormerForUniversalSegmentation.from_pretrained("street")
    expected, expected_processor = maskformer_hf.load("street", "cpu")
    assert config.id2label == model.config.id2label == expected.config.id2label
    assert processor.to_dict() == expected_processor.to_dict()
    weights = expected.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in model.float().state_dict().items())
    # A folder of one's own goes first.
    monkeypatch.chdir(tmp_path)
    tiny_model.config.save_pretrained("street")
    assert MaskFormerConfig.from_pretrained("street").id2label == tiny_model.config.id2label
