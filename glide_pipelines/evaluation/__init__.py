"""Measures generated images as the paper does: FID, Inception score, precision and recall, CLIP score.

It measures any pipeline of diffusers that generates from captions, against any captioned images. A world that can tell
whether an image is right brings a judge: see [`JudgedImages`].
"""

from .clips import load_clip, load_noised_clip
from .features import Features, load_feature_network
from .generation import (
    GeneratedImages,
    SampledImages,
    check_call,
    generate_images,
    generators,
    image_size,
    join_processes,
)
from .images import CaptionedImages, DatasetImages, JudgedImages
from .metrics import frechet_distance, inception_score, precision_recall
from .pipeline_metrics import PipelineMetrics
from .plots import plot_guidance, plot_steps
from .points import BOTH, CLASSIFIER_FREE, CLIP, Guidance, Point, Sampling
from .report import steps_table, table, write_report
from .settings import package_versions, sampling_settings
from .sweep import Measured, class_numbers, figures, measure, run_sweep


__all__ = [
    "BOTH",
    "CLASSIFIER_FREE",
    "CLIP",
    "CaptionedImages",
    "DatasetImages",
    "Features",
    "GeneratedImages",
    "Guidance",
    "JudgedImages",
    "Measured",
    "PipelineMetrics",
    "Point",
    "SampledImages",
    "Sampling",
    "check_call",
    "class_numbers",
    "figures",
    "frechet_distance",
    "generate_images",
    "generators",
    "image_size",
    "inception_score",
    "join_processes",
    "load_clip",
    "load_feature_network",
    "load_noised_clip",
    "measure",
    "package_versions",
    "plot_guidance",
    "plot_steps",
    "precision_recall",
    "run_sweep",
    "sampling_settings",
    "steps_table",
    "table",
    "write_report",
]
