"""FID and CLIP score of a pipeline while one of its stages is trained."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .errors import UserError
from .options import positive_int


if TYPE_CHECKING:  # importing these takes seconds
    import torch

    from glide_pipelines.training import PipelineParts


def add_metrics_options(add: Callable[..., Any]) -> None:
    """How often images of the held-out captions are generated and measured, and by what."""
    add(
        "--validation_metrics_steps",
        type=positive_int,
        metavar="N",
        help="steps between two measurements of images that are generated from the captions of --validation_data_dir",
    )
    add(
        "--features",
        metavar="NAME",
        help="for the FID, precision and recall: that of a world that ships, inception, or a model of transformers",
    )
    add("--clip", metavar="NAME", help="CLIP of the CLIP score: that of a world that ships, or a CLIP (default: none)")
    add(
        "--validation_inference_steps",
        type=positive_int,
        metavar="N",
        help="steps of these images (default: the pipeline's)",
    )


def check_metrics(args: argparse.Namespace) -> None:
    """Refuse options of [`add_metrics_options`] that do not fit together."""
    if args.validation_metrics_steps is None:
        for name in ("features", "clip", "validation_inference_steps"):
            if getattr(args, name) is not None:
                raise UserError(f"`{name}` needs `validation_metrics_steps`.")
        return
    for name, what in (("validation_data_dir", "the real images"), ("features", "the network of the FID")):
        if getattr(args, name) is None:
            raise UserError(f"`validation_metrics_steps` needs `{name}`: {what}.")


def make_metrics(
    args: argparse.Namespace, parts: PipelineParts, device: torch.device
) -> Callable[[int], dict[str, Any]] | None:
    """What measures the pipeline at a step, for the log; None if it is not asked for. Every process must call both."""
    if args.validation_metrics_steps is None:
        return None
    from glide_pipelines.datasets import HELD_OUT_SPLITS
    from glide_pipelines.evaluation import DatasetImages, PipelineMetrics, check_call, load_clip
    from glide_pipelines.training import sampling_pipeline

    from .run_evaluate import clip_source, load_network

    is_base = args.stage == "base"
    if not is_base and parts.other is None:
        raise ValueError("`validation_metrics_steps` needs a base model beside the upsampler.")
    images = DatasetImages(
        args.max_validation_samples,
        data_dir=args.validation_data_dir,
        split=HELD_OUT_SPLITS,
        image_column=args.image_column,
        caption_column=args.caption_column,
    )
    network = load_network(args.features).to(device)
    clip = None if args.clip is None else load_clip(clip_source(args.clip)).to(device)
    steps = args.validation_inference_steps
    call = {} if steps is None else {"num_inference_steps": steps}
    # Of the base its own images, whatever enlarges them.
    measured = replace(parts, other=None) if is_base else parts
    with sampling_pipeline(measured) as pipe:
        check_call(pipe, images.captions[0], **call)
    try:
        metrics = PipelineMetrics(images, parts.resolution, network, clip, args.seed, args.train_batch_size, **call)
    except ValueError as error:
        raise ValueError(f"`validation_data_dir` or `max_validation_samples`, for the metrics: {error}") from error

    def measure(step: int) -> dict[str, Any]:
        with sampling_pipeline(measured) as pipe:
            return {f"validation_{name}": value for name, value in metrics(pipe).items()}

    return measure
