"""Noise schedules and steps: no networks."""

from .gaussian_diffusion import GaussianDiffusion, make_betas
from .respacing import space_timesteps
from .scheduling_glide import PREDICTION_TYPES, GLIDEScheduler, noise_of_prediction, x_start_limit
from .scheduling_glide_ddim import GLIDEDDIMScheduler
from .scheduling_glide_ddpm import GLIDEDDPMScheduler


__all__ = [
    "PREDICTION_TYPES",
    "GLIDEDDIMScheduler",
    "GLIDEDDPMScheduler",
    "GLIDEScheduler",
    "GaussianDiffusion",
    "make_betas",
    "noise_of_prediction",
    "space_timesteps",
    "x_start_limit",
]
