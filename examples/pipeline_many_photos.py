"""Segment many photos with transformers' own `pipeline`, four at a time.

python examples/pipeline_many_photos.py street examples/*.jpg
"""

import sys
from pathlib import Path

from transformers import pipeline

# The import makes `pipeline` find the models of this package.
from maskformer_hf import bundled_checkpoints

checkpoint, *photos = sys.argv[1:]
segmenter = pipeline("image-segmentation", model=str(bundled_checkpoints().get(checkpoint, checkpoint)))

# Photos may differ in shape, and each gets the answer it would get alone. `subtask` is what the checkpoint was trained
# for unless it is given: "semantic", "instance" or "panoptic".
for photo, segments in zip(photos, segmenter(photos, batch_size=4), strict=True):
    print(photo)
    folder = Path("masks") / Path(photo).stem
    folder.mkdir(parents=True, exist_ok=True)
    for number, segment in enumerate(segments):
        print(f"  {segment['label']:12} {segment['score']:.2f}")
        # A PIL image in the photo's size, 255 where the segment is.
        segment["mask"].save(folder / f"{number:02}_{segment['label']}.png")
