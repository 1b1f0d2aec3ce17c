"""Training a stage: text to image, to inpaint, or to take few steps."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .options import Parser, positive_int
from .train_finish import finish
from .train_metrics import add_metrics_options, make_metrics
from .train_options import (
    A_MODEL,
    MODEL_CONFIGS,
    SHAPES,
    TrainingData,
    add_data_options,
    add_lora_options,
    add_run_options,
    add_stage_options,
    add_validation_options,
    add_weighting_options,
    load_rows,
    load_tokenizer,
    lora_config,
    model_or_shapes,
    read_sizes,
    save_dtype,
    start,
    timestep_weighting,
)


if TYPE_CHECKING:  # importing these takes seconds
    import numpy as np
    import torch
    from accelerate import Accelerator

    from glide_pipelines.training import Distillation, PipelineParts, TextToImageDataset


def add_text_to_image_options(parser: Parser) -> None:
    """The options of `text-to-image`."""
    add = parser.add_argument_group("model").add_argument
    add("--pretrained_model_name_or_path", help=f"pipeline to continue from: {A_MODEL}")
    add("--model_config", help="JSON with the sizes of a new model; by default that of the shapes checkpoint")
    add(
        "--tokenizer_name",
        help="tokenizer of a new model: a folder or a Hub id; by default one is trained on the captions",
    )
    add("--text_encoder_name_or_path", help="text encoder to start from, such as train_shapes_text_encoder.py's")
    add(
        "--prediction_type",
        choices=("epsilon", "v_prediction"),
        help="what the model learns to predict: noise, as GLIDE, or v, with which small models learn faster (default: "
        "what it predicts, of a new model noise)",
    )
    add_data_options(parser)
    add_stage_options(parser)
    add_weighting_options(parser)
    add_lora_options(parser)
    add_run_options(parser)
    add = parser.add_argument_group("validation").add_argument
    add_validation_options(add)
    _add_validation_prompts(add)
    add_metrics_options(add)


def _add_validation_prompts(add: Callable[..., Any]) -> None:
    add("--validation_prompts", nargs="+", help="generate these at every checkpoint, into OUTPUT_DIR/validation")


def text_to_image(args: argparse.Namespace) -> None:
    """Train the base model or the upsampler."""
    _train(args, _text_to_image_parts)


def _text_to_image_parts(args: argparse.Namespace, data: TrainingData, accelerator: Accelerator) -> PipelineParts:
    """The stage to train, new or of a pipeline, in its pipeline."""
    import torch

    from glide_pipelines import GLIDEPipeline, GLIDETextEncoder
    from glide_pipelines.training import PipelineParts

    if args.pretrained_model_name_or_path is not None:
        path = model_or_shapes(args, "pretrained_model_name_or_path", "the pipeline to continue from")
        parts = PipelineParts.from_pretrained(GLIDEPipeline, path, args.stage)
        if parts.stage.unet.is_inpainter and args.lora_rank is None:
            accelerator.print("The model inpaints, too, and may forget how: `glide train inpaint` trains both.")
        for option in ("model_config", "tokenizer_name"):
            if getattr(args, option) is not None:
                accelerator.print(f"`{option}` is for a new model: that of `pretrained_model_name_or_path` stays.")
    else:
        parts = _new_parts(args, data, accelerator)
    if args.text_encoder_name_or_path is not None:
        text_encoder = GLIDETextEncoder.from_pretrained(args.text_encoder_name_or_path, dtype=torch.float32)
        replaced: Any = parts.stage.text_encoder
        expected, given = replaced.config, text_encoder.config
        for size in ("vocab_size", "hidden_size", "max_position_embeddings"):
            if getattr(given, size) != getattr(expected, size):
                raise ValueError(
                    f"`text_encoder_name_or_path`: {size} must be {getattr(expected, size)} for this model, "
                    f"got {getattr(given, size)}."
                )
        parts.stage.text_encoder = text_encoder
    scheduler: Any = parts.stage.scheduler
    wanted, current = args.prediction_type, scheduler.config.get("prediction_type", "epsilon")
    if wanted not in (None, current):
        if args.pretrained_model_name_or_path is not None:
            accelerator.print(f"From now on the model learns {wanted}, in place of {current}.")
        scheduler.register_to_config(prediction_type=wanted)
    return parts


def _new_parts(args: argparse.Namespace, data: TrainingData, accelerator: Accelerator) -> PipelineParts:
    from transformers import GPT2Tokenizer

    from glide_pipelines import GLIDEPipeline
    from glide_pipelines.training import PipelineParts, new_stage, prepare_tokenizer

    path = args.model_config or MODEL_CONFIGS / f"shapes_{args.stage}.json"
    sizes = read_sizes(path, "text_encoder", "unet", "scheduler")
    context = sizes["text_encoder"]["max_position_embeddings"]
    if args.model_config is None and args.dataset_name != SHAPES:
        size = args.resolution or sizes["unet"]["sample_size"]
        accelerator.print(
            f"A new model of the sizes of the shapes checkpoint: {size} x {size} pixels, {context} tokens. "
            "(--model_config takes others.)"
        )
    joined = _pipeline_folder(args) / "tokenizer"
    if args.tokenizer_name is not None:
        tokenizer = load_tokenizer(args.tokenizer_name, GPT2Tokenizer)
    elif joined.is_dir():  # that of the other stage, or of an earlier run
        accelerator.print(f"The tokenizer is that of the pipeline, {joined}. (--tokenizer_name takes another one.)")
        tokenizer = GPT2Tokenizer.from_pretrained(joined)
    else:
        tokenizer = data.new_tokenizer(accelerator, context)
    prepare_tokenizer(tokenizer, context)
    try:
        stage = new_stage(args.stage, tokenizer, sizes)
    except ValueError as error:
        raise ValueError(f"`model_config` {path}: {error}") from error
    if stage.unet.is_upsampler != (args.stage == "super_res"):
        wanted = "an upsampler has `in_channels` 6" if args.stage == "super_res" else "a base has `in_channels` 3"
        given = "a base" if args.stage == "super_res" else "an upsampler"
        raise ValueError(f"`model_config` {path} is of {given}: {wanted} in its `unet`.")
    return PipelineParts(GLIDEPipeline, tokenizer, stage)


def add_inpaint_options(parser: Parser) -> None:
    """The options of `inpaint`."""
    parser.add_argument(
        "--pretrained_model_name_or_path",
        help=f"text-to-image or inpainting pipeline to start from: {A_MODEL}; for the shapes world by default its own",
    )
    add_data_options(parser)
    add_stage_options(parser)
    parser.add_argument_group("masks").add_argument(
        "--proportion_whole_masks",
        type=float,
        default=0.1,
        help="share of examples that are repainted whole: about 0.5 for a model that is to make images from text, too "
        "(default: %(default)s)",
    )
    add_weighting_options(parser)
    add_lora_options(parser)
    add_run_options(parser)
    add_validation_options(parser.add_argument_group("validation").add_argument)


def inpaint(args: argparse.Namespace) -> None:
    """Train the base model or the upsampler to inpaint."""
    from glide_pipelines.training import random_mask

    if not 0 <= args.proportion_whole_masks <= 1:
        raise ValueError(f"`proportion_whole_masks` must lie between 0 and 1, got {args.proportion_whole_masks}.")
    _train(args, _inpaint_parts, functools.partial(random_mask, proportion_whole=args.proportion_whole_masks))


def _inpaint_parts(args: argparse.Namespace, data: TrainingData, accelerator: Accelerator) -> PipelineParts:
    """The stage to train and the other one, both able to inpaint: a text-to-image model is widened."""
    from glide_pipelines import GLIDEInpaintPipeline
    from glide_pipelines.training import PipelineParts, prepare_for_inpainting

    path = model_or_shapes(args, "pretrained_model_name_or_path", "the pipeline to start from")
    parts = PipelineParts.from_pretrained(GLIDEInpaintPipeline, path, args.stage)
    if args.lora_rank is not None and not parts.stage.unet.is_inpainter:
        raise ValueError(
            f"`lora_rank` needs a {parts.stage.name} model that inpaints, and that of {path} does not: train it to "
            "inpaint first, whole."
        )
    for stage in (parts.stage, parts.other):
        if stage is not None:
            prepare_for_inpainting(stage)
    return parts


def add_distill_options(parser: Parser) -> None:
    """The options of `distill`."""
    add = parser.add_argument_group("distillation").add_argument
    add(
        "--pretrained_model_name_or_path",
        help=f"the teacher, a text-to-image pipeline: {A_MODEL}; for the shapes world by default its own",
    )
    add("--num_inference_steps", type=positive_int, default=4, metavar="N", help="of the student (default: 4)")
    add("--timesteps", type=int, nargs="+", metavar="T", help="in place of it: the student's timesteps, descending")
    add(
        "--teacher_steps",
        type=positive_int,
        default=2,
        metavar="N",
        help="DDIM steps of the teacher for each step of the student (default: %(default)s)",
    )
    add(
        "--teacher_timesteps",
        type=int,
        nargs="+",
        metavar="T",
        help="the teacher's timesteps, --teacher_steps for each of the student's, in place of even distances",
    )
    add(
        "--backward_distillation",
        action="store_true",
        help="learn at what the student itself makes of noise, not at noised training images (arXiv 2405.05224)",
    )
    add(
        "--guidance_scale",
        type=float,
        metavar="X",
        help="guidance of the teacher, which the student learns (default: what the teacher recommends, else 3)",
    )
    add(
        "--prediction_type",
        choices=("epsilon", "v_prediction"),
        help="what the student predicts (default: what its teacher does)",
    )
    add_data_options(parser)
    add_stage_options(parser)
    add_run_options(parser)
    add = parser.add_argument_group("validation").add_argument
    add_validation_options(add)
    _add_validation_prompts(add)
    add_metrics_options(add)
    parser.set_defaults(proportion_empty_prompts=0.0)


def distill(args: argparse.Namespace) -> None:
    """Train a student of the base model or the upsampler that takes few steps."""
    _train(args, _teacher_parts, make_distillation=_make_student)


def _teacher_parts(args: argparse.Namespace, data: TrainingData, accelerator: Accelerator) -> PipelineParts:
    """The teacher, in its pipeline."""
    from glide_pipelines import GLIDEPipeline
    from glide_pipelines.training import PipelineParts

    path = model_or_shapes(args, "pretrained_model_name_or_path", "the teacher")
    return PipelineParts.from_pretrained(GLIDEPipeline, path, args.stage)


def _make_student(args: argparse.Namespace, parts: PipelineParts, accelerator: Accelerator) -> Distillation:
    """Put a student in the place of the teacher, and say what it learns."""
    from glide_pipelines.training import Distillation

    if args.resolution not in (None, parts.resolution):
        raise ValueError(f"`resolution` must be that of the teacher, {parts.resolution}, got {args.resolution}.")
    pipe: Any = parts.pipeline()
    is_base, scale = args.stage == "base", args.guidance_scale
    distillation = Distillation(
        parts.stage,
        parts.tokenizer,
        args.timesteps or args.num_inference_steps,
        args.teacher_steps,
        scale if scale is not None else pipe.default_guidance_scale if is_base else 1.0,
        args.prediction_type,
        low_res_consistency=not is_base and (args.low_res_consistency or parts.low_res_consistency),
        teacher_timesteps=args.teacher_timesteps,
        backward=args.backward_distillation,
    )
    if parts.stage.unet.is_inpainter:
        accelerator.print("The teacher inpaints; its student will make images from text alone.")
    parts.stage = distillation.new_student()
    if is_base:
        parts.settings["default_guidance_scale"] = 1.0
    return distillation


def _pipeline_folder(args: argparse.Namespace) -> Path:
    if args.lora_rank is not None:
        return Path(args.output_dir) / "lora"
    return Path(args.pipeline_dir or Path(args.output_dir) / "pipeline")


def _train(
    args: argparse.Namespace,
    make_parts: Callable[[argparse.Namespace, TrainingData, Accelerator], PipelineParts],
    make_mask: Callable[[np.random.Generator, int, int], torch.Tensor] | None = None,
    make_distillation: Callable[[argparse.Namespace, PipelineParts, Accelerator], Distillation] | None = None,
) -> None:
    """Train one stage, from the first step or the last checkpoint to the saved pipeline."""
    from glide_pipelines.sampling import scale_factor
    from glide_pipelines.training import held_out_loss, save_lora, save_validation_images, train_stage

    lora = lora_config(args)
    folder, prompts = _pipeline_folder(args), args.validation_prompts or []
    accelerator, data, config = start(args)
    with accelerator.main_process_first():
        parts = make_parts(args, data, accelerator)
        parts.settings = {"prompt_domain": data.prompt_domain}
        if args.low_res_consistency:
            parts.settings["low_res_consistency"] = True
        distillation = None if make_distillation is None else make_distillation(args, parts, accelerator)
        if lora is not None and parts.recommends_steps:
            accelerator.print("The few steps that the model recommends may not do for other images: compare with 100.")
        elif distillation is None and parts.forget_recommended_steps():
            accelerator.print("The trained model recommends neither few steps nor a guidance any more.")
        parts.join(folder)
        if prompts and args.stage == "super_res" and parts.other is None:
            raise ValueError("`validation_prompts` needs a base model beside the upsampler.")
        parts.stage.unet.use_fastest_layout()
        earlier = parts.resolution
        parts.set_resolution(earlier if args.resolution is None else args.resolution)
        if args.stage == "base" and parts.other_resolution is not None and parts.resolution != earlier:
            times = scale_factor(parts.other_resolution, parts.resolution)
            accelerator.print(
                f"The upsampler beside this base will have to enlarge {times} times: train it next, --stage super_res."
            )
        dataset = make_dataset(args, data, parts, make_mask, distillation)
        held_out = make_held_out(args, dataset, parts)
        data.report_cut_captions(accelerator, parts.tokenizer)

    measure = make_metrics(args, parts, accelerator.device)
    drawn = 0

    def validate(step: int) -> dict[str, Any]:
        nonlocal drawn
        found: dict[str, Any] = {}
        if accelerator.is_main_process:
            if prompts and step != drawn:  # of several averages the first one, which comes first
                drawn = step
                path = Path(args.output_dir) / "validation" / f"step-{step:06}.png"
                save_validation_images(parts, prompts, args.seed, path)
            if held_out is not None:
                loss = None if distillation is None else distillation.loss(accelerator)
                found = held_out_loss(parts.stage, *held_out, args.train_batch_size, loss)
        # Every process does its share.
        if measure is not None and (step % args.validation_metrics_steps == 0 or step == args.max_train_steps):
            found |= measure(step)
        return found

    done = train_stage(
        accelerator,
        config,
        parts.stage,
        dataset,
        freeze_text_encoder=args.freeze_text_encoder,
        gradient_checkpointing=args.gradient_checkpointing,
        on_checkpoint=validate if prompts or held_out is not None or measure is not None else None,
        lora=lora,
        compile=args.compile,
        distillation=distillation,
    )

    def save() -> Path:
        if lora is None:
            parts.save(folder, save_dtype(args))
        else:
            save_lora(parts.stage, folder, save_dtype(args))
        return folder

    finish(args, accelerator, done, save, data, parts.pipeline_class.__name__)
    if done == args.max_train_steps and args.stage == "super_res" and parts.other is None and lora is None:
        accelerator.print(f"It generates once a base is beside it: --stage base --pipeline_dir {folder}.")


def make_dataset(
    args: argparse.Namespace,
    data: TrainingData,
    parts: PipelineParts,
    make_mask: Callable[[np.random.Generator, int, int], torch.Tensor] | None = None,
    distillation: Distillation | None = None,
) -> TextToImageDataset:
    """The examples for a stage."""
    from glide_pipelines.training import LowResolution, TextToImageDataset, TimestepWeighting

    low_resolution = None
    scheduler: Any = parts.stage.scheduler
    if args.stage == "super_res":
        if args.low_resolution is not None and parts.other_resolution not in (None, args.low_resolution):
            raise ValueError(
                f"`low_resolution` must be that of the base, {parts.other_resolution}, got {args.low_resolution}."
            )
        low_resolution = LowResolution(
            parts.resolution,
            args.low_resolution or parts.other_resolution or parts.resolution // 4,
            args.crop_size,
            args.low_res_blur,
            args.low_res_noise,
        )
        multiple = parts.stage.unet.size_multiple
        if args.crop_size is not None and args.crop_size % multiple:
            raise ValueError(f"`crop_size` must be a multiple of {multiple} for this model, got {args.crop_size}.")
    if distillation is None:
        weighting = timestep_weighting(args, scheduler.config.num_train_timesteps)
    else:
        weighting = TimestepWeighting(distillation.num_steps)
    return TextToImageDataset(
        data.source(parts.resolution),
        parts.tokenizer,
        weighting,
        args.seed,
        args.proportion_empty_prompts,
        low_resolution,
        args.noise_offset,
        make_mask,
    )


def make_held_out(
    args: argparse.Namespace, dataset: TextToImageDataset, parts: PipelineParts
) -> tuple[TextToImageDataset, int] | None:
    """The examples of `--validation_data_dir`, which are always the same, and how many of them are used."""
    if args.validation_data_dir is None:
        return None
    from glide_pipelines.datasets import HELD_OUT_SPLITS
    from glide_pipelines.training import DatasetSource, TextToImageDataset, TimestepWeighting

    rows = load_rows(args, None, "validation_data_dir", HELD_OUT_SPLITS)
    source = DatasetSource(rows, parts.resolution, 0, args.image_column, args.caption_column, center_crop=True)
    examples = TextToImageDataset(
        source,
        parts.tokenizer,
        TimestepWeighting(dataset.weighting.num_train_timesteps),
        seed=0,
        proportion_empty_prompts=0.0,
        low_resolution=dataset.low_resolution,
        make_mask=dataset.make_mask,
    )
    return examples, min(args.max_validation_samples, len(rows))
