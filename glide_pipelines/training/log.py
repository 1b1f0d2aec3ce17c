"""The log of a run: one JSON object per line, which hides nothing."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator


class MeansByQuarter:
    """Means of values of examples: over all timesteps of the process, and over each quarter of them, whose losses
    differ by orders of magnitude."""

    def __init__(self, num_train_timesteps: int, device: torch.device) -> None:
        self.num_train_timesteps = num_train_timesteps
        self.counts = torch.zeros(4, device=device)
        self.sums: dict[str, torch.Tensor] = {}

    def add(self, timesteps: torch.Tensor, metrics: Mapping[str, torch.Tensor]) -> None:
        """Add the values `[B]` of examples with these timesteps `[B]`."""
        quarter = timesteps * 4 // self.num_train_timesteps
        # (`bincount` would wait for the device.)
        self.counts.index_add_(0, quarter, torch.ones_like(quarter, dtype=self.counts.dtype))
        for name, values in metrics.items():
            sums = self.sums.setdefault(name, torch.zeros_like(self.counts))
            sums.index_add_(0, quarter, values.detach().to(sums.dtype))

    def line(self, add_up: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor) -> dict[str, Any]:
        """The means by name, those of the quarters under `<name>_by_quarter`; `add_up` is the sum of a tensor over all
        processes."""
        counts = add_up(self.counts).cpu()
        line: dict[str, Any] = {}
        for name, sums in self.sums.items():
            sums = add_up(sums).cpu()
            line[name] = _rounded(sums.sum() / counts.sum())
            if name != "loss":
                line[f"{name}_by_quarter"] = [_rounded(mean) for mean in sums / counts]
        return line


class TrainingLog:
    """Means over the steps since the last line, see [`MeansByQuarter`]. Trackers get what the file gets.

    Args:
        accelerator (`Accelerator`): Knows the processes and the trackers.
        path (`Path`): The file, which is appended to.
        num_train_timesteps (`int`): Steps T of the process.
        step, max_train_steps (`int`): Steps of the run: those done before, and all.
        images_per_step (`int`): Of all processes.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        path: Path,
        num_train_timesteps: int,
        step: int,
        max_train_steps: int,
        images_per_step: int,
    ) -> None:
        self.accelerator = accelerator
        self.path = path
        self.num_train_timesteps = num_train_timesteps
        self.max_train_steps, self.images_per_step = max_train_steps, images_per_step
        self.start(step)

    def start(self, step: int) -> None:
        """Begin a line after so many steps: what takes time before, such as validation, is none of theirs."""
        self.first_step, self.started = step, time.monotonic()
        self.means = MeansByQuarter(self.num_train_timesteps, self.accelerator.device)
        # Sum of the finite norms, and their number.
        self.grad_norm, self.finite_steps = torch.zeros(2, device=self.accelerator.device)
        self.rate = 0.0

    def add(self, timesteps: torch.Tensor, metrics: dict[str, torch.Tensor]) -> None:
        """Add the values `[B]` of examples with these timesteps `[B]`."""
        self.means.add(timesteps, metrics)

    def add_gradient(self, norm: torch.Tensor, rate: float) -> None:
        """Add the norm of a step's gradient, and set the step's learning rate."""
        finite = norm.isfinite()
        self.grad_norm += norm.detach().where(finite, 0.0)
        self.finite_steps += finite
        self.rate = rate

    def flush(self, step: int, skipped_images: int = 0) -> dict[str, Any] | None:
        """Write a line, unless no step was done since the last one. Every process must call it.

        Args:
            step (`int`): Steps done.
            skipped_images (`int`, defaults to 0): Images of the dataset that could not be read so far.

        Returns:
            `dict[str, Any]`, *optional*: The line.

        Raises:
            FloatingPointError: if the loss or a gradient was not finite.
        """
        steps = step - self.first_step
        if steps == 0:
            return None
        line = {"step": step, **self.means.line(lambda tensor: self.accelerator.reduce(tensor, "sum"))}
        line["grad_norm"] = _rounded(self.grad_norm / self.finite_steps)
        line["learning_rate"] = self.rate
        if skipped_images:
            line["skipped_images"] = skipped_images
        seconds = (time.monotonic() - self.started) / steps
        line["seconds_per_step"] = _rounded(seconds)
        line["images_per_second"] = _rounded(self.images_per_step / seconds)
        line["seconds_left"] = _rounded((self.max_train_steps - step) * seconds)
        self.write(line)
        broken = line["loss"] is None
        # Under fp16 a gradient that overflows is skipped by the gradient scaler.
        if self.accelerator.mixed_precision != "fp16":
            broken |= self.finite_steps.item() < steps
        if broken:
            raise FloatingPointError(
                f"The loss or the gradient was not finite between steps {self.first_step} and {step}: {line}"
            )
        self.start(step)
        return line

    def write(self, line: dict[str, Any]) -> None:
        """Write a line of values by name, one of which is the `step`, and give the numbers in it to the trackers."""
        line["time"] = time.strftime("%Y-%m-%dT%H:%M:%S")
        numbers: dict[str, float] = {}
        for name, value in line.items():
            if isinstance(value, float):
                numbers[name] = value
            elif isinstance(value, list):
                quarters = {f"{name}/{number}": part for number, part in enumerate(value, 1) if part is not None}
                numbers |= quarters
        self.accelerator.log(numbers, step=line["step"])
        if self.accelerator.is_main_process:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, allow_nan=False) + "\n")


def _rounded(value: torch.Tensor | float) -> float | None:
    """Five digits; None for infinity and NaN (of 0 / 0 too, a mean of nothing), which JSON does not have."""
    return float(f"{float(value):.5g}") if math.isfinite(value) else None
