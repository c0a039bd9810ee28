import json

import pytest
import torch

from maskformer_hf.models.image_processing_maskformer import MaskFormerHfImageProcessor
from maskformer_hf.models.modeling_maskformer import MaskFormerHfForUniversalSegmentation
from maskformer_hf.training import TrainingDivergedError, evaluate_checkpoint, loop, train
from maskformer_hf.training.checkpointing import begin_folder, finish_folder, keep_last, numbered_folders


def losses(folder) -> dict[int, float]:
    """The last loss logged for each step."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def test_training_lowers_the_loss_and_leaves_a_model(recipe, shapes, tmp_path):
    model_folder = train(recipe, ["steps=40", "evaluate_every=20", "save_every=20", "export_dtype=float16"])
    assert model_folder == tmp_path / "run" / "model"
    history = losses(tmp_path / "run")
    assert list(history) == list(range(1, 41))
    assert sum(history[step] for step in range(36, 41)) < 0.7 * sum(history[step] for step in range(1, 6))
    assert [path.name for path in numbered_folders(tmp_path / "run", "checkpoint-")] == [
        "checkpoint-000020",
        "checkpoint-000040",
    ]
    assert len(numbered_folders(tmp_path / "run", "best-")) == 1
    assert not list((tmp_path / "run").glob(".incomplete*"))

    model, report = MaskFormerHfForUniversalSegmentation.from_pretrained(model_folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert model.config.id2label == {0: "ground", 1: "box", 2: "sky"}
    assert model.dtype == torch.float32
    assert MaskFormerHfImageProcessor.from_pretrained(model_folder).size["shortest_edge"] == 48

    record = json.loads((model_folder / "training.json").read_text())
    assert record["recipe"]["steps"] == 40
    assert record["step"] in (20, 40)
    assert record["evaluation"]["images"] == record["data"]["validation_images"] > 0
    assert record["seconds"] >= 0
    assert f"| mean IoU | {record['evaluation']['mean_iou']:.4f} |" in (model_folder / "README.md").read_text()

    result = evaluate_checkpoint(model_folder, shapes / "val", json_path=tmp_path / "result.json", batch_size=2)
    assert [item["label"] for item in result["per_class"]] == ["ground", "box", "sky"]
    assert json.loads((tmp_path / "result.json").read_text())["mean_iou"] == result["mean_iou"]
    best = max(
        line["val_mean_iou"]
        for line in map(json.loads, (tmp_path / "run" / "log.jsonl").read_text().splitlines())
        if "val_mean_iou" in line
    )
    assert result["mean_iou"] == pytest.approx(best, abs=0.02)  # float16 weights


def test_resumed_run_repeats_an_uninterrupted_one(recipe, tmp_path):
    train(recipe, output_dir=tmp_path / "whole")
    saved = loop.save_checkpoint

    class KilledError(Exception):
        pass

    def save_and_die(accelerator, output_dir, step):
        saved(accelerator, output_dir, step)
        begin_folder(output_dir / "checkpoint-000009")  # what a kill during a save leaves
        raise KilledError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "save_checkpoint", save_and_die)
        for _ in range(2):
            with pytest.raises(KilledError):
                train(recipe, resume=True, output_dir=tmp_path / "parts")
    train(recipe, resume=True, output_dir=tmp_path / "parts")
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    whole, parts = (
        MaskFormerHfForUniversalSegmentation.from_pretrained(tmp_path / name / "model").state_dict()
        for name in ("whole", "parts")
    )
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert not list((tmp_path / "parts").glob(".incomplete*"))


def test_started_again_without_resume_is_refused(recipe):
    train(recipe, ["steps=2"])
    with pytest.raises(ValueError, match="pass --resume"):
        train(recipe, ["steps=2"])


def test_diverged_run_stops_and_keeps_the_last_good_checkpoint(recipe, tmp_path):
    step = loop.training_step

    def poison(accelerator, model, optimizer, batches, max_gradient_norm):
        if len(numbered_folders(tmp_path / "run", "checkpoint-")) == 2:
            with torch.no_grad():
                next(iter(model.parameters())).fill_(float("nan"))
        return step(accelerator, model, optimizer, batches, max_gradient_norm)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "training_step", poison)
        with pytest.raises(TrainingDivergedError, match=r"step 5: .*last good checkpoint is .*checkpoint-000004"):
            train(recipe)
    train(recipe, resume=True)
    assert losses(tmp_path / "run").keys() == set(range(1, 7))


def test_the_model_knows_how_far_training_is(recipe):
    step, told = loop.training_step, []

    def watch(accelerator, model, *arguments):
        told.append(accelerator.unwrap_model(model).training_progress)
        return step(accelerator, model, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "training_step", watch)
        train(recipe, ["steps=4", "data.validation=null"])
    assert told == [0, 0.25, 0.5, 0.75]


def test_accumulation_equals_one_larger_batch(recipe, tmp_path):
    """The loss of classes is comparable in the first step only: later ones depend on the sampled points."""
    train(recipe, ["steps=1", "batch_size=4"], output_dir=tmp_path / "large")
    train(recipe, ["steps=1", "batch_size=2", "accumulation=2"], output_dir=tmp_path / "small")
    large, small = losses(tmp_path / "large"), losses(tmp_path / "small")
    assert large[1] == pytest.approx(small[1], rel=0.1)


def test_autocast_keeps_named_modules_in_float32(recipe, tmp_path):
    """Also one that is given what others computed in less."""
    seen = {}

    def remember(name):
        # The first step counts: the picture of predictions is made without autocast.
        return lambda module, inputs, output: seen.update({name: seen.get(name, output.dtype)})

    build = loop.build_model

    def build_and_watch(*arguments):
        model = build(*arguments)
        for name in ("model.pixel_decoder.stem", "model.transformer_decoder.layers.0.ffn.fc1"):
            model.get_submodule(name).register_forward_hook(remember(name.split(".")[1]))
        return model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "build_model", build_and_watch)
        train(
            recipe, ["steps=2", "mixed_precision=bf16", "float32_modules=[model.pixel_decoder]", "channels_last=true"]
        )
    assert seen == {"pixel_decoder": torch.float32, "transformer_decoder": torch.bfloat16}
    with pytest.raises(ValueError, match=r"model\.bakbone"):
        train(recipe, ["mixed_precision=bf16", "float32_modules=[model.bakbone]"], output_dir=tmp_path / "other")


def test_unknown_config_field_is_refused(recipe):
    with pytest.raises(ValueError, match="did you mean num_queries"):
        train(recipe, ["model.config.num_querys=5"])


def test_evaluation_refuses_other_classes(shapes, tiny_checkpoint):
    with pytest.raises(
        ValueError, match=r"only in checkpoint .*: 'LABEL_0', 'LABEL_1'; only in data .*: 'box', 'ground', 'sky'"
    ):
        evaluate_checkpoint(tiny_checkpoint, shapes / "val")
    with pytest.raises(ValueError, match="`dtype` must be one of"):
        evaluate_checkpoint(tiny_checkpoint, shapes / "val", dtype="half")


def test_folders_appear_whole(tmp_path):
    for step in (5, 40, 300):
        folder = tmp_path / f"checkpoint-{step}"
        (begin_folder(folder) / "weights").write_text(str(step))
        assert not folder.exists()
        finish_folder(folder)
    assert [path.name for path in numbered_folders(tmp_path, "checkpoint-")] == [
        "checkpoint-5",
        "checkpoint-40",
        "checkpoint-300",
    ]
    (begin_folder(folder) / "weights").write_text("again")
    finish_folder(folder)
    assert (folder / "weights").read_text() == "again"
    keep_last(tmp_path, "checkpoint-", 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-300", "checkpoint-40"]
