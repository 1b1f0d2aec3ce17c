"""The sampling algorithm: stages, the denoiser, runs of a scheduler, and the loop over them."""

from .clip_guidance import CLIPGuidance, CLIPPrompt, clip_gradient, encode_clip_prompt
from .denoiser import CondFn, Constraint, Denoiser, Prediction, classifier_free_guidance
from .finite import FiniteCheck
from .graphs import CUDAGraphs, GraphedUNet
from .known_pixels import KnownPixels, keep_known, keep_low_res
from .loop import Step, denoise, num_steps
from .run import SchedulerRun
from .stage import STAGE_PREFIXES, Stage, height_and_width, scale_factor
from .tiles import TiledUNet


__all__ = [
    "STAGE_PREFIXES",
    "CLIPGuidance",
    "CLIPPrompt",
    "CUDAGraphs",
    "CondFn",
    "Constraint",
    "Denoiser",
    "FiniteCheck",
    "GraphedUNet",
    "KnownPixels",
    "Prediction",
    "SchedulerRun",
    "Stage",
    "Step",
    "TiledUNet",
    "classifier_free_guidance",
    "clip_gradient",
    "denoise",
    "encode_clip_prompt",
    "height_and_width",
    "keep_known",
    "keep_low_res",
    "num_steps",
    "scale_factor",
]
