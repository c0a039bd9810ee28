"""The model card says what the records in the folder say, and no more."""

import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from builders import STAGES, resnet, tiny_transformers_config
from maskformer_hf import hub
from maskformer_hf.model_card import MARK, write_model_card
from maskformer_hf.training.arguments import read_recipe
from maskformer_hf.training.model_folder import ImageCounts, training_record

RECIPE = Path(__file__).parents[2] / "recipes" / "camvid" / "street.yaml"
EVALUATION = {
    "mean_iou": 0.75123,
    "pixel_accuracy": 0.9,
    "per_class": [
        {"label": "sky", "iou": 0.9, "accuracy": 0.95, "pixels": 300},
        {"label": "left | right", "iou": None, "accuracy": None, "pixels": 100},
    ],
    "images": 101,
}


@pytest.fixture
def folder(tiny_checkpoint, tmp_path) -> Path:
    return shutil.copytree(tiny_checkpoint, tmp_path / "tiny")


@pytest.fixture
def trained(folder) -> Path:
    record = training_record(
        read_recipe(RECIPE, ["data.root=/data/camvid", "steps=1400"]),
        ImageCounts(training=367, validation=101),
        step=700,
        evaluation=EVALUATION,
        seconds=4000,
        machine="2 threads of a processor",
        command="maskformer train street.yaml --set steps=1400",
    )
    (folder / "training.json").write_text(json.dumps(record))
    return folder


def test_a_checkpoint_without_records(folder):
    card = ModelCard.load(write_model_card(folder))
    assert card.data.tags == ["maskformer", "maskformer_hf", "panoptic-segmentation"]
    assert card.data.pipeline_tag == "image-segmentation"
    assert card.data.eval_results is None
    assert card.data.license is None
    assert "| Classes | 4: sky, road, car, person |" in card.text
    assert "resnet (1-1-1-1 blocks)" in card.text
    assert 'load("tiny")' in card.text
    assert "None was stated for the weights" in card.text
    for heading in ("What it was trained on", "How good it is", "How fast it is"):
        assert heading not in card.text
    assert "None\n" not in card.text.replace("None was", "")
    assert "\n\n\n" not in card.text


def test_numbers_are_those_of_the_files(folder, tiny_model):
    text = write_model_card(folder).read_text()
    size = (folder / "model.safetensors").stat().st_size
    # Frozen BatchNorm keeps its affine terms in the file, though they are no parameters.
    weights = sum(
        value.numel()
        for name, value in tiny_model.state_dict().items()
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))
    )
    assert f"| Weights | {weights / 1e6:.2f} million, {size / 1e6:.1f} MB in float32 |" in text


def test_training_and_evaluation(trained):
    card = ModelCard.load(write_model_card(trained))
    [mean_iou, accuracy] = card.data.eval_results
    assert (mean_iou.metric_type, mean_iou.metric_value) == ("mean_iou", 0.75123)
    assert (mean_iou.dataset_name, mean_iou.dataset_type, mean_iou.task_type) == (
        "camvid",
        "camvid",
        "image-segmentation",
    )
    assert accuracy.metric_type == "accuracy"
    assert "```bash\nmaskformer train street.yaml --set steps=1400\n```" in card.text
    assert "after step 700 of 1400; 6 images a step; seed 0; 1 h 07 min on 2 threads of a processor" in card.text
    assert "learning_rate: 0.0005" in card.text
    assert "On 101 images of camvid, `val`" in card.text
    assert "| mean IoU | 0.7512 |" in card.text
    assert "| sky | 90.0% | 95.0% | 75.0% |" in card.text
    assert "| left \\| right |  |  | 25.0% |" in card.text


def test_a_later_evaluation_counts_instead(trained):
    (trained / "evaluation.json").write_text(json.dumps({"mean_iou": 0.5, "data": "/elsewhere/winter/test"}))
    card = ModelCard.load(write_model_card(trained))
    assert [result.metric_value for result in card.data.eval_results] == [0.5]
    assert card.data.eval_results[0].dataset_name == "winter"
    assert "On winter, `test`" in card.text
    assert "0.7512" not in card.text


def test_objects_and_segments_have_their_own_figures(folder):
    record = {"task": "instance", "data": "/data/cells", "split": "val", "images": 66, "max_detections": 400}
    record |= {"ap": 0.4567, "ap50": 0.7, "ap_large": None, "ar": 0.5, "score": 0.4567, "score_name": "ap"}
    record["per_class"] = [{"label": "cell", "ap": 0.4567, "ap50": 0.7, "ar": 0.5, "objects": 12}]
    (folder / "evaluation.json").write_text(json.dumps(record))
    card = ModelCard.load(write_model_card(folder))
    assert "On 66 images of cells, `val`, each at its own size. The 400 best objects of an image count." in card.text
    assert "| mask AP | 45.7 |" in card.text
    assert "large objects" not in card.text
    assert "| class | AP | AP50 | average recall |\n|---|---|---|---|\n| cell | 45.7% | 70.0% | 50.0% |" in card.text
    assert [(result.metric_type, result.metric_value) for result in card.data.eval_results] == [
        ("mask_ap", 0.4567),
        ("mask_ap50", 0.7),
        ("mask_ar", 0.5),
    ]
    assert card.data.eval_results[0].task_name == "Instance segmentation"

    record = {"task": "panoptic", "data": "/data/coco/panoptic_val.json", "pq": 0.312, "pq_stuff": None, "sq": 0.8}
    record["per_class"] = [{"label": "sky", "pq": 0.5, "sq": 0.8, "rq": 0.625}, dict.fromkeys(("pq", "sq", "rq"))]
    record["per_class"][1]["label"] = "cat"
    (folder / "evaluation.json").write_text(json.dumps(record))
    card = ModelCard.load(write_model_card(folder))
    assert "On coco, `panoptic_val.json`" in card.text
    assert "| panoptic quality, PQ | 31.2 |" in card.text
    assert "| sky | 50.0% | 80.0% | 62.5% |\n| cat |  |  |  |" in card.text
    assert "PQ of stuff" not in card.text


def test_speed_is_of_the_machine_it_was_measured_on(folder):
    speed = hub.measure_speed(folder, device="cpu")
    assert json.loads((folder / "speed.json").read_text()) == speed
    text = write_model_card(folder).read_text()
    assert f"{speed['milliseconds']:.0f} ms for a photo of 427 x 240 pixels" in text
    assert speed["machine"] in text


def test_words_of_the_author(folder):
    (folder / "model_card.yaml").write_text(
        "title: My model\nlimits: Night.\nlicence: cc-by-4.0\ntags: [night]\ndataset_name: Nights\n"
    )
    card = ModelCard.load(write_model_card(folder, limits="Day."))
    assert card.text.strip().startswith("# My model")
    assert card.data.license == "cc-by-4.0"
    assert card.data.tags[-1] == "night"
    assert "\nDay.\n" in card.text
    assert "Night." not in card.text
    assert "trained on Nights" in card.text
    with pytest.raises(ValueError, match="no place for colour"):
        write_model_card(folder, colour="red")


def test_a_broken_record_is_named(folder):
    (folder / "training.json").write_text("{")
    with pytest.raises(ValueError, match=r"training\.json"):
        write_model_card(folder)
    (folder / "training.json").unlink()
    (folder / "model_card.yaml").write_text("a: [")
    with pytest.raises(ValueError, match=r"model_card\.yaml"):
        write_model_card(folder)
    with pytest.raises(ValueError, match=r"config\.json"):
        write_model_card(folder.parent)


def test_a_card_written_by_hand_is_kept(trained, tmp_path):
    write_model_card(trained)
    (trained / "sample.png").write_bytes((hub.PHOTO).read_bytes())
    hub.prepare_repository(trained, tmp_path / "first", "me/tiny")
    text = (tmp_path / "first" / "README.md").read_text()
    assert 'model="me/tiny", trust_remote_code=True' in text
    assert (tmp_path / "first" / "sample.png").read_bytes() == hub.PHOTO.read_bytes()
    assert not (tmp_path / "first" / "sample.LICENSE.txt").exists()
    assert (tmp_path / "first" / "training.json").is_file()
    (trained / "README.md").write_text(text.replace(MARK, "").replace("me/tiny", "by hand"))
    hub.prepare_repository(trained, tmp_path / "second", "me/tiny")
    assert "by hand" in (tmp_path / "second" / "README.md").read_text()


def test_a_checkpoint_of_transformers_is_translated(tmp_path):
    from transformers import MaskFormerForInstanceSegmentation, MaskFormerImageProcessor

    from maskformer_hf import load

    config = tiny_transformers_config(backbone_config=resnet(8, 8, 8, 8, out_features=STAGES))
    MaskFormerForInstanceSegmentation(config).save_pretrained(tmp_path / "theirs")
    MaskFormerImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(tmp_path / "theirs")
    hub.prepare_repository(tmp_path / "theirs", tmp_path / "ours", "me/ours")
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["model_type"] == "maskformer_hf"
    theirs, _ = load(tmp_path / "theirs")
    ours, _ = load(tmp_path / "ours")
    assert all((weight == ours.state_dict()[name]).all() for name, weight in theirs.state_dict().items())
