"""Noise schedules and steps: no networks."""

from .adapter import SchedulerAdapter
from .gaussian_diffusion import GaussianDiffusion, make_betas
from .respacing import space_timesteps
from .scheduling_glide import GLIDEScheduler
from .scheduling_glide_ddim import GLIDEDDIMScheduler
from .scheduling_glide_ddpm import GLIDEDDPMScheduler


__all__ = [
    "GLIDEDDIMScheduler",
    "GLIDEDDPMScheduler",
    "GLIDEScheduler",
    "GaussianDiffusion",
    "SchedulerAdapter",
    "make_betas",
    "space_timesteps",
]
