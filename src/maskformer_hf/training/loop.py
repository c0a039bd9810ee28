"""The training loop: Accelerate runs the devices, a recipe says what to do."""

import itertools
import logging
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, ProjectConfiguration

from ..data import SegmentationDataset, as_task, is_streamed, videos_in
from ..machine import machine_name
from ..output_files import save_picture
from .arguments import Recipe, read_recipe
from .checkpointing import numbered_folders
from .data_check import check_before_training
from .distributed import is_sharded, prepare_sharding, whole_model
from .evaluation import evaluate
from .failures import CHECKPOINT, check_finite, explain_failures
from .kinds import kind_of
from .model_folder import ImageCounts, training_record
from .model_setup import keep_float32, prepare_model
from .optimization import WeightAverage, build_optimizer, schedule, set_learning_rate
from .recipe_data import label_fields, open_data, to_device, training_batches, training_parts
from .recipe_model import build_model, build_processor, config_class_of
from .run_folder import (
    Progress,
    check_folder,
    export_model,
    prepare_folder,
    save_best,
    save_checkpoint,
    write_evaluation,
)
from .step import training_step
from .tracking import check_trackers, track_picture, tracked, validation_picture
from .training_log import TrainingLog

logger = logging.getLogger(__name__)


def train(
    recipe_path: str | Path,
    overrides: list[str] | None = None,
    resume: bool = False,
    output_dir: str | Path | None = None,
    report_to: Sequence[str] = (),
    overwrite: bool = False,
) -> Path:
    """Trains by a recipe file and returns the folder `from_pretrained` loads: `<output_dir>/model`.

    `<output_dir>` also gets `checkpoint-<step>` (the last two), `best-<step>` (a model folder), `log.jsonl` and
    `evaluation.json`. With `resume` training goes on from the last whole checkpoint, with the losses of an
    uninterrupted run; without a checkpoint it starts anew. Every evaluation leaves a picture, `validation-<step>.png`,
    and the check of the data `data.png` and `data.json`.

    Args:
        report_to: Trackers, in place of the recipe's.
        overwrite: Whether to remove what is there under these names. Otherwise it is an error, unless `resume`.
    """
    recipe = read_recipe(recipe_path, overrides)
    if output_dir is not None:
        recipe.output_dir = str(output_dir)
    if report_to:
        recipe.report_to = list(report_to)
    check_folder(Path(recipe.output_dir), resume, overwrite)
    training_data, validation_data = open_data(recipe.data)
    labels = label_fields(training_data, config_class_of(recipe.model))
    torch.manual_seed(recipe.seed)  # the same initial weights on every process
    model = build_model(recipe.model, labels)
    processor = build_processor(recipe.model, model.config)
    if recipe.data.check and not (resume and numbered_folders(Path(recipe.output_dir), CHECKPOINT)):
        check_before_training(recipe, model, training_data, validation_data)
    return train_model(model, processor, training_data, validation_data, recipe, resume, overwrite)


def train_model(
    model: Any,
    processor: Any,
    training_data: SegmentationDataset,
    validation_data: SegmentationDataset | None,
    recipe: Recipe,
    resume: bool = False,
    overwrite: bool = False,
) -> Path:
    """`train` on parts that are already built.

    Args:
        processor: Gives mean, deviation and divisor of batches, and reads outputs for evaluations.
    """
    return _Run(model, processor, training_data, validation_data, recipe, resume, overwrite).train()


class _Run:
    """One training run: its model, optimizer and data, and how far it is."""

    def __init__(
        self,
        model: Any,
        processor: Any,
        training_data: SegmentationDataset,
        validation_data: SegmentationDataset | None,
        recipe: Recipe,
        resume: bool,
        overwrite: bool,
    ) -> None:
        check_trackers(recipe.report_to)
        self.recipe = recipe
        self.processor = processor
        self.training_data, self.validation_data = training_data, validation_data
        self.output_dir = Path(recipe.output_dir)
        self.accelerator = accelerator = Accelerator(
            mixed_precision=recipe.mixed_precision,
            gradient_accumulation_steps=recipe.accumulation,
            dataloader_config=DataLoaderConfiguration(even_batches=False),
            log_with=[*recipe.report_to] or None,
            project_config=ProjectConfiguration(str(self.output_dir), logging_dir=str(self.output_dir / "trackers")),
        )
        model = prepare_model(model, recipe, accelerator.device.type)
        optimizer = build_optimizer(model, recipe.optimization)
        self.model_class, self.config = type(model), model.config
        prepare_sharding(accelerator, model)
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.average: WeightAverage | None = None
        if recipe.optimization.ema_decay > 0:
            self.average = WeightAverage(self.model.parameters(), recipe.optimization.ema_decay)
            accelerator.register_for_checkpointing(self.average)
        self.progress = Progress()
        accelerator.register_for_checkpointing(self.progress)
        checkpoint = prepare_folder(accelerator, self.output_dir, resume, overwrite)
        if checkpoint is not None:
            logger.info("resumed from %s", checkpoint)
        self.evaluation: dict[str, Any] | None = None

    def train(self) -> Path:
        """The loop. Returns the folder of the exported model."""
        recipe, progress, accelerator = self.recipe, self.progress, self.accelerator
        parts = training_parts(self.training_data, recipe, self.config, self.processor)
        batches = training_batches(accelerator, parts, recipe, progress.step)
        learning_rate_factor = schedule(recipe.optimization, recipe.steps)
        network: Any = accelerator.unwrap_model(self.model)
        start = time.perf_counter() - progress.seconds
        frames = kind_of(self.config).frames(recipe.data)
        log = TrainingLog(self.output_dir / "log.jsonl", recipe, accelerator, progress.step, frames)
        self.model.train()
        with (
            explain_failures(self.output_dir, lambda: progress.step, accelerator.is_main_process),
            tracked(accelerator, recipe, progress.step),
        ):
            while progress.step < recipe.steps:
                factor = learning_rate_factor(progress.step)
                set_learning_rate(self.optimizer, factor)
                # Some loss terms and masks change with the progress of training, from 0 to 1.
                network.training_progress = progress.step / recipe.steps
                step_batches = [
                    to_device(batch, accelerator.device, recipe.channels_last)
                    for batch in itertools.islice(batches, recipe.accumulation)
                ]
                # Dropout and sampled points depend on the step alone, so that a resumed run repeats an uninterrupted
                # one. The seed is set after reading, as a loader draws a number of its own for its first batch.
                torch.manual_seed(_step_seed(recipe.seed, progress.step, accelerator.process_index))
                norm = recipe.optimization.max_gradient_norm
                terms = training_step(accelerator, self.model, self.optimizer, step_batches, norm)
                if self.average is not None:
                    self.average.update()
                self._finish_step(log, start, terms, factor * recipe.optimization.learning_rate)
            log.close()
            record = self._record(self.evaluation)
            return export_model(accelerator, self._whole, self.average, self.processor, recipe, record)

    def _finish_step(
        self, log: TrainingLog, start: float, terms: dict[str, torch.Tensor], learning_rate: float
    ) -> None:
        """Logs a step, and evaluates and saves if it is time for that."""
        recipe, progress = self.recipe, self.progress
        finished = progress.step + 1 == recipe.steps
        evaluates = self.validation_data is not None and (finished or (progress.step + 1) % recipe.evaluate_every == 0)
        saves = finished or (progress.step + 1) % recipe.save_every == 0
        if evaluates or saves:
            check_finite(self.model.parameters())
        progress.step += 1
        log.step(progress.step, terms, learning_rate)
        pause = time.perf_counter()
        progress.seconds = pause - start
        if evaluates:
            assert self.validation_data is not None, "only with such data does a step evaluate"
            self.evaluation = self._evaluate(self.validation_data)
            log.evaluation(progress.step, self.evaluation)
        if saves:
            save_checkpoint(self.accelerator, self.output_dir, progress.step)
        log.leave_out(time.perf_counter() - pause)

    def _evaluate(self, dataset: SegmentationDataset) -> dict[str, Any]:
        """Measures the model, keeps it if it is the best so far, and draws a picture of some predictions."""
        accelerator, recipe, progress = self.accelerator, self.recipe, self.progress
        with self.average.applied() if self.average else nullcontext():
            model = self._whole()
            # Images have many sizes, for each of which the network would be compiled anew.
            with torch.compiler.set_stance("force_eager"):
                result = evaluate(
                    model,
                    self.processor,
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
                write_evaluation(self.output_dir, progress.step, result)
                if better:
                    save_best(model, self.processor, recipe, progress.step, self._record(result))
                task = "instance" if result["task"] == "video" else result["task"]
                picture = validation_picture(model, self.processor, as_task(dataset, task))
                save_picture(picture, self.output_dir / f"validation-{progress.step:06d}.png")
                track_picture(accelerator, picture, progress.step)
        return result

    def _whole(self) -> Any:
        """The model in one piece; call on every process."""
        model = whole_model(self.accelerator, self.model, self.model_class)
        if is_sharded(self.accelerator):
            # It is a copy, made of its configuration, which does not know of this option.
            keep_float32(model, self.recipe.float32_modules, self.accelerator.device.type)
        return model

    def _record(self, evaluation: dict[str, Any] | None) -> dict[str, Any]:
        training, validation = self.training_data, self.validation_data
        images = ImageCounts(
            training=None if is_streamed(training) else len(training),
            validation=0 if validation is None else len(validation),
            training_videos=len(videos_in(training) or ()),
        )
        return training_record(
            self.recipe,
            images,
            step=self.progress.step,
            evaluation=evaluation,
            seconds=self.progress.seconds,
            machine=machine_name(self.accelerator.device),
            processes=self.accelerator.num_processes,
        )


def _step_seed(seed: int, step: int, process: int) -> int:
    return (seed * 1_000_003 + step) * 4096 + process
