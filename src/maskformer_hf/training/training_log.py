"""The log of a run: a progress bar, a line every few steps, and `log.jsonl`."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import reduce as reduce_over_processes
from tqdm import tqdm

from .arguments import Recipe
from .evaluation_table import format_table


class TrainingLog:
    """A progress bar on a terminal, and every `log_every` steps a line on stderr and one in `log.jsonl`.

    Args:
        path: of `log.jsonl`.
        frames: images in each sample.
    """

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
        # A moving average, so that one slow interval does not change the estimated end by an hour.
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
        # NaN, which JSON does not have, is the figure of something that is not in the data, such as large objects.
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
        """Leaves the time of an evaluation or a save out of images per second."""
        self.since += seconds

    def close(self) -> None:
        self.bar.close()

    def _write(self, figures: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(figures) + "\n")


def _memory(device: torch.device) -> float:
    """Memory in GiB: the largest amount allocated on a GPU so far, or on a CPU what this process holds now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return psutil.Process().memory_info().rss / 2**30
