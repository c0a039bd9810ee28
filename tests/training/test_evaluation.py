"""`evaluate` for each task: what the model finds is compared with what the data say, by the names of the classes."""

import copy
import json
import math
import os
import shutil
import socket
import subprocess
import sys

import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from maskformer_hf import predict
from maskformer_hf.data import VOID, planes_from_masks
from maskformer_hf.training import evaluate, evaluate_checkpoint, format_table
from maskformer_hf.training.comparison import draw_worst
from maskformer_hf.training.json_files import write_json


class Found:
    """Noise images, annotated with what a model finds in them; `change` alters a sample."""

    def __init__(self, model, processor, task, *, labels=None, change=lambda sample: sample, count=4):
        self.task = task
        trained = list(model.config.id2label.values())
        self.names = labels or trained
        self.id2label = dict(enumerate(self.names))
        stuff = {trained[index] for index in model.config.label_ids_to_fuse}
        self.label_ids_to_fuse = [i for i, name in self.id2label.items() if name in stuff and task != "instance"]
        self.samples = []
        generator = torch.Generator().manual_seed(0)
        for index in range(count):
            size = (70 + 6 * index, 90 - 4 * index)
            image = torch.randint(0, 255, (3, 9, 9), generator=generator).float()[None]
            image = torch.nn.functional.interpolate(image, size=size, mode="bicubic")[0].clamp(0, 255).to(torch.uint8)
            threshold = 0 if task == "instance" else None
            [found] = predict(model, processor, image, task=task, threshold=threshold, max_instances=100)
            if task == "instance":
                planes = planes_from_masks(found.masks)
                segments = found.segments
            else:
                void = 0 if task == "panoptic" else -1
                segments = found.segments
                ids = torch.full((int(found.segmentation.max()) + 2,), VOID, dtype=torch.int32)
                for number, segment in enumerate(segments, start=1):
                    ids[segment["id"]] = number
                ids[void] = VOID
                planes = ids[found.segmentation.long()][None]
            sample = {
                "image": tv_tensors.Image(image),
                "planes": tv_tensors.Mask(planes),
                "labels": torch.tensor([self.names.index(segment["label"]) for segment in segments], dtype=torch.int64),
                "is_crowd": torch.zeros(len(segments), dtype=torch.bool),
                "name": f"noise {index}",
            }
            self.samples.append(change(sample))

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]


THINGS = ["car", "person"]


def labels_of(task):
    return THINGS if task == "instance" else None


def run(model, processor, data, **options):
    return evaluate(model, processor, data, progress=False, **options)


def shift(sample):
    """Annotations that the model does not quite meet."""
    return {**sample, "planes": tv_tensors.Mask(sample["planes"].roll(1, 2))}


@pytest.mark.parametrize("task", ["semantic", "instance", "panoptic"])
def test_what_a_model_finds_is_perfect(tiny_model, tiny_processor, task):
    data = Found(tiny_model, tiny_processor, task, labels=labels_of(task))
    result = run(tiny_model, tiny_processor, data, task=task, boundary=task != "panoptic", batch_size=3)
    assert result["task"] == task
    assert result["score"] == result[result["score_name"]] == pytest.approx(1)
    figures = {"semantic": ["boundary_iou"], "instance": ["boundary_ap", "ar"], "panoptic": ["pq_things", "pq_stuff"]}
    assert all(result[name] == pytest.approx(1) for name in figures[task])
    assert len(result["per_class"]) == len(data.id2label)
    assert sum(row.get("pixels", row.get("objects", row.get("true_positives"))) for row in result["per_class"]) > 4
    table = format_table(result)
    assert all(name in table for name in data.names)
    assert "100.0" in table


@pytest.mark.parametrize("task", ["semantic", "instance", "panoptic"])
def test_classes_are_told_by_name(tiny_model, tiny_processor, task):
    names = labels_of(task) or list(tiny_model.config.id2label.values())
    ordered = run(
        tiny_model, tiny_processor, Found(tiny_model, tiny_processor, task, labels=names, change=shift), task=task
    )
    turned = run(
        tiny_model, tiny_processor, Found(tiny_model, tiny_processor, task, labels=names[::-1], change=shift), task=task
    )
    assert 0.05 < ordered["score"] < 1
    assert turned["score"] == ordered["score"]
    assert [row["label"] for row in turned["per_class"]] == names[::-1]
    assert str(turned["per_class"][::-1]) == str(ordered["per_class"])

    wrong = Found(tiny_model, tiny_processor, task, labels=names)
    wrong.id2label = dict(enumerate([*names[:-1], "bus"]))
    with pytest.raises(ValueError, match=r"only in the model: 'person'; only in the data: 'bus'.*class_groups"):
        run(tiny_model, tiny_processor, wrong, task=task)


def test_the_task_is_what_model_and_data_share(tiny_model, tiny_processor):
    assert tiny_model.config.task == "panoptic"
    for task in ("semantic", "instance", "panoptic"):
        data = Found(tiny_model, tiny_processor, task, labels=labels_of(task), count=1)
        assert run(tiny_model, tiny_processor, data)["task"] == task
    data = Found(tiny_model, tiny_processor, "panoptic", count=1)
    for task in ("semantic", "instance"):
        result = run(tiny_model, tiny_processor, data, task=task)
        assert result["task"] == task
    assert [row["label"] for row in result["per_class"]] == THINGS
    with pytest.raises(ValueError, match="these annotations are semantic"):
        run(tiny_model, tiny_processor, Found(tiny_model, tiny_processor, "semantic", count=1), task="panoptic")
    with pytest.raises(ValueError, match="'semantic' and 'instance'"):
        run(tiny_model, tiny_processor, data, boundary=True)


def turn_into(what):
    """Takes all segments of every second image out of the annotation: they become nothing, void, or crowds."""

    def change(sample):
        if sample["name"] in ("noise 0", "noise 2"):
            return sample
        if what == "crowd":
            return {**sample, "is_crowd": torch.ones_like(sample["is_crowd"])}
        planes = torch.full_like(sample["planes"][:1], 0 if what == "background" else VOID)
        planes[0][(sample["planes"] <= 0).all(0)] = VOID
        nothing = {"labels": sample["labels"][:0], "is_crowd": sample["is_crowd"][:0]}
        return {**sample, **nothing, "planes": tv_tensors.Mask(planes)}

    return change


@pytest.mark.parametrize("task", ["instance", "panoptic"])
def test_void_and_crowd_excuse_and_background_does_not(tiny_model, tiny_processor, task):
    def score(what):
        data = Found(tiny_model, tiny_processor, task, labels=labels_of(task), change=turn_into(what))
        result = run(tiny_model, tiny_processor, data, task=task)
        return result["ap50" if task == "instance" else "rq"]

    assert score("crowd") == score("void") == pytest.approx(1)
    assert score("background") < 0.95


def test_each_image_has_its_score(tiny_model, tiny_processor, tmp_path):
    for task in ("semantic", "instance", "panoptic"):
        data = Found(tiny_model, tiny_processor, task, labels=labels_of(task))
        labels = (data.samples[2]["labels"] + 1) % len(data.names)
        data.samples[2] = {**shift(data.samples[2]), "labels": labels}
        together = run(tiny_model, tiny_processor, data, task=task)
        result = run(tiny_model, tiny_processor, data, task=task, per_image=True, batch_size=2)
        assert result["score"] == together["score"]
        assert [row["name"] for row in result["per_image"]] == [sample["name"] for sample in data.samples]
        assert [row["score"] < 0.99 for row in result["per_image"]] == [False, False, True, False]
        single = copy.copy(data)
        single.samples = data.samples[2:3]
        assert run(tiny_model, tiny_processor, single, task=task)["score"] == result["per_image"][2]["score"]

        path = tmp_path / task / "worst.png"
        names = draw_worst(tiny_model, tiny_processor, data, result["per_image"], 2, result["score_name"], path)
        assert names[0] == "noise 2"
        assert len(names) == 2
        picture = Image.open(path)
        assert picture.width >= 3 * 480
        assert len(set(picture.convert("L").get_flattened_data())) > 50
    with pytest.raises(ValueError, match="no image has a score"):
        draw_worst(tiny_model, tiny_processor, data, [{"name": "", "index": 0, "score": math.nan}], 2, "ap", path)


def test_the_threshold_leaves_out_what_is_below(tiny_model, tiny_processor):
    for task in ("instance", "panoptic"):
        data = Found(tiny_model, tiny_processor, task, labels=labels_of(task))
        assert run(tiny_model, tiny_processor, data, task=task, threshold=1)["score"] == 0
        assert run(tiny_model, tiny_processor, data, task=task)["score"] == pytest.approx(1)


def test_tiles_are_used_where_the_processor_says_so(tiny_model, tiny_processor):
    tiled = copy.copy(tiny_processor)
    tiled.tile_size = 48
    for task in ("semantic", "instance", "panoptic"):
        data = Found(tiny_model, tiled, task, labels=labels_of(task), count=2)
        score = run(tiny_model, tiled, data, task=task)["score"]
        assert score == pytest.approx(1) if task != "instance" else score > 0.9
        assert run(tiny_model, tiny_processor, data, task=task)["score"] < score


def test_json_has_no_nan(tmp_path):
    write_json(tmp_path / "result.json", {"ap": math.nan, "per_class": [{"ap": math.nan}, {"ap": 0.5}]})
    assert json.loads((tmp_path / "result.json").read_text()) == {"ap": None, "per_class": [{"ap": None}, {"ap": 0.5}]}


PROCESS = """
import json, os, sys
sys.path[:0] = [sys.argv[1], sys.argv[2]]
from accelerate import PartialState
from maskformer_hf import load
from test_evaluation import Found, labels_of, shift
from maskformer_hf.training import evaluate

state = PartialState(cpu=True)
model, processor = load(sys.argv[3], device="cpu")
results = {}
for task in ("semantic", "instance", "panoptic"):
    data = Found(model, processor, task, labels=labels_of(task), change=shift, count=5)
    options = {"task": task, "boundary": task != "panoptic", "per_image": True, "progress": False, "batch_size": 2}
    processes = (state.process_index, state.num_processes)
    results[task] = evaluate(model, processor, data, processes=processes, **options)
    if state.is_main_process:
        results[f"one {task}"] = evaluate(model, processor, data, **options)
print(json.dumps(results))
"""


@pytest.mark.slow
def test_two_processes_give_what_one_gives(tiny_checkpoint_dir):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = os.path.dirname(__file__)
    workers = []
    for rank in range(2):
        variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = {**os.environ, **{name: str(value) for name, value in variables.items()}, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", PROCESS, folder, os.path.dirname(folder), str(tiny_checkpoint_dir)]
        workers.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    outputs = [worker.communicate(timeout=240) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], outputs
    first, second = (json.loads(stdout.splitlines()[-1]) for stdout, _ in outputs)
    for task in ("semantic", "instance", "panoptic"):
        one = first[f"one {task}"]
        assert 0.05 < one["score"] < 1
        for result in (first[task], second[task]):
            assert result["images"] == len(result["per_image"]) == 5
            for name in one.keys() - {"seconds", "images_per_second"}:
                assert str(result[name]) == str(one[name]), (task, name)


@pytest.fixture(scope="module")
def tiny_checkpoint_dir(tmp_path_factory, tiny_model, tiny_processor):
    folder = tmp_path_factory.mktemp("evaluated")
    tiny_model.save_pretrained(folder)
    tiny_processor.save_pretrained(folder)
    return folder


def test_groups_of_the_training_are_for_its_own_classes(shapes, tiny_checkpoint, tmp_path):
    """Data of other classes are not grouped as those were: it is said which classes differ."""
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "grouped")
    data = {"class_groups": {"car": ["bus", "van"]}, "void_classes": []}
    (folder / "training.json").write_text(json.dumps({"recipe": {"data": data}}))
    with pytest.raises(ValueError, match=r"different classes .*only in data .*: 'box'"):
        evaluate_checkpoint(folder, shapes / "val")


def test_another_merging_is_measured(tiny_model, tiny_processor):
    data = Found(tiny_model, tiny_processor, "panoptic", count=2)
    figures = [run(tiny_model, tiny_processor, data, merging=merging) for merging in (None, "argmax", "mask_wise")]
    assert figures[0]["pq"] == figures[1]["pq"] == pytest.approx(1) != figures[2]["pq"]
    with pytest.raises(ValueError, match="merging='mask_wise' is for panoptic results, and semantic ones are measured"):
        run(tiny_model, tiny_processor, data, task="semantic", merging="mask_wise")
