"""One collator for images and clips, and the maps of the masks that loss terms ask for."""

import torch
from torch.utils.data import DataLoader
from torchvision import tv_tensors

from maskformer_hf.data import VOID, Collator

STATISTICS = ([0.5, 0.4, 0.3], [0.25, 0.5, 1.0])


def image_of(seed, size=(20, 30)):
    """Three segments in two planes; the last is a crowd, and one has no pixel."""
    generator = torch.Generator().manual_seed(seed)
    planes = torch.zeros(2, *size, dtype=torch.int32)
    planes[0, 2:9, 3:17], planes[1, 5:16, 10:25], planes[0, 18:, :4] = 1, 2, 4
    planes[0, :2] = VOID
    return {
        "image": tv_tensors.Image(torch.randint(0, 255, (3, *size), generator=generator, dtype=torch.uint8)),
        "planes": tv_tensors.Mask(planes),
        "labels": torch.tensor([5, 6, 7, 8]),
        "is_crowd": torch.tensor([False, False, False, True]),
        "name": f"image {seed}",
    }


def clip_of(images):
    return {
        "video": tv_tensors.Video(torch.stack([image["image"] for image in images])),
        "planes": tv_tensors.Mask(torch.stack([image["planes"] for image in images])),
        **{name: images[0][name] for name in ("labels", "is_crowd", "name")},
    }


def rows_above(masks):
    """How many rows are above each pixel, within the masks."""
    return masks * torch.arange(masks.shape[-2], dtype=torch.float32)[:, None]


def test_a_clip_of_one_frame_is_an_image():
    collate = Collator(*STATISTICS, size_divisor=16, return_void_masks=True, target_maps={"rows": rows_above})
    samples = [image_of(0), image_of(1, (33, 20))]
    images, clips = collate(samples), collate([clip_of([sample]) for sample in samples])
    assert images["pixel_values"].shape == (2, 3, 48, 32)
    assert images["class_labels"][0].tolist() == [5, 6]
    for name in ("pixel_values", "pixel_mask", "void_masks"):
        assert torch.equal(images[name], clips[name][:, 0])
        assert images[name].is_contiguous()
    for name in ("mask_labels", "class_labels"):
        for image, clip in zip(images[name], clips[name], strict=True):
            assert torch.equal(image, clip[:, 0] if name == "mask_labels" else clip)
    for image, clip in zip(images["target_maps"]["rows"], clips["target_maps"]["rows"], strict=True):
        assert torch.equal(image, clip[:, 0])


def test_maps_are_made_of_the_padded_masks_frame_by_frame():
    collate = Collator(*STATISTICS, size_divisor=16, target_maps={"rows": rows_above})
    batch = collate([image_of(0), image_of(1, (33, 20))])
    for masks, maps in zip(batch["mask_labels"], batch["target_maps"]["rows"], strict=True):
        assert maps.shape == masks.shape
        assert torch.equal(maps, rows_above(masks))
    batch = collate([clip_of([image_of(0), image_of(1)])])
    [masks], [maps] = batch["mask_labels"], batch["target_maps"]["rows"]
    assert maps.shape == masks.shape == (2, 2, 32, 32)
    for frame in range(2):
        assert torch.equal(maps[:, frame], rows_above(masks[:, frame]))
    nothing = {**image_of(0), "labels": torch.zeros(0, dtype=torch.int64), "is_crowd": torch.zeros(0, dtype=torch.bool)}
    nothing["planes"] = tv_tensors.Mask(torch.zeros(1, 20, 30, dtype=torch.int32))
    assert collate([nothing])["target_maps"]["rows"][0].shape == (0, 32, 32)


def test_maps_come_from_worker_processes_and_are_left_out_where_none_is_asked_for():
    samples = [image_of(0), image_of(1)]
    collate = Collator(*STATISTICS, target_maps={"rows": rows_above})
    here = collate(samples)
    [there] = DataLoader(samples, batch_size=2, num_workers=1, collate_fn=collate)
    for ours, theirs in zip(here["target_maps"]["rows"], there["target_maps"]["rows"], strict=True):
        assert torch.equal(ours, theirs)
    assert "target_maps" not in Collator(*STATISTICS)(samples)
