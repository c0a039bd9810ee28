"""Photos under names of other computers, suffixes in any case, hidden files, numbers without leading zeros."""

import json
import shutil

import pytest

from maskformer_hf.cli.output_paths import find_photos
from maskformer_hf.data import CocoInstances, open_dataset
from maskformer_hf.data.labelme import labelme
from maskformer_hf.data.yolo import yolo
from maskformer_hf.data.youtube_vis import YoutubeVis
from maskformer_hf.export.calibration import find_photos as calibration_photos
from maskformer_hf.models.video_processing_maskformer import frames_of
from tests.data.coco_files import annotation, photo, rectangle, write
from tests.layouts import LAYOUTS

SHAPE = [rectangle(1, 1, 5, 5)]
# Names that are fixed by the data set, and one that no reader looks at.
FIXED = {"objectInfo150.txt", "config.json"}
FOLDERS = [name for name in LAYOUTS if name != "datasets"]


def files_of(root):
    return [path for path in sorted(root.rglob("*")) if path.is_file()]


def labels_of(root, name):
    data = open_dataset(root, "train", format=name, task="panoptic" if name == "ade20k" else None)
    return data.id2label, [data[index]["labels"].tolist() for index in range(len(data))]


def named(tmp_path, name, place="images/a.png"):
    """A json that calls its photo `name`, while it is at `place`."""
    path = write(tmp_path, [annotation(SHAPE)], images=["x.png"], file_name=name)
    (tmp_path / "images/x.png").unlink()
    photo(tmp_path / place)
    return path


# --- suffixes and hidden files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FOLDERS)
def test_suffixes_in_capitals(tmp_path, name):
    LAYOUTS[name](tmp_path)
    before = labels_of(tmp_path, name)
    for path in files_of(tmp_path):
        if path.name not in FIXED:
            path.rename(path.with_suffix(path.suffix.upper()))
    assert labels_of(tmp_path, name) == before


@pytest.mark.parametrize("name", FOLDERS)
def test_hidden_and_system_files(tmp_path, name):
    LAYOUTS[name](tmp_path)
    before = labels_of(tmp_path, name)
    for path in files_of(tmp_path):
        (path.parent / f"._{path.name}").write_bytes(b"\0\5\26\7\0\2")
        (path.parent / "Thumbs.db").write_bytes(b"\xd0\xcf")
        for folder in (".ipynb_checkpoints", "__MACOSX", "@eaDir"):
            (path.parent / folder).mkdir(exist_ok=True)
            shutil.copy(path, path.parent / folder / f"{path.stem}-checkpoint{path.suffix}")
    assert labels_of(tmp_path, name) == before


def test_photos_and_frames_of_a_folder(tmp_path):
    for name in ("10.JPG", "9.jpg", "b/2.png", "b/11.png", "._9.jpg", ".ipynb_checkpoints/9.jpg"):
        photo(tmp_path / name)
    (tmp_path / "Thumbs.db").touch()
    deep = [tmp_path / name for name in ("9.jpg", "10.JPG", "b/2.png", "b/11.png")]
    assert find_photos([tmp_path], None) == (deep, True)
    assert calibration_photos(tmp_path) == deep
    assert frames_of(tmp_path) == deep[:2]
    # What is named is taken, whatever it is called.
    assert find_photos([tmp_path / "._9.jpg"], None) == ([tmp_path / "._9.jpg"], False)


@pytest.mark.parametrize("name", ["semantic_folder", "yolo", "labelme", "davis", "cityscapes"])
def test_natural_order(tmp_path, name):
    LAYOUTS[name](tmp_path)
    for path in [path for path in files_of(tmp_path) if "train" in path.parts and path.stem[0] in "ab"]:
        new = ("9" if path.stem[0] == "a" else "10") + path.name[1:]
        path.rename(path.with_name(new))
        if name == "labelme" and path.suffix == ".json":
            content = json.loads(path.with_name(new).read_text())
            content["imagePath"] = content["imagePath"].replace(path.stem, new.split(".")[0])
            path.with_name(new).write_text(json.dumps(content))
    paths = open_dataset(tmp_path, "train", format=name).image_paths
    assert [path.rsplit("/", 1)[-1].split(".")[0].split("_")[0] for path in paths] == ["9", "10"]


def test_two_labels_for_one_photo(tmp_path):
    LAYOUTS["semantic_folder"](tmp_path)
    shutil.copy(tmp_path / "train/labels/a.png", tmp_path / "train/labels/a.PNG")
    with pytest.raises(ValueError, match=r"train/labels holds 2 images called a, .*; rename one"):
        open_dataset(tmp_path, "train")


# --- names of other computers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("images\\a.png", "images/a.png"),
        ("..\\..\\a.png", "images/a.png"),
        ("sub\\a.png", "images/sub/a.png"),
        ("my%20photo.png", "images/my photo.png"),
        ("images%2Fa.png", "images/a.png"),
        ("C:\\Users\\me\\data\\a.png", "images/a.png"),
        ("/home/me/data/images/a.png", "images/a.png"),
        ("file:///home/me/a.png", "images/a.png"),
        ("/data/local-files/?d=images/a.png", "images/a.png"),
        ("https://example.org/files/a.png?token=1", "images/a.png"),
        ("A.PNG", "images/a.png"),
        ("a.png", "images/deep/down/a.png"),
        ("cafe\u0301.png", "images/caf\u00e9.png"),
    ],
)
def test_photos_under_names_of_other_computers(tmp_path, name, place):
    data = CocoInstances(named(tmp_path, name, place))
    assert data[0]["name"] == str(tmp_path / place)
    assert data.image_paths == [str(tmp_path / place)]
    # A name as it is goes first.
    (tmp_path / "images").mkdir(exist_ok=True)
    if "/" not in name and "\\" not in name:
        photo(tmp_path / "images" / name)
        assert CocoInstances(tmp_path / "instances.json")[0]["name"] == str(tmp_path / "images" / name)


def test_a_name_that_is_there_twice(tmp_path):
    path = named(tmp_path, "D:\\a.png", "images/one/a.png")
    photo(tmp_path / "images/two/a.png")
    with pytest.raises(ValueError, match=r"1 of the 1 photos .*a.png \(there are .*one/a.png and .*two/a.png\)"):
        CocoInstances(path)


def test_a_photo_of_another_entry(tmp_path):
    """Frames have the same names in all videos."""
    for name in ("one/0.png", "one/1.png", "two/0.png"):
        photo(tmp_path / "JPEGImages" / name)
    content = {
        "videos": [
            {"id": number, "file_names": [f"{name}/0.png", f"{name}/1.png"], "height": 20, "width": 30}
            for number, name in enumerate(("one", "two"))
        ],
        "annotations": [],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (tmp_path / "instances.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"1 of the 4 frames .*two/1.png \(there is .*one/1.png, but for another"):
        YoutubeVis(tmp_path / "instances.json")


def test_photos_above_are_other_peoples(tmp_path):
    """A json in annotations/ speaks of what is beside that folder; another one does not."""
    for folder, there in (("annotations", True), ("mine", False)):
        photo(tmp_path / folder / "theirs/deep/a.png")
        path = named(tmp_path / folder / folder, "a.png", "b.png")
        if there:
            assert CocoInstances(path)[0]["name"] == str(tmp_path / folder / "theirs/deep/a.png")
        else:
            with pytest.raises(ValueError, match="1 of the 1 photos"):
                CocoInstances(path)


def test_every_photo_that_is_missing(tmp_path):
    path = write(tmp_path, [annotation(SHAPE)], images=[f"{number}.png" for number in range(14)])
    for number in range(2, 14):
        (tmp_path / f"images/{number}.png").unlink()
    with pytest.raises(ValueError, match=r"12 of the 14 photos that .*instances.json names are missing") as error:
        CocoInstances(path)
    assert all(f"images/{number}.png" in str(error.value) for number in range(2, 12))
    assert "and 2 more (looked in" in str(error.value)
    assert f"{tmp_path}/images, {tmp_path}," in str(error.value)
    assert "for the whole name, for its end, and by name below" in str(error.value)


def test_photos_of_videos_and_panoptic_jsons(tmp_path):
    for name in ("coco_panoptic", "youtube_vis"):
        LAYOUTS[name](tmp_path / name)
        before = labels_of(tmp_path / name, name)
        for path in (tmp_path / name).rglob("*.json"):
            text = path.read_text().replace('"clip/', '"clip\\\\').replace('.png"', '.PNG"')
            path.write_text(text.replace('"file_name": "', '"file_name": "E:\\\\data\\\\'))
        assert labels_of(tmp_path / name, name) == before


@pytest.mark.parametrize(
    "path", ["..\\photos\\a.jpg", "C:\\me\\a.jpg", "/home/me/a.jpg", "A.JPG", "photos/x%20/../a.jpg"]
)
def test_photos_of_labelme(tmp_path, path):
    LAYOUTS["labelme"](tmp_path)
    content = json.loads((tmp_path / "train/a.json").read_text())
    (tmp_path / "train/a.json").write_text(json.dumps({**content, "imagePath": path}))
    if "photos" in path:
        (tmp_path / "photos").mkdir()
        (tmp_path / "train/a.jpg").rename(tmp_path / "photos/a.jpg")
    assert labelme(tmp_path, "train")[0]["labels"].tolist() == [0]


def test_photos_of_yolo(tmp_path):
    LAYOUTS["yolo"](tmp_path)
    names = "\nnames: {'0': car}\n"
    for place in ("images\\train", "C:\\data\\dogs\\images\\train", "/home/me/dogs/images/train", "../images/train"):
        (tmp_path / "data.yaml").write_text(f"train: '{place}'{names}path: /content/dogs\n")
        assert len(yolo(tmp_path, "train")) == 2
    (tmp_path / "list.txt").write_text("./images/train/a.jpg\r\nC:\\data\\dogs\\images\\train\\b.jpg\r\n")
    (tmp_path / "data.yaml").write_text(f"train: list.txt{names}")
    assert [len(sample["labels"]) for sample in yolo(tmp_path, "train")] == [1, 1]
    (tmp_path / "list.txt").write_text("images/train/a.jpg\nimages/train/z.jpg\n")
    with pytest.raises(ValueError, match=r"1 of the 2 photos that .*list.txt names are missing, first .*z.jpg"):
        yolo(tmp_path, "train")
    # The end of a name that does not come from another computer may be the folder of another split.
    (tmp_path / "data.yaml").write_text(f"val: ../valid/images{names}")
    with pytest.raises(ValueError, match=r"val is ../valid/images, but there is none of"):
        yolo(tmp_path, "val")
