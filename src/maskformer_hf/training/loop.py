"""The training loop: Accelerate runs the devices, a recipe says what to do."""

import itertools
import json
import logging
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, ProjectConfiguration
from accelerate.utils import reduce as reduce_over_processes
from torch import nn
from torch.utils._pytree import tree_map_only
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..data import SampleStream, SegmentationDataset, StreamPart, as_task, is_streamed, streamed_loader, videos_in
from ..model_card import machine_name
from ..models.modeling_auto import sees_clips
from .arguments import Recipe, read_recipe
from .building import (
    build_model,
    build_processor,
    config_class_of,
    enable_gradient_checkpointing,
    label_fields,
    open_data,
    training_parts,
    training_record,
    write_model,
)
from .checkpointing import INCOMPLETE, begin_folder, finish_folder, keep_last, numbered_folders, remove_unfinished
from .data_check import check_before_training
from .distributed import is_sharded, load_checkpoint, prepare_sharding, whole_model
from .evaluation import evaluate, format_table, write_json
from .optimization import WeightAverage, build_optimizer, schedule, set_learning_rate
from .step import training_step
from .stops import CHECKPOINT, check_finite, explained_stops
from .tracking import check_trackers, track_picture, tracked, validation_picture

logger = logging.getLogger(__name__)

BEST = "best-"


def train(
    recipe_path: str | Path,
    overrides: list[str] | None = None,
    resume: bool = False,
    output_dir: str | Path | None = None,
    report_to: Sequence[str] = (),
) -> Path:
    """Trains by a recipe file and returns the folder `from_pretrained` loads: `<output_dir>/model`.

    `<output_dir>` also gets `checkpoint-<step>` (the last two), `best-<step>` (a model folder), `log.jsonl` and
    `evaluation.json`. With `resume` training goes on from the last whole checkpoint, with the losses of an
    uninterrupted run; without a checkpoint it starts anew. Every evaluation leaves a picture, `validation-<step>.png`,
    and the check of the data `data.png` and `data.json`.

    Args:
        report_to: Trackers, in place of the recipe's.
    """
    recipe = read_recipe(recipe_path, overrides)
    if output_dir is not None:
        recipe.output_dir = str(output_dir)
    if report_to:
        recipe.report_to = list(report_to)
    training_data, validation_data = open_data(recipe.data)
    labels = label_fields(training_data, config_class_of(recipe.model))
    torch.manual_seed(recipe.seed)  # the same initial weights on every process
    model = build_model(recipe.model, labels)
    processor = build_processor(recipe.model, model.config)
    if recipe.data.check and not (resume and numbered_folders(Path(recipe.output_dir), CHECKPOINT)):
        check_before_training(recipe, model, training_data, validation_data)
    return train_model(model, processor, training_data, validation_data, recipe, resume)


def train_model(
    model: Any,
    processor: Any,
    training_data: SegmentationDataset,
    validation_data: SegmentationDataset | None,
    recipe: Recipe,
    resume: bool = False,
) -> Path:
    """`train` on parts that are already built. `processor` gives mean, deviation and divisor, and post-processes."""
    output_dir = Path(recipe.output_dir)
    check_trackers(recipe.report_to)
    accelerator = Accelerator(
        mixed_precision=recipe.mixed_precision,
        gradient_accumulation_steps=recipe.accumulation,
        # a batch is sent to the device by the loop, so that targets go as they are
        dataloader_config=DataLoaderConfiguration(even_batches=False),
        log_with=[*recipe.report_to] or None,
        project_config=ProjectConfiguration(str(output_dir), logging_dir=str(output_dir / "trackers")),
    )
    if channels_last := recipe.channels_last:
        model = model.to(memory_format=torch.channels_last)  # pyrefly: ignore[no-matching-overload]
    for name in recipe.float32_modules:
        _keep_float32(model, name, accelerator.device.type)
    if recipe.gradient_checkpointing:
        enable_gradient_checkpointing(model)
    if recipe.compile:
        model.base_model.compile()  # without the loss: matching leaves the graph
    optimizer = build_optimizer(model, recipe.optimization)
    learning_rate_factor = schedule(recipe.optimization, recipe.steps)
    model_class, config = type(model), model.config
    prepare_sharding(accelerator, model)
    model, optimizer = accelerator.prepare(model, optimizer)
    average = None
    if recipe.optimization.ema_decay > 0:
        average = WeightAverage(model.parameters(), recipe.optimization.ema_decay)
        accelerator.register_for_checkpointing(average)

    progress = _Progress(step=0, best_score=-math.inf, seconds=0.0)
    accelerator.register_for_checkpointing(progress)
    if accelerator.is_main_process:
        output_dir.mkdir(parents=True, exist_ok=True)
        remove_unfinished(output_dir)
    accelerator.wait_for_everyone()
    checkpoints = numbered_folders(output_dir, CHECKPOINT)
    if checkpoints and not resume:
        raise ValueError(
            f"{output_dir} already holds {checkpoints[-1].name}; pass --resume to go on, or choose another --output"
        )
    if checkpoints:
        load_checkpoint(accelerator, checkpoints[-1])
        logger.info("resumed from %s", checkpoints[-1])

    parts = training_parts(training_data, recipe, config, processor)
    batches = _batches(accelerator, *parts, recipe, progress.step)
    start = time.perf_counter() - progress.seconds
    evaluation = None

    def whole() -> Any:
        result = whole_model(accelerator, model, model_class)
        if is_sharded(accelerator):
            for name in recipe.float32_modules:
                _keep_float32(result, name, accelerator.device.type)
        return result

    def record(result: dict[str, Any] | None) -> dict[str, Any]:
        return training_record(
            recipe,
            step=progress.step,
            evaluation=result,
            training_images=None if is_streamed(training_data) else len(training_data),
            training_videos=len(videos_in(training_data) or ()),
            validation_images=len(validation_data) if validation_data is not None else 0,
            seconds=progress.seconds,
            machine=machine_name(accelerator.device),
            processes=accelerator.num_processes,
        )

    frames = recipe.data.frames if sees_clips(config) else 1
    log = _Log(output_dir / "log.jsonl", recipe, accelerator, progress.step, frames)
    model.train()
    with (
        explained_stops(output_dir, lambda: progress.step, accelerator.is_main_process),
        tracked(accelerator, recipe, progress.step),
    ):
        while progress.step < recipe.steps:
            factor = learning_rate_factor(progress.step)
            set_learning_rate(optimizer, factor)
            step_batches = [
                _to_device(batch, accelerator.device, channels_last)
                for batch in itertools.islice(batches, recipe.accumulation)
            ]
            # Dropout and sampled points depend on the step alone, so that a resumed run repeats an uninterrupted one.
            # After reading: a loader's first batch draws a number of its own.
            torch.manual_seed(_step_seed(recipe.seed, progress.step, accelerator.process_index))
            terms = training_step(accelerator, model, optimizer, step_batches, recipe.optimization.max_gradient_norm)
            if average is not None:
                average.update()
            finished = progress.step + 1 == recipe.steps
            evaluates = validation_data is not None and (finished or (progress.step + 1) % recipe.evaluate_every == 0)
            saves = finished or (progress.step + 1) % recipe.save_every == 0
            if evaluates or saves:
                check_finite(model.parameters())
            progress.step += 1
            log.step(progress.step, terms, factor * recipe.optimization.learning_rate)

            pause = time.perf_counter()
            progress.seconds = pause - start
            if validation_data is not None and evaluates:
                with average.applied() if average else nullcontext():
                    averaged = whole()
                    evaluation = _evaluate_and_keep_best(
                        accelerator, averaged, processor, validation_data, recipe, output_dir, progress, record
                    )
                    if accelerator.is_main_process:
                        task = "instance" if evaluation["task"] == "video" else evaluation["task"]
                        picture = validation_picture(averaged, processor, as_task(validation_data, task))
                        picture.save(output_dir / f"validation-{progress.step:06d}.png")
                        track_picture(accelerator, picture, progress.step)
                log.evaluation(progress.step, evaluation)
            if saves:
                _save_checkpoint(accelerator, output_dir, progress.step)
            log.leave_out(time.perf_counter() - pause)
        log.close()
        return _export(accelerator, whole, average, processor, recipe, output_dir, record(evaluation))


def _keep_float32(model: nn.Module, name: str, device_type: str) -> None:
    try:
        module = model.get_submodule(name)
    except AttributeError as error:
        children = [child for child, _ in model.named_modules() if child.count(".") <= name.count(".") and child]
        raise ValueError(f"float32_modules names {name!r}; the model has {children}") from error
    forward = torch.autocast(device_type, enabled=False)(module.forward)

    def float32(value: torch.Tensor) -> torch.Tensor:
        return value.float() if value.is_floating_point() else value

    def forward_in_float32(*arguments: Any, **options: Any) -> Any:
        # What comes from modules under autocast is in their type.
        return forward(
            *tree_map_only(torch.Tensor, float32, arguments), **tree_map_only(torch.Tensor, float32, options)
        )

    module.forward = forward_in_float32


class _Progress:
    """What a checkpoint must know besides weights and optimizer."""

    def __init__(self, step: int, best_score: float, seconds: float) -> None:
        self.step = step
        self.best_score = best_score
        self.seconds = seconds  # of training, evaluations included, without what was lost between two runs

    def state_dict(self) -> dict[str, Any]:
        return vars(self).copy()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


def _batches(
    accelerator: Accelerator, dataset: Any, transform: Any, collate: Any, recipe: Recipe, first_step: int
) -> Iterator[dict[str, Any]]:
    """This process's share of the remaining batches. Step s reads the same samples whatever the number of processes,
    except of a stream whose shards they share out."""
    samples_a_step = recipe.batch_size * recipe.accumulation * accelerator.num_processes
    start, stop = first_step * samples_a_step, recipe.steps * samples_a_step
    if is_streamed(dataset):
        return iter(
            streamed_loader(
                dataset,
                transform,
                StreamPart(
                    recipe.batch_size,
                    recipe.seed,
                    start,
                    stop,
                    process_index=accelerator.process_index,
                    num_processes=accelerator.num_processes,
                ),
                collate=collate,
                workers=recipe.data.workers,
                pin_memory=accelerator.device.type == "cuda",
            )
        )
    loader = DataLoader(
        SampleStream(dataset, transform, seed=recipe.seed, start=start, stop=stop),
        batch_size=recipe.batch_size,
        num_workers=recipe.data.workers,
        collate_fn=collate,
        pin_memory=accelerator.device.type == "cuda",
    )
    return iter(accelerator.prepare_data_loader(loader, device_placement=False))


def _to_device(batch: dict[str, Any], device: torch.device, channels_last: bool) -> dict[str, Any]:
    def move(value: Any) -> Any:
        return [move(item) for item in value] if isinstance(value, list) else value.to(device, non_blocking=True)

    batch = {name: move(value) for name, value in batch.items()}
    if channels_last:
        # Of clips the frames, which the backbone sees one by one.
        pixels = batch["pixel_values"]
        images = pixels.flatten(0, -4).contiguous(memory_format=torch.channels_last)
        batch["pixel_values"] = images.unflatten(0, pixels.shape[:-3])
    return batch


def _step_seed(seed: int, step: int, process: int) -> int:
    return (seed * 1_000_003 + step) * 4096 + process


def _evaluate_and_keep_best(
    accelerator: Accelerator,
    model: Any,
    processor: Any,
    dataset: SegmentationDataset,
    recipe: Recipe,
    output_dir: Path,
    progress: _Progress,
    record: Callable[[dict[str, Any]], dict[str, Any]],
) -> dict[str, Any]:
    # Photos of many sizes, each of which would be compiled for.
    with torch.compiler.set_stance("force_eager"):
        result = evaluate(
            model,
            processor,
            dataset,
            device=accelerator.device,
            mixed_precision=recipe.mixed_precision,
            processes=(accelerator.process_index, accelerator.num_processes),
            progress=accelerator.is_main_process,
        )
    better = result["score"] > progress.best_score
    if better:
        progress.best_score = result["score"]
    if accelerator.is_main_process:
        write_json(output_dir / "evaluation.json", {"step": progress.step, **result})
        if better:
            folder = output_dir / f"{BEST}{progress.step:06d}"
            write_model(model, processor, begin_folder(folder), getattr(torch, recipe.export_dtype), record(result))
            finish_folder(folder)
            keep_last(output_dir, BEST, 1)
    return result


def _save_checkpoint(accelerator: Accelerator, output_dir: Path, step: int) -> None:
    """Every process writes its part; the main one gives the folder its name."""
    folder = output_dir / f"{CHECKPOINT}{step:06d}"
    if accelerator.is_main_process:
        begin_folder(folder)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(folder.parent / f"{INCOMPLETE}{folder.name}"))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        finish_folder(folder)
        keep_last(output_dir, CHECKPOINT, 2)


def _export(
    accelerator: Accelerator,
    whole: Callable[[], Any],
    average: WeightAverage | None,
    processor: Any,
    recipe: Recipe,
    output_dir: Path,
    record: dict[str, Any],
) -> Path:
    target = output_dir / "model"
    best = numbered_folders(output_dir, BEST)
    with average.applied() if average else nullcontext():
        model = whole()
        if accelerator.is_main_process:
            unfinished = begin_folder(target)
            if best and recipe.export_weights == "best":
                shutil.copytree(best[-1], unfinished, dirs_exist_ok=True)
            else:
                write_model(model, processor, unfinished, getattr(torch, recipe.export_dtype), record)
            finish_folder(target)
        accelerator.wait_for_everyone()
    return target


def _memory(device: torch.device) -> float:
    """In GiB: the most that was allocated on a GPU so far, or what this process holds now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return psutil.Process().memory_info().rss / 2**30


class _Log:
    """A progress bar where there is a terminal, a line in the log and in `log.jsonl` every `log_every` steps."""

    def __init__(self, path: Path, recipe: Recipe, accelerator: Accelerator, first_step: int, frames: int) -> None:
        self.path = path
        self.recipe = recipe
        self.accelerator = accelerator
        self.images_a_step = recipe.batch_size * recipe.accumulation * accelerator.num_processes * frames
        self.terms: dict[str, torch.Tensor] = {}
        self.steps = 0
        self.seconds_a_step = 0.0
        self.since = time.perf_counter()
        self.bar = tqdm(
            total=recipe.steps,
            initial=first_step,
            desc="train",
            unit="step",
            disable=None if accelerator.is_main_process else True,
        )

    def step(self, step: int, terms: dict[str, torch.Tensor], learning_rate: float) -> None:
        for name, value in terms.items():
            self.terms[name] = self.terms[name] + value if name in self.terms else value
        self.steps += 1
        self.bar.update()
        if step % self.recipe.log_every and step != self.recipe.steps:
            return
        names = sorted(self.terms)
        means = torch.stack([self.terms[name].float() / self.steps for name in names])
        means = reduce_over_processes(means, reduction="mean")
        seconds = (time.perf_counter() - self.since) / self.steps
        # The estimate follows the machine's load slowly, so that one slow interval does not move the end by an hour.
        self.seconds_a_step = 0.9 * self.seconds_a_step + 0.1 * seconds if self.seconds_a_step else seconds
        figures = {name: float(value) for name, value in zip(names, means, strict=True)}
        figures |= {"learning_rate": learning_rate, "images_per_second": self.images_a_step / seconds}
        figures["memory_gib"] = _memory(self.accelerator.device)
        eta = (self.recipe.steps - step) * self.seconds_a_step
        self._write({"step": step, **figures, "seconds_left": eta})
        self.accelerator.log({f"training/{name}": value for name, value in figures.items()}, step=step)
        text = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
        if self.accelerator.is_main_process:
            self.bar.set_postfix_str(text)
            hours, minutes = divmod(int(eta / 60), 60)
            self._say(f"step {step}/{self.recipe.steps}: {text}, {hours}:{minutes:02} h left")
        self.terms, self.steps, self.since = {}, 0, time.perf_counter()

    def evaluation(self, step: int, result: dict[str, Any]) -> None:
        # JSON has no NaN, which stands for what the data have not, such as large objects.
        figures = {
            name: value for name, value in result.items() if isinstance(value, int | float | str) and value == value
        }
        self._write({"step": step, **{f"val_{name}": value for name, value in figures.items()}})
        numbers = {name: value for name, value in figures.items() if not isinstance(value, str)}
        self.accelerator.log({f"validation/{name}": value for name, value in numbers.items()}, step=step)
        if self.accelerator.is_main_process:
            self._say(f"step {step}/{self.recipe.steps}, validation\n{format_table(result)}")

    @staticmethod
    def _say(text: str) -> None:
        tqdm.write(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr)

    def leave_out(self, seconds: float) -> None:
        """Takes the time of an evaluation or a save out of images per second."""
        self.since += seconds

    def close(self) -> None:
        self.bar.close()

    def _write(self, figures: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(figures) + "\n")
