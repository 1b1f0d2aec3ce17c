"""The learning rate as a function of the step, so that the end of a run can be moved while it is under way."""

from __future__ import annotations

import math
from dataclasses import dataclass


DECAYS = ("constant", "linear", "cosine")


# The curve of `transformers.get_wsd_schedule`, one step ahead, because there the first step has the rate 0. That one is
# stepped (by accelerate once per process), and warm-up and decay must not overlap; this is a function of the step.
@dataclass(frozen=True)
class LearningRate:
    """Linear warm-up, a constant phase, and a decay to zero over the last steps.

    A run that is resumed with another `max_train_steps` or `decay_steps` follows the new curve from that step on. Where
    warm-up and decay overlap, their factors are multiplied.

    Args:
        peak (`float`): The rate of the constant phase.
        max_train_steps (`int`): Where the run ends.
        warmup_steps (`int`): Steps from 0 to `peak`.
        decay (`str`): `"constant"` (none), `"linear"` or `"cosine"`.
        decay_steps (`int`, *optional*): Length of the decay at the end of the run; all but the warm-up by default.

    Raises:
        ValueError: if a value is out of its range.
    """

    peak: float
    max_train_steps: int
    warmup_steps: int = 0
    decay: str = "constant"
    decay_steps: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.peak < math.inf:
            raise ValueError(f"`learning_rate` must be above 0 and finite, got {self.peak}.")
        if self.max_train_steps < 1:
            raise ValueError(f"`max_train_steps` must be at least 1, got {self.max_train_steps}.")
        if self.warmup_steps < 0:
            raise ValueError(f"`lr_warmup_steps` must be at least 0, got {self.warmup_steps}.")
        if self.decay not in DECAYS:
            raise ValueError(f"`lr_scheduler` must be one of {', '.join(DECAYS)}, got {self.decay!r}.")
        if self.decay_steps is not None and self.decay_steps < 1:
            raise ValueError(f"`lr_decay_steps` must be at least 1, got {self.decay_steps}.")

    def __call__(self, step: int) -> float:
        """The rate of the step with this number, counted from 0."""
        rate = self.peak * min(1.0, (step + 1) / (self.warmup_steps + 1))
        if self.decay == "constant":
            return rate
        length = self.decay_steps or max(1, self.max_train_steps - self.warmup_steps)
        left = min(1.0, max(0.0, (self.max_train_steps - step) / length))
        return rate * (left if self.decay == "linear" else 0.5 * (1 - math.cos(math.pi * left)))
