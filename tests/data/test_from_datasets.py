"""Reading and streaming any data set of the `datasets` library."""

import pickle

import datasets
import numpy as np
import pytest
import torch
from datasets import Array2D, ClassLabel, Features, Image, List, Value
from PIL import Image as Photo
from torch.utils.data import DataLoader

from maskformer_hf.data import Cached, FirstRows, StreamPart, from_datasets, is_streamed, open_dataset, streamed_loader
from maskformer_hf.data.sample import VOID, binary_masks, class_map

RED = np.array([[1, 1, 0], [2, 2, 255]], dtype=np.uint8)
NAMES = {1: "dog", 2: "cat"}


def photo(value=0, size=RED.shape):
    return Photo.fromarray(np.full((*size, 3), value, dtype=np.uint8))


def table(features=None, **columns):
    features = None if features is None else Features({"image": Image(), **features})
    number = len(next(iter(columns.values())))
    return datasets.Dataset.from_dict({"image": [photo(i) for i in range(number)], **columns}, features=features)


def masks_of(data, index=0):
    sample = data[index]
    names = [data.id2label[label] for label in sample["labels"].tolist()]
    return list(zip(names, sample["is_crowd"].tolist(), binary_masks(sample).int().tolist(), strict=True))


# --- maps ------------------------------------------------------------------------------------------------------------


def test_class_ids():
    data = from_datasets(table(label=[Photo.fromarray(RED)]), id2label={0: "floor", **NAMES})
    assert (data.task, data.label_ids_to_fuse) == ("semantic", [0, 1, 2])
    assert class_map(data[0]).tolist() == [[1, 1, 0], [2, 2, 255]]
    assert data[0]["image"].shape == (3, 2, 3)
    assert data[0]["name"] == "row 0"
    # Ids with a gap, void by another number, negative ids, 16 bits, arrays, palettes.
    gaps = from_datasets(table(label=[Photo.fromarray(RED)]), id2label=NAMES, void_ids=[0, 255])
    assert gaps.id2label == {0: "dog", 1: "cat"}
    assert class_map(gaps[0]).tolist() == [[0, 0, 255], [1, 1, 255]]
    wide = np.array([[300, 0, 0], [65535, 0, 0]], dtype=np.uint16)
    data = from_datasets(table(label=[Photo.fromarray(wide)]), id2label={0: "a", 300: "b"}, void_ids=[65535])
    assert class_map(data[0]).tolist() == [[1, 0, 0], [255, 0, 0]]
    array = table({"map": Array2D((2, 3), "int32")}, map=[[[0, 1, -1], [-100, 1, 0]]])
    assert class_map(from_datasets(array, id2label={0: "a", 1: "b"})[0]).tolist() == [[0, 1, 255], [255, 1, 0]]
    lists = table(map=[[[0, 1, 1], [0, 1, 0]]])
    assert class_map(from_datasets(lists, label_column="map", id2label={0: "a", 1: "b"})[0])[0].tolist() == [0, 1, 1]
    palette = Photo.fromarray(RED, mode="P")
    palette.putpalette([7, 8, 9] * 256)
    data = from_datasets(table(label=[palette]), id2label={0: "floor", **NAMES})
    assert class_map(data[0])[0].tolist() == [1, 1, 0]


def test_maps_with_lists_of_segments():
    ids = np.array([[70000, 70000, 0], [300, 300, 5]], dtype=np.int32)
    coded = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)
    segments = [
        {"id": 70000, "category_id": 2, "iscrowd": 0},
        {"id": 300, "category_id": 9, "iscrowd": 0},
        {"id": 5, "category_id": 2, "iscrowd": 1},
    ]
    names = {2: "dog", 9: "grass"}
    for listed in (segments, {key: [segment[key] for segment in segments] for key in segments[0]}):
        data = from_datasets(
            table(label=[Photo.fromarray(coded)], segments_info=[listed]), id2label=names, stuff_classes=["grass"]
        )
        assert (data.task, data.label_ids_to_fuse) == ("panoptic", [1])
        assert masks_of(data) == [
            ("dog", True, [[0, 0, 0], [0, 0, 1]]),
            ("dog", False, [[1, 1, 0], [0, 0, 0]]),
            ("grass", False, [[0, 0, 0], [1, 1, 0]]),
        ]
        assert data[0]["planes"][0, 0, 2] == VOID
    plain = table(map=[Photo.fromarray(ids)], segments_info=[segments])
    data = from_datasets(plain, id2label=names, task="instance")
    assert data[0]["planes"][0].tolist() == [[2, 2, 0], [3, 3, 1]]
    with pytest.raises(ValueError, match=r"row 0: the map holds id 5, which is no segment of its row"):
        from_datasets(table(map=[Photo.fromarray(ids)], segments_info=[segments[:2]]), id2label=names)[0]
    with pytest.raises(ValueError, match="row 0 has class 9, which is neither one of the 1"):
        from_datasets(plain, id2label={2: "dog"})[0]
    data = from_datasets(plain, id2label=names, task="semantic")
    assert class_map(data[0]).tolist() == [[0, 0, 255], [1, 1, 0]]


def test_maps_of_class_and_number():
    red = np.array([[1, 1, 0], [2, 2, 2]], dtype=np.uint8)
    green = np.array([[1, 2, 0], [1, 1, 0]], dtype=np.uint8)
    rows = table(annotation=[Photo.fromarray(np.stack([red, green, 0 * red], -1))])
    data = from_datasets(rows, id2label=NAMES, task="instance")
    assert data[0]["labels"].tolist() == [0, 0, 1]
    assert data[0]["planes"][0].tolist() == [[1, 2, 0], [3, 3, 0]]
    data = from_datasets(rows, id2label={0: "floor", **NAMES}, task="panoptic", stuff_classes=["floor"])
    assert data[0]["labels"].tolist() == [0, 1, 1, 2]
    assert data[0]["planes"][0].tolist() == [[2, 3, 1], [4, 4, VOID]]
    with pytest.raises(ValueError, match="the map has 3 channels"):
        from_datasets(rows, id2label=NAMES)[0]


def test_maps_of_objects_of_one_class():
    data = from_datasets(table(instances=[Photo.fromarray(RED)]), id2label={0: "nucleus"}, task="instance")
    assert data[0]["planes"][0].tolist() == [[1, 1, 0], [2, 2, 3]]
    data = from_datasets(table(instances=[Photo.fromarray(RED)]), id2label=NAMES, task="instance")
    with pytest.raises(ValueError, match="no column says of which of the 2 "):
        data[0]


# --- objects and masks -----------------------------------------------------------------------------------------------

SQUARE = [0.0, 0.0, 2.0, 0.0, 2.0, 1.0, 0.0, 1.0]
POINTS = [[0.0, 0.0], [2.0, 0.0], [2.0, 1.0], [0.0, 1.0]]
FIRST_TWO = [[1, 1, 0], [0, 0, 0]]


@pytest.mark.parametrize(
    "segmentation",
    [SQUARE, [SQUARE], POINTS, [POINTS], {"size": [2, 3], "counts": [0, 1, 1, 1, 3]}],
    ids=["flat", "parts", "points", "parts of points", "run lengths"],
)
def test_objects(segmentation):
    items = [{"segmentation": segmentation, "category_id": 2, "iscrowd": 0}]
    data = from_datasets(table(objects=[items, []]), id2label=NAMES)
    assert data.task == "instance"
    assert masks_of(data) == [("cat", False, FIRST_TWO)]
    assert masks_of(data, 1) == []


def test_objects_with_named_classes():
    feature = {"category": List(ClassLabel(names=["dog", "cat"])), "segmentation": List(List(List(Value("float32"))))}
    objects = {"category": ["cat", "dog"], "segmentation": [[SQUARE], [SQUARE]]}
    data = from_datasets(table({"objects": feature}, objects=[objects]))
    assert data.id2label == {0: "dog", 1: "cat"}
    assert masks_of(data) == [("cat", False, FIRST_TWO), ("dog", False, FIRST_TWO)]
    assert data[0]["planes"].shape == (2, 2, 3)
    by_name = table(objects=[[{"segmentation": [SQUARE], "label": "cat", "iscrowd": 1}]])
    assert masks_of(from_datasets(by_name, id2label=NAMES)) == [("cat", True, FIRST_TWO)]
    with pytest.raises(ValueError, match="object 0 has class 'cat'"):
        from_datasets(by_name, id2label={0: "bird"})[0]
    data = from_datasets(by_name, id2label=NAMES, task="semantic")
    assert (data.task, masks_of(data)) == ("semantic", [("cat", False, FIRST_TWO)])


def test_lists_of_masks():
    masks = [Photo.fromarray(np.array(FIRST_TWO, dtype=np.uint8) * 255), Photo.fromarray(np.ones((2, 3), dtype=bool))]
    data = from_datasets(table(masks=[masks], classes=[[2, 1]]), id2label=NAMES)
    assert masks_of(data) == [("cat", False, FIRST_TWO), ("dog", False, [[1, 1, 1], [1, 1, 1]])]
    void = from_datasets(table(masks=[masks], classes=[[2, 255]]), id2label=NAMES)
    assert void[0]["planes"].tolist() == [[[1, 1, VOID], [VOID, VOID, VOID]]]
    with pytest.raises(ValueError, match="row 0 has 2 masks, but 1 classes in 'classes'"):
        from_datasets(table(masks=[masks], classes=[[2]]), id2label=NAMES)[0]


# --- columns ---------------------------------------------------------------------------------------------------------


def test_ambiguous_columns_are_listed():
    maps = [Photo.fromarray(RED)]
    two = table(left=maps, right=maps)
    with pytest.raises(ValueError, match=r"(?s)columns \['left', 'right'\] may all be .*label_column=.*  left: Image"):
        from_datasets(two, id2label=NAMES)
    assert len(from_datasets(two, label_column="left", id2label=NAMES)) == 1
    with pytest.raises(ValueError, match=r"columns \['image', 'photo'\] may all be that of photos; pass image_column="):
        from_datasets(table(photo=maps), id2label=NAMES)
    with pytest.raises(ValueError, match=r"no column 'depth'; the columns are \['image', 'left', 'right'\]"):
        from_datasets(two, "depth", id2label=NAMES)
    with pytest.raises(ValueError, match="no column seems to be that of masks"):
        from_datasets(table(bbox=[[[0.0, 0.0, 1.0, 1.0]]], id=[3]), id2label=NAMES)
    with pytest.raises(ValueError, match="neither a map nor masks nor outlines"):
        from_datasets(table(id=[3]), label_column="id", id2label=NAMES)
    with pytest.raises(ValueError, match=r"pass id2label=\{id: name\}"):
        from_datasets(table(label=maps))
    with pytest.raises(ValueError, match=r"stuff_classes \['sky'\] are not among"):
        from_datasets(table(label=maps), id2label=NAMES, stuff_classes=["sky"])
    with pytest.raises(ValueError, match=r"row 0: the map holds id 0, which is no key of id2label"):
        from_datasets(table(label=maps), id2label=NAMES)[0]
    with pytest.raises(ValueError, match=r"the map is \(3, 2\) .*, the photo \(2, 3\)"):
        from_datasets(table(label=[Photo.fromarray(RED.T.copy())]), id2label=NAMES)[0]


def test_other_columns_are_not_read():
    data = from_datasets(table(label=[Photo.fromarray(RED)], text=["a"]), id2label={0: "floor", **NAMES})
    assert set(data.table.column_names) == {"image", "label"}
    assert class_map(pickle.loads(pickle.dumps(data))[0]).tolist() == class_map(data[0]).tolist()


def test_the_front_door(tmp_path):
    rows = table(label=[Photo.fromarray(RED % 3)] * 4)
    datasets.DatasetDict({"train": rows}).save_to_disk(tmp_path)
    with pytest.raises(ValueError, match="pass id2label"):
        open_dataset(tmp_path, "train")
    (tmp_path / "id2label.json").write_text('{"0": "floor", "1": "dog", "2": "cat"}')
    data = open_dataset(tmp_path, "train", void_classes=["floor"])
    assert data.id2label == {0: "dog", 1: "cat"}
    assert class_map(data[0]).tolist() == [[0, 0, 255], [1, 1, 255]]
    with pytest.raises(ValueError, match=r"no split 'val'; there are \['train'\]"):
        open_dataset(tmp_path, "val")
    streamed = open_dataset(tmp_path, "train", format="datasets_streaming", void_classes=["floor"])
    assert is_streamed(streamed)
    assert not is_streamed(data)
    with pytest.raises(TypeError, match="a stream has no length"):
        len(streamed)
    with pytest.raises(ValueError, match="a stream cannot be kept"):
        Cached(streamed)
    first = FirstRows(streamed, 3)
    assert (len(first), first.task, first.id2label) == (3, "semantic", {0: "dog", 1: "cat"})
    assert torch.equal(first[1]["planes"], data[1]["planes"])
    # Its views, too, make samples of rows.
    [batch] = stream(streamed, start=0, stop=2, batch_size=2)
    assert class_map(batch[0]).tolist() == [[0, 0, 255], [1, 1, 255]]


# --- streams ---------------------------------------------------------------------------------------------------------


def streamed_rows(number=10, shards=5, **options):
    """Row i is a photo of value i."""
    columns = table(label=[Photo.fromarray(RED)] * number)
    return from_datasets(columns.to_iterable_dataset(num_shards=shards), id2label={0: "floor", **NAMES}, **options)


def identity(sample):
    return sample


def noisy(sample):
    return {**sample, "noise": float(torch.rand(()))}


def as_list(samples):
    return samples


def stream(dataset, transform=identity, **options) -> DataLoader:
    defaults = {"batch_size": 2, "seed": 3, "start": 0, "stop": 20, "buffer_size": 4}
    workers = options.pop("workers", 0)
    return streamed_loader(dataset, transform, StreamPart(**{**defaults, **options}), collate=as_list, workers=workers)


def values(loader):
    return [[int(sample["image"][0, 0, 0]) for sample in batch] for batch in loader]


def test_streams_are_shuffled_and_repeat():
    data = streamed_rows()
    assert [int(sample["image"].max()) for sample in data] == list(range(10))
    seen = np.array(values(stream(data))).ravel().tolist()
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10] != list(range(10))
    assert seen[:10] != seen[10:]
    assert values(stream(data)) == values(stream(data)) != values(stream(data, seed=4))
    assert len(stream(data)) == 10


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("shards", [4, 5])
def test_streams_go_on_where_they_stopped(processes, shards):
    data = streamed_rows(shards=shards)
    for index in range(processes):
        share = {"process_index": index, "num_processes": processes}
        whole = list(stream(data, noisy, stop=24, **share))
        assert len(whole) == 12 // processes
        for start in (4, 12, 16):
            rest = list(stream(data, noisy, start=start, stop=24, **share))
            assert values(rest) == values(whole)[start // 2 // processes :]
            noise = [[sample["noise"] for sample in batch] for batch in whole]
            assert [[sample["noise"] for sample in batch] for batch in rest] == noise[start // 2 // processes :]


def test_processes_share_a_stream():
    # Five shards cannot be shared by two: both read all, and take the batches of one process in turn.
    data = streamed_rows(shards=5)
    parts = [values(stream(data, process_index=index, num_processes=2)) for index in range(2)]
    together = [batch for pair in zip(*parts, strict=True) for batch in pair]
    assert together == values(stream(data))
    # Four can: each reads its own two, and all rows come once before any comes twice.
    data = streamed_rows(number=8, shards=4)
    parts = [values(stream(data, stop=8, process_index=index, num_processes=2)) for index in range(2)]
    assert sorted(np.ravel(parts).tolist()) == list(range(8))


def test_worker_processes_change_nothing():
    data = streamed_rows()
    assert values(stream(data, workers=2)) == values(stream(data))


def test_streams_that_do_not_know_their_columns():
    def rows():
        for value in range(3):
            yield {"image": photo(value), "label": Photo.fromarray(RED)}

    unknown = datasets.IterableDataset.from_generator(rows).map(lambda row: row)
    assert unknown.features is None
    data = from_datasets(unknown, id2label={0: "floor", **NAMES})
    assert class_map(next(iter(data))).tolist() == [[1, 1, 0], [2, 2, 255]]


def test_an_empty_stream_is_an_error():
    data = streamed_rows(number=2, shards=1)
    data.table = data.table.filter(lambda row: False)
    with pytest.raises(ValueError, match="has no rows"):
        list(stream(data))
