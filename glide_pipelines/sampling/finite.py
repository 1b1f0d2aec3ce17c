"""Noticing NaN and infinity in a sample, without waiting for the device at every step."""

from __future__ import annotations

import math

import torch


class FiniteCheck:
    """Remembers, on the device, after which steps a sample was not finite."""

    def __init__(self) -> None:
        # One number a step, and one kernel: NaN and infinity are the largest of all.
        self._largest: list[torch.Tensor] = []

    def watch(self, sample: torch.Tensor) -> None:
        """Look at what a step gave."""
        self._largest.append(torch.linalg.vector_norm(sample, torch.inf))

    def check(self, stage: str) -> None:
        """Wait for the device, once.

        Raises:
            FloatingPointError: naming the stage and the step, counted from 1.
        """
        if not self._largest:
            return
        bad = [
            step for step, largest in enumerate(torch.stack(self._largest).tolist(), 1) if not math.isfinite(largest)
        ]
        if bad:
            raise FloatingPointError(
                f"Stage {stage!r} gave NaN or infinity at step {bad[0]} of the {len(self._largest)} that were taken: "
                "the weights, the embeddings or a score gradient leave the range of the dtype (bfloat16 has a wider "
                "one than float16). `pipe.check_finite = False` returns the images all the same."
            )
