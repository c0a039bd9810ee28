"""`maskformer train`: a run, resuming it, and refusals."""

from tests.cli.command_line import one_line_error, write_data

RECIPE = """
data: {{root: {data}}}
augmentation: {{short_edge: [64, 64], crop_size: [64, 64]}}
model:
  checkpoint: {checkpoint}
optimization: {{learning_rate: 1.0e-4}}
steps: 2
batch_size: 2
save_every: 1
evaluate_every: 2
"""


def test_train_and_resume(run, tiny_checkpoint, tmp_path, photo_paths):
    data = write_data(tmp_path / "data")
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(data=data, checkpoint=tiny_checkpoint))
    result = run("train", "recipe.yaml", "--output", "run", "--set", "steps=1", "--set", "evaluate_every=1")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1].startswith("Saved")
    result = run("train", "recipe.yaml", "--output", "run", "--resume")
    assert result.exit_code == 0, result.output
    assert run("segment", photo_paths[0], "--checkpoint", tmp_path / "run" / "model").exit_code == 0


def test_train_mistakes(run, tmp_path):
    assert "nothing.yaml" in one_line_error(run("train", "nothing.yaml"))
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(data="data", checkpoint="nowhere"))
    assert "stepz" in one_line_error(run("train", "recipe.yaml", "--set", "stepz=1"))
    assert "data" in one_line_error(run("train", "recipe.yaml"))
