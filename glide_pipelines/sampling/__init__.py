"""The sampling algorithm: stages, the denoiser, runs of a scheduler, and the loop over them."""

from .stage import STAGE_PREFIXES, Stage


__all__ = ["STAGE_PREFIXES", "Stage"]
