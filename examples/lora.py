"""Fine-tune by LoRA (PEFT): low-rank adapters in the transformer decoder's attention, while the heads train whole.

python examples/lora.py PATH --output runs/lora

`PATH` holds the split train in any format that `maskformer train` reads. `runs/lora/adapter` is what was learned, a
small file; `runs/lora/model` is checkpoint and adapter in one, which loads like any other model.
"""

import argparse
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch.utils.data import DataLoader

from maskformer_hf import MaskFormerForUniversalSegmentation, MaskFormerImageProcessor, bundled_checkpoints
from maskformer_hf.data import Collator, SampleStream, augmentation, open_dataset
from maskformer_hf.training.recipe_data import label_fields

parser = argparse.ArgumentParser()
parser.add_argument("data", type=Path)
parser.add_argument("--checkpoint", default="street", help="a bundled name, a folder, or a name on the Hub")
parser.add_argument("--output", type=Path, default=Path("runs/lora"))
parser.add_argument("--steps", type=int, default=500)
parser.add_argument("--batch-size", type=int, default=8)
parser.add_argument("--short-edge", type=int, nargs=2, default=[240, 480])
parser.add_argument("--crop-size", type=int, nargs=2, default=[320, 320])
parser.add_argument("--learning-rate", type=float, default=1e-3)
parser.add_argument("--rank", type=int, default=8)
options = parser.parse_args()

torch.manual_seed(0)
data = open_dataset(options.data, "train")
checkpoint = bundled_checkpoints().get(options.checkpoint, options.checkpoint)
base = MaskFormerForUniversalSegmentation.from_pretrained(checkpoint, dtype=torch.float32, **label_fields(data))
processor = MaskFormerImageProcessor.from_pretrained(checkpoint, label_ids_to_fuse=base.config.label_ids_to_fuse)
model = get_peft_model(
    base,
    LoraConfig(
        r=options.rank,
        lora_alpha=2 * options.rank,
        lora_dropout=0.05,
        target_modules=r".*\.transformer_decoder\..*_attn\.[qkvo]_proj",
        modules_to_save=["head"],
    ),
)
trained, total = model.get_nb_trainable_parameters()
print(f"training {trained} of {total} parameters, {trained / total:.1%}")

device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
model.to(device).train()
stream = SampleStream(
    data,
    augmentation(short_edge=options.short_edge, crop_size=options.crop_size),
    seed=0,
    start=0,
    stop=options.steps * options.batch_size,
)
collator = Collator(processor.image_mean, processor.image_std, processor.size_divisor, options.crop_size)
optimizer = torch.optim.AdamW(
    [parameter for parameter in model.parameters() if parameter.requires_grad], lr=options.learning_rate
)
for step, batch in enumerate(DataLoader(stream, options.batch_size, collate_fn=collator), start=1):
    # The targets are lists with one tensor an image, which the model moves itself.
    loss = model(**{**batch, "pixel_values": batch["pixel_values"].to(device)}).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    if step % 20 == 0 or step == options.steps:
        print(f"step {step}/{options.steps}: loss {float(loss.detach()):.3f}")

# Back by `PeftModel.from_pretrained(base, "runs/lora/adapter")`, where `base` has the classes it had above.
model.save_pretrained(options.output / "adapter")
merged = model.merge_and_unload()
merged.save_pretrained(options.output / "model")
processor.save_pretrained(options.output / "model")
print(f"saved {options.output / 'adapter'} and {options.output / 'model'}")
