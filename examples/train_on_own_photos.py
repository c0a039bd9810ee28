"""Fine-tune on your own photos and labels, then segment a photo with the result.

python examples/train_on_own_photos.py PATH photo.jpg

`PATH` is a folder as examples/finetune.yaml describes it. `maskformer train` does the same from the command line.
"""

import sys
from pathlib import Path

from maskformer_hf import load, predict
from maskformer_hf.training import train

root, photo, *changes = sys.argv[1:]

# What the recipe says may be changed here, as by `--set`: "steps=1000", "model.checkpoint=runs/mine/model", ...
recipe = Path(__file__).parent / "finetune.yaml"
folder = train(recipe, [f"data.root={root}", *changes], output_dir="runs/mine")

model, processor = load(folder)
[prediction] = predict(model, processor, photo)
print([segment["label"] for segment in prediction.segments])
