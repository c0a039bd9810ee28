"""What the same training makes of transformers' MaskFormer classes, as they are, and of ours.

    python benchmarks/learning.py PATH/camvid --backbone-weights PATH/tf_efficientnet_lite0.in1k.safetensors
    python benchmarks/learning.py PATH/camvid --backbone-weights FILE --steps 60 --images 20     # about 3 minutes

The folder holds train/ and val/ with images/, labels/ and a classes.txt. Both sides get the same crops in the same
order, the same backbone with the same weights (without --backbone-weights: the same random ones), a model of the same
size, and AdamW with the paper's parameter groups and clipping. All else is each side's own: image processor, targets,
initialisation of everything behind the backbone, BatchNorm, losses, post-processing. transformers' auxiliary losses run
with `output_hidden_states=True` only, so it is given. Both are measured by the same mean IoU on photos of the val
split at their own size.

"spread" is how far the classes of two queries are apart in evaluation mode, on the average (the largest difference of
a probability): a model whose queries are all one cannot tell anything apart.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, DetrConfig

from maskformer_hf import MaskFormerConfig, MaskFormerForUniversalSegmentation, MaskFormerImageProcessor
from maskformer_hf.data import Collator, Sample, SampleStream, augmentation, class_map, open_dataset
from maskformer_hf.metrics import MeanIoU
from maskformer_hf.models.backbone import load_pretrained_backbone
from maskformer_hf.training.optimization import parameter_groups

WIDTH, FFN_WIDTH, HEADS, LAYERS, QUERIES = 128, 512, 8, 3, 50
MEAN_AND_DEVIATION = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
IGNORE_INDEX = 255
SIDES = ("transformers", "maskformer_hf")


def build_models(backbone: str, weights: Path | None, id2label: dict[int, str], seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    backbone_config = AutoConfig.for_model("timm_backbone", backbone=backbone)
    label2id = {name: label for label, name in id2label.items()}
    ours = MaskFormerForUniversalSegmentation(
        MaskFormerConfig(
            backbone_config=backbone_config,
            feature_size=WIDTH,
            mask_feature_size=WIDTH,
            hidden_size=WIDTH,
            ffn_dim=FFN_WIDTH,
            num_attention_heads=HEADS,
            decoder_layers=LAYERS,
            num_queries=QUERIES,
            task="semantic",
            id2label=id2label,
            label2id=label2id,
        )
    )
    if weights is not None:
        load_pretrained_backbone(ours.model.backbone, f"timm/{backbone}", str(weights))
    theirs = transformers.MaskFormerForInstanceSegmentation(
        transformers.MaskFormerConfig(
            backbone_config=ours.config.backbone_config,
            fpn_feature_size=WIDTH,
            mask_feature_size=WIDTH,
            decoder_config=DetrConfig(
                d_model=WIDTH,
                decoder_ffn_dim=FFN_WIDTH,
                decoder_attention_heads=HEADS,
                decoder_layers=LAYERS,
                num_queries=QUERIES,
            ),
            use_auxiliary_loss=True,
            id2label=id2label,
            label2id=label2id,
        )
    )
    own_names = ours.model.backbone.body.state_dict()
    missing, unexpected = theirs.model.pixel_level_module.encoder.load_state_dict(own_names, strict=False)
    assert not unexpected, unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing), missing
    return {"transformers": theirs, "maskformer_hf": ours}


def build_optimizer(model: Any, backbone: torch.nn.Module, options: argparse.Namespace) -> torch.optim.Optimizer:
    of_backbone = {id(parameter) for parameter in backbone.parameters()}
    groups = []
    for group in parameter_groups(
        model, learning_rate=options.learning_rate, weight_decay=options.weight_decay, multipliers={}
    ):
        for in_backbone, multiplier in ((True, options.backbone_multiplier), (False, 1.0)):
            parameters = [p for p in group["params"] if (id(p) in of_backbone) == in_backbone]
            rate = group["lr"] * multiplier
            groups.append({"params": parameters, "lr": rate, "peak": rate, "weight_decay": group["weight_decay"]})
    return torch.optim.AdamW(groups)


def train(side: str, model: Any, stream: SampleStream, options: argparse.Namespace) -> float:
    """The mean loss of the last tenth of the steps."""
    backbone = model.model.backbone if side == "maskformer_hf" else model.model.pixel_level_module.encoder
    optimizer = build_optimizer(model, backbone, options)
    make_batch = _our_batch() if side == "maskformer_hf" else _their_batch()
    model.train()
    torch.manual_seed(options.seed)
    losses = []
    for step in range(options.steps):
        factor = (1 - step / options.steps) ** 0.9 * min(1.0, (step + 1) / options.warmup_steps)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        first = step * options.batch_size
        batch = make_batch([stream[index] for index in range(first, first + options.batch_size)])
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), options.max_gradient_norm)
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % max(1, options.steps // 5) == 0:
            print(f"  {side} {step + 1} of {options.steps} steps, loss {losses[-1]:.2f}", flush=True)
    tenth = max(1, options.steps // 10)
    return sum(losses[-tenth:]) / tenth


def _our_batch() -> Callable[[list[Sample]], dict[str, Any]]:
    collator = Collator(**MEAN_AND_DEVIATION)
    return lambda samples: {**collator(samples)}


def _their_batch() -> Callable[[list[Sample]], dict[str, Any]]:
    processor = transformers.MaskFormerImageProcessor(do_resize=False, ignore_index=IGNORE_INDEX, **MEAN_AND_DEVIATION)

    def make_batch(samples: list[Sample]) -> dict[str, Any]:
        images = [sample["image"].as_subclass(torch.Tensor) for sample in samples]
        maps = [class_map(sample, IGNORE_INDEX).numpy() for sample in samples]
        batch = processor(images=images, segmentation_maps=maps, return_tensors="pt")
        return {**batch, "output_hidden_states": True}

    return make_batch


@torch.inference_mode()
def measure(side: str, model: Any, dataset: Any, num_images: int) -> dict[str, float]:
    """Mean IoU and pixel accuracy, and the spread of the queries."""
    package: Any = MaskFormerImageProcessor if side == "maskformer_hf" else transformers.MaskFormerImageProcessor
    processor = package(do_resize=False, **MEAN_AND_DEVIATION)
    metric = MeanIoU(len(dataset.id2label), ignore_index=IGNORE_INDEX)
    model.eval()
    spreads = []
    indices = range(0, len(dataset), max(1, len(dataset) // num_images))[:num_images]
    for index in indices:
        sample = dataset[index]
        inputs = processor(images=[sample["image"].as_subclass(torch.Tensor)], return_tensors="pt")
        outputs = model(**inputs, output_hidden_states=True)
        (result,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[sample["image"].shape[-2:]])
        metric.update(result, class_map(sample, IGNORE_INDEX))
        probabilities = outputs.class_queries_logits[0].softmax(-1)
        spreads.append((probabilities[:, None] - probabilities).abs().amax(-1).mean().item())
    result = metric.compute(dataset.id2label)
    return {
        "mean_iou": result["mean_iou"],
        "pixel_accuracy": result["pixel_accuracy"],
        "spread": sum(spreads) / len(spreads),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--backbone", default="tf_efficientnet_lite0", help="a model of timm")
    parser.add_argument("--backbone-weights", type=Path, help="safetensors file with timm's names")
    parser.add_argument("--steps", type=int, default=230)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--images", type=int, default=1000, help="of the val split, at most")
    parser.add_argument("--short-edge", type=int, nargs=2, default=[270, 720])
    parser.add_argument("--crop-size", type=int, nargs=2, default=[256, 352], help="multiples of 32")
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--backbone-multiplier", type=float, default=0.2)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--warmup-steps", type=int, default=20)
    parser.add_argument("--max-gradient-norm", type=float, default=0.01)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()

    training, validation = (open_dataset(options.data, split, task="semantic") for split in ("train", "val"))
    transform = augmentation(
        short_edge=options.short_edge, crop_size=options.crop_size, crop_max_class_share=0.75, color_jitter=True
    )
    stream = SampleStream(training, transform, seed=options.seed, start=0, stop=options.steps * options.batch_size)
    models = build_models(options.backbone, options.backbone_weights, training.id2label, options.seed)
    rows = []
    for side in SIDES:
        before = measure(side, models[side], validation, 1)["spread"]
        start = time.perf_counter()
        loss = train(side, models[side], stream, options)
        minutes = (time.perf_counter() - start) / 60
        rows.append((side, minutes, loss, before, measure(side, models[side], validation, options.images)))
    print(
        f"\n{options.steps} steps of {options.batch_size} crops of {options.crop_size[0]}x{options.crop_size[1]}, "
        f"{options.backbone}{'' if options.backbone_weights else ' with random weights'}, {LAYERS} decoder layers, "
        f"{QUERIES} queries, seed {options.seed}, {options.threads} threads, torch {torch.__version__}, transformers "
        f"{transformers.__version__}"
    )
    print(f"{'':16}{'mean IoU':>9}{'accuracy':>10}{'last loss':>11}{'spread before':>15}{'after':>8}{'minutes':>9}")
    for side, minutes, loss, before, result in rows:
        print(
            f"{side:16}{result['mean_iou']:9.3f}{result['pixel_accuracy']:10.3f}{loss:11.2f}{before:15.5f}"
            f"{result['spread']:8.3f}{minutes:9.1f}"
        )


if __name__ == "__main__":
    main()
