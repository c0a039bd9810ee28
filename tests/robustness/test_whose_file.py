"""No command writes over a file that it has not written itself in the same run, and files appear whole."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from maskformer_hf.cli import app
from maskformer_hf.output_files import save_picture, whole_file, write_text
from tests.layouts import LAYOUTS


def run(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)])


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch, photo_paths):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for name in ("a", "b"):
        Image.open(photo_paths[0]).resize((64, 48)).save(tmp_path / f"photos/{name}.jpg")
    return tmp_path


def refused(path, *arguments):
    """Runs a command that would write over `path`, and then with --overwrite."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"mine")
    result = run(*arguments)
    assert result.exit_code == 1, result.output
    [line] = result.stderr.strip().splitlines()
    assert "is there already, and would be overwritten: choose another --" in line
    assert line.endswith("or pass --overwrite")
    assert path.read_bytes() == b"mine"
    result = run(*arguments, "--overwrite")
    assert result.exit_code == 0, result.output
    assert path.read_bytes() != b"mine"


def test_the_json_of_the_annotator(workplace, tiny_checkpoint):
    """`segment -o FOLDER_OF_PHOTOS --json` would write the json of a photo where a labelling tool has its own."""
    photos = ("photos/a.jpg", "photos/b.jpg")
    refused(workplace / "photos/b.json", "segment", *photos, "-c", tiny_checkpoint, "-o", "photos", "--json")
    assert json.loads((workplace / "photos/a.json").read_text())["segments"]
    assert Image.open(workplace / "photos/a.jpg").size == (64, 48)


def test_photos_stay_even_with_overwrite(workplace, tiny_checkpoint):
    Image.open("photos/a.jpg").save("photos/c.png")
    before = (workplace / "photos/c.png").read_bytes()
    result = run("segment", "photos/c.png", "-c", tiny_checkpoint, "-o", "photos", "--overwrite")
    assert result.exit_code == 1
    assert "is one of the photos and would be overwritten" in result.stderr
    assert (workplace / "photos/c.png").read_bytes() == before


@pytest.mark.parametrize("output", [None, "mine.png", "folder/a.png"])
def test_pictures_of_segment(workplace, tiny_checkpoint, output):
    option = () if output is None else ("-o", output.removesuffix("/a.png"))
    refused(workplace / (output or "result.png"), "segment", "photos/a.jpg", "-c", tiny_checkpoint, *option)


def test_results_of_evaluate_and_check_data(workplace, tiny_checkpoint):
    LAYOUTS["semantic_folder"](workplace / "data")
    (workplace / "data/classes.txt").write_text("sky\nroad\ncar\nperson\n")
    evaluate = ("evaluate", tiny_checkpoint, "data", "--split", "val")
    refused(workplace / "scores.json", *evaluate, "-o", "scores.json")
    refused(workplace / "worst.png", *evaluate, "--worst", "1")
    check = ("check-data", "data", "--split", "train", "--split", "val")
    refused(workplace / "found.json", *check, "--json", "found.json")
    # The sheet of the second split has a name of its own.
    refused(workplace / "sheet_val.png", *check, "--sheet", "sheet.png")


def test_files_of_export(workplace, tiny_checkpoint):
    (workplace / "model.pt2").write_bytes(b"mine")
    result = run("export", tiny_checkpoint, "--format", "torch-export")
    assert result.exit_code == 1
    assert "model.pt2 is there already, and would be overwritten" in result.stderr
    assert (workplace / "model.pt2").read_bytes() == b"mine"


def write_recipe(checkpoint):
    Path("recipe.yaml").write_text(
        f"data: {{root: data, validation: null}}\nmodel: {{checkpoint: {checkpoint}}}\nsteps: 1\nbatch_size: 2\n"
        "augmentation: {short_edge: [32, 32], crop_size: [32, 32]}\n"
    )


@pytest.mark.parametrize("name", ["data.json", "data.png", "log.jsonl", "evaluation.json", "model/weights"])
def test_the_folder_of_a_run(workplace, tiny_checkpoint, name):
    write_recipe(tiny_checkpoint)
    LAYOUTS["semantic_folder"](workplace / "data")
    path = workplace / "run" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"mine")
    result = run("train", "recipe.yaml", "-o", "run")
    assert result.exit_code == 1
    first = name.split("/")[0]
    assert f"run already holds {first}; pass --resume to go on, --overwrite to begin anew, or choose" in result.stderr
    assert path.read_bytes() == b"mine"
    assert [path.name for path in (workplace / "run").iterdir()] == [first]


def test_a_run_that_begins_anew(workplace, tiny_checkpoint):
    write_recipe(tiny_checkpoint)
    LAYOUTS["semantic_folder"](workplace / "data")
    for options in ((), ("--overwrite",), ("--resume", "--set", "steps=2")):
        result = run("train", "recipe.yaml", "-o", "run", "--set", "save_every=1", *options)
        assert result.exit_code == 0, result.output
    steps = [json.loads(line)["step"] for line in (workplace / "run/log.jsonl").read_text().splitlines()]
    assert steps[-1] == 2
    assert steps.count(1) <= 1
    assert run("train", "recipe.yaml", "-o", "run").exit_code == 1
    both = run("train", "recipe.yaml", "-o", "run", "--resume", "--overwrite")
    assert "--resume goes on with a run and --overwrite removes it: pass one of them" in both.stderr


# --- whole or not at all ---------------------------------------------------------------------------------------------


def test_files_are_whole_or_as_they_were(workplace):
    path = workplace / "folder/table.json"
    write_text(path, "first")

    def write_half():
        with whole_file(path) as unfinished:
            unfinished.write_text("sec")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert path.read_text() == "first"
    with pytest.raises(ValueError, match="unknown file extension"):
        save_picture(Image.new("RGB", (2, 2)), workplace / "folder/picture.odd")
    assert [path.name for path in (workplace / "folder").iterdir()] == ["table.json"]


def test_links_and_devices_stay_what_they_are(workplace):
    (workplace / "link.txt").symlink_to(workplace / "real.txt")
    write_text(workplace / "link.txt", "text")
    assert (workplace / "link.txt").is_symlink()
    assert (workplace / "real.txt").read_text() == "text"
    write_text("/dev/null", "text")
    assert not (workplace / "null").exists()
    assert not Path("/dev/null").is_file()


def test_a_video_that_cannot_be_finished(workplace):
    pytest.importorskip("av")
    from maskformer_hf.inference.video_files import write_video

    def frames():
        yield Image.new("RGB", (32, 32))
        raise RuntimeError("no more")

    (workplace / "old.mp4").write_bytes(b"mine")
    shutil.copy("old.mp4", "out.mp4")
    with pytest.raises(RuntimeError):
        write_video("out.mp4", frames(), 10)
    assert (workplace / "out.mp4").read_bytes() == b"mine"
    assert sorted(path.name for path in workplace.iterdir() if path.is_file()) == ["old.mp4", "out.mp4"]
