"""Noticing NaN and infinity in a sample, without waiting for the device at every step."""

from __future__ import annotations

import torch


class FiniteCheck:
    """Remembers, on the device, the first step after which a sample was not finite."""

    def __init__(self) -> None:
        self._first_bad: torch.Tensor | None = None
        self._steps = 0

    def watch(self, sample: torch.Tensor) -> None:
        """Look at what a step gave."""
        self._steps += 1
        bad = torch.where(sample.isfinite().all(), torch.iinfo(torch.int64).max, self._steps)
        self._first_bad = bad if self._first_bad is None else torch.minimum(self._first_bad, bad)

    def check(self, stage: str) -> None:
        """Wait for the device, once.

        Raises:
            FloatingPointError: naming the stage and the step, counted from 1.
        """
        if self._first_bad is not None and self._first_bad <= self._steps:
            raise FloatingPointError(
                f"Stage {stage!r} gave NaN or infinity at step {int(self._first_bad)} of the {self._steps} that were "
                "taken: the weights, the embeddings or a score gradient leave the range of the dtype (bfloat16 has a "
                "wider one than float16). `pipe.check_finite = False` returns the images all the same."
            )
