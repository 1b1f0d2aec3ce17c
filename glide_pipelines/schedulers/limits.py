"""What keeps an estimate of the clean image inside the range of pixels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin


def x_start_limit(scheduler: SchedulerMixin) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """The limit that a scheduler's config sets to x_0.

    Args:
        scheduler (`SchedulerMixin`): One of diffusers' or GLIDE's. One whose config has no `clip_sample` is clipped
            all the same, since a pixel outside [-1, 1] is none.

    Returns:
        `Callable[[torch.Tensor], torch.Tensor]`: dynamic thresholding (Imagen, arXiv 2205.11487, section 2.3) or a
        clip; None if the config switches both off.
    """
    config = scheduler.config
    # A config keeps `thresholding` also for schedulers that cannot do it.
    if config.get("thresholding", False) and hasattr(scheduler, "_threshold_sample"):
        return scheduler._threshold_sample
    if config.get("clip_sample", True):
        limit = float(config.get("clip_sample_range", 1.0))
        return lambda x_start: x_start.clamp(-limit, limit)
    return None
