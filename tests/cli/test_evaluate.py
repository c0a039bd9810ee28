"""`maskformer evaluate`: figures, pictures and refusals."""

import json
import shutil

import numpy as np
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.cli.command_line import one_line_error, write_data


def test_evaluate(run, tiny_checkpoint, tmp_path):
    data = write_data(tmp_path / "data")
    table = run("evaluate", tiny_checkpoint, data / "val", "--device", "cpu")
    assert table.exit_code == 0, table.output
    assert "mean IoU" in table.stdout
    result = run("evaluate", tiny_checkpoint, data / "val", "--json", "--output", "scores.json", "--device", "cpu")
    scores = json.loads(result.stdout)
    assert 0 <= scores["mean_iou"] <= 1
    assert json.loads((tmp_path / "scores.json").read_text())["mean_iou"] == scores["mean_iou"]


def test_evaluate_draws_the_worst_images(run, tiny_checkpoint, tmp_path):
    data = write_data(tmp_path / "data")
    options = ("--split", "val", "--worst", "1", "--picture", "bad.png", "--boundary", "--device", "cpu")
    result = run("evaluate", tiny_checkpoint, data, *options)
    assert result.exit_code == 0, result.output
    assert "boundary IoU" in result.stdout
    assert "Saved bad.png" in result.stdout
    one = Image.open(tmp_path / "bad.png")
    result = run("evaluate", tiny_checkpoint, data / "val", "--worst", "2", "--json", "--device", "cpu")
    assert [row["index"] for row in json.loads(result.stdout)["per_image"]] == [0, 1]
    assert Image.open(tmp_path / "worst.png").height > 1.5 * one.height


def test_evaluate_instances_and_panoptic_segments(run, tiny_checkpoint, tmp_path):
    """One folder, two jsons: objects in two of four classes, and segments in all of them."""
    names = ("sky", "road", "car", "person")
    categories = [
        {"id": index, "name": name, "isthing": int(index > 1), "supercategory": "stuff" if index < 2 else "thing"}
        for index, name in enumerate(names)
    ]
    image = {"id": 1, "file_name": "1.png", "height": 48, "width": 64}
    (tmp_path / "panoptic").mkdir()
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(tmp_path / "1.png")
    ids = np.repeat(np.arange(4, dtype=np.uint8), 16)[None].repeat(48, 0) + 1
    Image.fromarray(np.stack([ids, 0 * ids, 0 * ids], -1)).save(tmp_path / "panoptic" / "1.png")
    segments = [
        {"id": index + 1, "category_id": index, "area": 768, "bbox": [16 * index, 0, 16, 48], "iscrowd": 0}
        for index in range(4)
    ]
    panoptic = [{"image_id": 1, "file_name": "1.png", "segments_info": segments}]
    (tmp_path / "panoptic.json").write_text(
        json.dumps({"images": [image], "categories": categories, "annotations": panoptic})
    )
    outlines = [[16 * index, 0, 16 * index + 16, 0, 16 * index + 16, 48, 16 * index, 48] for index in range(4)]
    instances = [
        {**segment, "image_id": 1, "segmentation": [outline]}
        for segment, outline in zip(segments[2:], outlines[2:], strict=True)
    ]
    (tmp_path / "instances.json").write_text(
        json.dumps({"images": [image], "categories": categories[2:], "annotations": instances})
    )
    common = (tiny_checkpoint, "--device", "cpu", "--json")
    expected = {"panoptic.json": ("panoptic", "pq", 4), "instances.json": ("instance", "ap", 2)}
    for file, (task, score_name, num_classes) in expected.items():
        result = run("evaluate", *common[:1], tmp_path / file, *common[1:])
        assert result.exit_code == 0, result.output
        figures = json.loads(result.stdout)
        assert (figures["task"], figures["score_name"], len(figures["per_class"])) == (task, score_name, num_classes)
        table = run("evaluate", tiny_checkpoint, tmp_path / file, "--device", "cpu").stdout
        assert {"panoptic": "things", "instance": "AR at 100"}[task] in table
    result = run("evaluate", *common[:1], tmp_path, "--format", "coco_panoptic", "--task", "semantic", *common[1:])
    assert json.loads(result.stdout)["score_name"] == "mean_iou", result.output
    # A checkpoint that was trained on groups of classes says so.
    grouped = shutil.copytree(tiny_checkpoint, tmp_path / "grouped")
    config = json.loads((grouped / "config.json").read_text())
    config |= {"id2label": {"0": "stuff", "1": "thing"}, "label2id": {"stuff": 0, "thing": 1}, "label_ids_to_fuse": [0]}
    (grouped / "config.json").write_text(json.dumps(config))
    weights = load_file(grouped / "model.safetensors")
    weights = {name: part[[0, 1, 4]] if "class_predictor" in name else part for name, part in weights.items()}
    save_file(weights, grouped / "model.safetensors", metadata={"format": "pt"})
    arguments = ("evaluate", grouped, tmp_path / "panoptic.json", "--device", "cpu", "--json")
    assert "class_groups" in one_line_error(run(*arguments))
    result = run(*arguments, "--class-groups", "supercategory")
    assert [row["label"] for row in json.loads(result.stdout)["per_class"]] == ["stuff", "thing"]
    groups = {"stuff": ["sky", "road"], "thing": ["car", "person"]}
    (grouped / "training.json").write_text(json.dumps({"recipe": {"data": {"class_groups": groups}}}))
    assert json.loads(run(*arguments).stdout)["pq"] == json.loads(result.stdout)["pq"]


def test_evaluate_mistakes(run, tiny_checkpoint, tmp_path):
    assert "nowhere" in one_line_error(run("evaluate", tiny_checkpoint, "nowhere"))
    assert "say which split" in one_line_error(run("evaluate", tiny_checkpoint, "me/photos", "--format", "datasets"))
    assert "no checkpoint 'nonsense'" in one_line_error(run("evaluate", "nonsense", tmp_path))
    data = write_data(tmp_path / "data", names=("sky", "road", "car", "bus"))
    common = ("evaluate", tiny_checkpoint, data / "val", "--device", "cpu")
    assert "'bus'" in one_line_error(run(*common))
    assert "semantic" in one_line_error(run(*common, "--task", "panoptic"))
    assert "class_groups" in one_line_error(run(*common, "--class-groups", "kind"))
    assert "'yolo'" in one_line_error(run(*common, "--format", "nothing"))
    assert "no image format" in one_line_error(run(*common, "--worst", "2", "--picture", "worst.txt"))
    assert "--worst" in one_line_error(run(*common, "--picture", "worst.png"))
    result = run("evaluate", tiny_checkpoint, data, "--split", "test", "--device", "cpu")
    assert result.exit_code == 1
    assert "Looked for:\n  semantic_folder: " in result.stderr
