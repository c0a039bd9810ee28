"""Train with transformers' own `Trainer`: the model, the samples and the optimizer are those of `maskformer train`.

python examples/train_with_trainer.py PATH --output runs/trainer

`PATH` holds the splits train and val in any format that `maskformer train` reads; the figure here is mean IoU. On
several GPUs start it by `accelerate launch`: alone, Trainer would use DataParallel there, which deals out the masks of
each image to different GPUs.
"""

import argparse
from pathlib import Path

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainingArguments

from maskformer_hf import MaskFormerForUniversalSegmentation, MaskFormerImageProcessor, bundled_checkpoints
from maskformer_hf.data import Collator, SampleStream, augmentation, open_dataset
from maskformer_hf.metrics import MeanIoU
from maskformer_hf.training.arguments import OptimizationArguments
from maskformer_hf.training.optimization import build_optimizer, schedule
from maskformer_hf.training.recipe_data import label_fields

parser = argparse.ArgumentParser()
parser.add_argument("data", type=Path)
parser.add_argument("--checkpoint", default="street", help="a bundled name, a folder, or a name on the Hub")
parser.add_argument("--output", default="runs/trainer")
parser.add_argument("--steps", type=int, default=1000)
parser.add_argument("--batch-size", type=int, default=8)
parser.add_argument("--short-edge", type=int, nargs=2, default=[240, 480])
parser.add_argument("--crop-size", type=int, nargs=2, default=[320, 320])
options = parser.parse_args()

training_data, validation_data = (open_dataset(options.data, split, task="semantic") for split in ("train", "val"))
checkpoint = bundled_checkpoints().get(options.checkpoint, options.checkpoint)
model = MaskFormerForUniversalSegmentation.from_pretrained(
    checkpoint, dtype=torch.float32, **label_fields(training_data)
)
processor = MaskFormerImageProcessor.from_pretrained(checkpoint, label_ids_to_fuse=model.config.label_ids_to_fuse)

arguments = TrainingArguments(
    output_dir=options.output,
    max_steps=options.steps,
    per_device_train_batch_size=options.batch_size,
    per_device_eval_batch_size=1,
    # The collator wants samples as they are, and the loss is made of these two.
    remove_unused_columns=False,
    label_names=["mask_labels", "class_labels"],
    # `SampleStream` has shuffled.
    train_sampling_strategy="sequential",
    # Every parameter has a gradient in every step, also in one without any object.
    ddp_find_unused_parameters=False,
    max_grad_norm=0.01,
    batch_eval_metrics=True,
    eval_strategy="steps",
    eval_steps=max(1, options.steps // 4),
    save_steps=max(1, options.steps // 4),
    logging_steps=max(1, options.steps // 50),
    load_best_model_at_end=True,
    metric_for_best_model="mean_iou",
    report_to="none",
)
total_batch = options.batch_size * arguments.gradient_accumulation_steps * arguments.world_size
stream = SampleStream(
    training_data,
    augmentation(short_edge=options.short_edge, crop_size=options.crop_size),
    seed=arguments.seed,
    start=0,
    stop=options.steps * total_batch,
)
# The paper's parameter groups (backbone at a tenth of the rate, no decay on norms and queries) and its poly schedule.
optimization = OptimizationArguments(learning_rate=1e-4)
optimizer = build_optimizer(model, optimization)

metric = MeanIoU(len(training_data.id2label))


class SegmentationTrainer(Trainer):
    """Each image is reduced to its confusion matrix at once: no mask is gathered, or kept until the end."""

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = model(**inputs)
        sizes = [tuple(size) for size in outputs.image_sizes.tolist()]
        maps = processor.post_process_semantic_segmentation(outputs, target_sizes=sizes)
        confusion = []
        for map_HW, masks_NHW, classes_N in zip(maps, inputs["mask_labels"], inputs["class_labels"], strict=True):
            truth_HW = torch.full_like(map_HW, metric.ignore_index)
            for mask_HW, label in zip(masks_NHW, classes_N, strict=True):
                truth_HW[mask_HW[: len(map_HW), : len(map_HW[0])]] = label
            one_image = MeanIoU(metric.num_labels, device=map_HW.device)
            one_image.update(map_HW, truth_HW)
            confusion.append(one_image.confusion)
        counts_BKK = torch.stack(confusion)
        # Trainer calls `compute_metrics` only where there are labels.
        return outputs.loss.detach(), counts_BKK, counts_BKK.new_zeros(len(counts_BKK))


def compute_metrics(prediction, compute_result):
    metric.confusion += prediction.predictions.sum(0).cpu()
    if not compute_result:
        return {}
    result = metric.compute()
    metric.reset()
    return {name: result[name] for name in ("mean_iou", "pixel_accuracy")}


trainer = SegmentationTrainer(
    model,
    arguments,
    data_collator=Collator(processor.image_mean, processor.image_std, processor.size_divisor, options.crop_size),
    train_dataset=stream,
    eval_dataset=validation_data,
    compute_metrics=compute_metrics,
    optimizers=(optimizer, LambdaLR(optimizer, schedule(optimization, options.steps))),
)
trainer.train()
trainer.save_model(options.output)
if trainer.is_world_process_zero():
    processor.save_pretrained(options.output)
    print(f"validation mean IoU {trainer.state.best_metric:.3f}, saved {options.output}")
