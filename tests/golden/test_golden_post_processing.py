"""Post-processing against results of the original MaskFormer and Mask2Former, computed from the same stored logits.

Each file of tests/fixtures/golden_post_processing is one model of random weights: its raw outputs for batches without
padding (A), with padding (B, C) and with a size divisor of 0 (B_div0), the class ids and every fifth row and column
of the class scores, segment ids at several thresholds, and for Mask2Former the ten best instances. In the class ids
255 marks pixels whose two best classes are closer than 1e-4.
"""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch

from maskformer_hf import MaskFormerImageProcessor

FIXTURES = sorted((Path(__file__).parent.parent / "fixtures" / "golden_post_processing").glob("*.npz"))
SCORE_TOLERANCE = 1e-4
PANOPTIC_PIXELS = 3  # that two builds of torch may differ in, as measured with the original code


class Run(NamedTuple):
    """One batch of one model: what it put out, and what the original made of it."""

    model: str
    name: str
    outputs: SimpleNamespace
    target_sizes: list[list[int]]
    panoptic: dict[str, list[list[int]]]
    stored: dict[str, np.ndarray]
    things: list[int]

    @property
    def stuff(self) -> set[int]:
        return set(range(self.outputs.class_queries_logits.shape[-1] - 1)) - set(self.things)


def load_runs():
    for path in FIXTURES:
        with np.load(path) as arrays:
            stored = dict(arrays)
        meta = json.loads(str(stored.pop("meta")))
        for name, sizes in meta["runs"].items():
            outputs = SimpleNamespace(
                class_queries_logits=torch.from_numpy(stored[f"{name}.pred_logits"]),
                masks_queries_logits=torch.from_numpy(stored[f"{name}.pred_masks"]),
                image_sizes=torch.tensor(sizes["image_sizes"]),
                padded_sizes=torch.tensor([sizes["padded_size"]] * len(sizes["image_sizes"])),
            )
            yield Run(path.stem, name, outputs, sizes["target_sizes"], sizes["panoptic"], stored, meta["things"])


def having(key):
    """The runs for which a result is stored."""
    runs = [run for run in RUNS if any(name.startswith(f"{run.name}.{key}") for name in run.stored)]
    return pytest.mark.parametrize("run", runs, ids=[f"{run.model}-{run.name}" for run in runs])


RUNS = list(load_runs())
processor = MaskFormerImageProcessor()


def check_semantic(run, key, resize):
    maps = processor.post_process_semantic_segmentation(run.outputs, run.target_sizes, resize=resize)
    with_scores = processor.post_process_semantic_segmentation(run.outputs, run.target_sizes, True, resize=resize)
    for index, (segmentation, scored) in enumerate(zip(maps, with_scores, strict=True)):
        classes = torch.from_numpy(run.stored[f"{run.name}.{key}.{index}"])
        expected = torch.from_numpy(run.stored[f"{run.name}.{key}.{index}.scores"])
        torch.testing.assert_close(scored.segmentation_scores[:, 2::5, 1::5], expected, atol=SCORE_TOLERANCE, rtol=0)
        clear = classes != 255
        assert clear.float().mean() > 0.99
        assert torch.equal(segmentation[clear], classes[clear].long())
        assert torch.equal(scored.segmentation[clear], classes[clear].long())


@having("sem_before")
def test_semantic_with_logits_resized(run):
    check_semantic(run, "sem_before", "logits")


@having("sem_after")
def test_semantic_with_scores_resized(run):
    check_semantic(run, "sem_after", "scores")


@having("panoptic")
def test_panoptic(run):
    for key, segments in run.panoptic.items():
        thresholds, index = key.split("panoptic_")[1].rsplit(".", 1)
        threshold, overlap = (float(part) for part in thresholds.split("_"))
        result = processor.post_process_panoptic_segmentation(
            run.outputs,
            threshold=threshold,
            overlap_mask_area_threshold=overlap,
            label_ids_to_fuse=run.stuff,
            target_sizes=run.target_sizes,
            intersect_with_mask=run.model.startswith("mask2former"),
        )[int(index)]
        assert [[segment["id"], segment["label_id"]] for segment in result["segments_info"]] == segments
        assert all(segment["was_fused"] == (segment["label_id"] in run.stuff) for segment in result["segments_info"])
        assert result["segmentation"].dtype == torch.int32
        expected = torch.from_numpy(run.stored[key].astype(np.int32))
        assert (result["segmentation"] != expected).sum() <= PANOPTIC_PIXELS


@having("inst.")
@pytest.mark.parametrize(("key", "things_only"), [("inst", False), ("inst_with_panoptic_on", True)])
def test_instance(run, key, things_only):
    results = processor.post_process_instance_segmentation(
        run.outputs,
        threshold=0.0,
        target_sizes=run.target_sizes,
        return_binary_maps=True,
        label_ids_to_fuse=run.stuff if things_only else (),
        top_k=10,
    )
    for index, result in enumerate(results):
        stored = {
            part: run.stored[f"{run.name}.{key}.{index}.{part}"] for part in ("pred_masks", "pred_classes", "scores")
        }
        masks = np.unpackbits(stored["pred_masks"], axis=-1)[..., : result["masks"].shape[-1]].astype(bool)
        # The original keeps empty masks, with a score of 0, and leaves the order open.
        order = [i for i in np.argsort(-stored["scores"], kind="stable") if masks[i].any()]
        for segment, mask, i in zip(result["segments_info"], result["masks"], order, strict=True):
            assert segment["score"] == pytest.approx(stored["scores"][i], abs=2e-5)
            assert segment["label_id"] == stored["pred_classes"][i]
            assert (mask.numpy() != masks[i]).sum() <= 1


def test_cases_are_there():
    assert len(FIXTURES) == 3
    assert len(RUNS) == 9
    assert sum(len(run.panoptic) for run in RUNS) == 52
