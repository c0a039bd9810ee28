"""How much of a model's score on videos is its masks, and how much is keeping an object's identity.

    python benchmarks/video_identity.py PATH/davis --checkpoints runs/davis_video/model runs/davis_frames/model

Each object takes the best of all detections in each frame, whatever its track, as if identities were perfect: `masks`
is the mean IoU of these, `flicker` that of `RegionSimilarity` for them, `tracks` how many different tracks they are
from. A model of photos gets its tracks by linking frame to frame, as `maskformer evaluate` does it.
"""

import argparse
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask

from maskformer_hf import load, predict_video
from maskformer_hf.data import open_dataset, videos_in
from maskformer_hf.metrics import RegionSimilarity
from maskformer_hf.training.frame_tracks import NUM_OBJECTS, track_frame_by_frame


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--split", default="val")
    parser.add_argument("--checkpoints", nargs="+", required=True)
    options = parser.parse_args()
    videos = videos_in(open_dataset(options.data, options.split))
    if videos is None:
        raise SystemExit(f"{options.data} holds no videos")
    for checkpoint in options.checkpoints:
        model, processor = load(checkpoint)
        rows = []
        for index, paths in enumerate(videos.frame_paths):
            if model.config.kind == "clip":
                tracks = predict_video(model, processor, paths, threshold=0.0, max_objects=NUM_OBJECTS).tracks
            else:
                tracks = track_frame_by_frame(model, processor, paths)
            for true in videos.objects(index).segmentations:
                found, sources = [], set()
                for frame, mask in enumerate(true):
                    seen = [track["segmentations"][frame] for track in tracks]
                    ious = [
                        0.0 if mask is None or other is None else float(coco_mask.iou([other], [mask], [0])[0, 0])
                        for other in seen
                    ]
                    best = int(np.argmax(ious)) if any(ious) else None
                    found.append(None if best is None else seen[best])
                    sources |= set() if best is None else {best}
                measure = RegionSimilarity()
                measure.update({"segmentations": [found]}, {"segmentations": [true]})
                figures = measure.compute()
                rows.append((figures["j"], figures["flicker"]))
                name = videos.name(index).rsplit("/", 1)[-1]
                print(
                    f"{checkpoint}  {name:16} masks {100 * figures['j']:5.1f}  flicker {100 * figures['flicker']:5.1f}"
                    f"  tracks {len(sources)}",
                    flush=True,
                )
        masks, flicker = 100 * np.nanmean(np.array(rows), axis=0)
        print(f"{checkpoint}  {'all':16} masks {masks:5.1f}  flicker {flicker:5.1f}")


if __name__ == "__main__":
    main()
