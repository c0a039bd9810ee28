"""Segment a photo and save the coloured picture.

python examples/segment_photo.py examples/street.jpg result.png
"""

import sys

from maskformer_hf import draw_segmentation, load, predict

photo, picture = sys.argv[1:3]
# A bundled name, a folder, or a name on the Hugging Face Hub.
checkpoint = sys.argv[3] if len(sys.argv) > 3 else "street"

model, processor = load(checkpoint)
[prediction] = predict(model, processor, photo)

for segment in prediction.segments:
    print(f"{segment['label']:12} {segment['score']:.2f} {segment['area']:8} pixels")

# `mask` gives one segment's pixels as a boolean tensor (height, width).
largest = max(prediction.segments, key=lambda segment: segment["area"])
print(f"{largest['label']} covers {prediction.mask(largest).float().mean():.0%} of the photo")

draw_segmentation(photo, prediction).save(picture)
