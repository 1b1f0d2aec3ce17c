"""Train GLIDE's models, in one process or, with `accelerate launch -m glide_cli train ...`, in several."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .errors import exit_code
from .options import Parser
from .train_options import (
    SHAPES,
    TrainingData,
    add_data_options,
    add_run_options,
    add_stage_options,
    add_timestep_options,
    check_arguments,
    make_accelerator,
    read_sizes,
    save_dtype,
    timestep_weighting,
    training_config,
)


if TYPE_CHECKING:  # importing these takes seconds
    import numpy as np
    import torch
    from accelerate import Accelerator

    from glide_pipelines.training import PipelineParts, TextToImageDataset

ERRORS = (ValueError, ImportError, OSError)
MODEL_CONFIGS = Path(__file__).parent / "model_configs"


def add_arguments(parser: Parser) -> None:
    """A command for each training, with its own options."""
    commands = parser.add_subparsers(dest="training", required=True, metavar="TRAINING")
    for name, training in TRAININGS.items():
        training.add_options(commands.add_parser(name, help=training.help, description=f"{training.help}."))


def run(args: argparse.Namespace) -> None:
    """Train as the options say.

    Raises:
        ValueError, ImportError, OSError: if an option, the data or a model is at fault.
    """
    TRAININGS[args.training].run(args)


def main(training: str, argv: Sequence[str] | None = None, program: str | None = None) -> int:
    """Run one training, for the scripts of examples/.

    Args:
        training (`str`): One of `TRAININGS`.
        argv (`Sequence[str]`, *optional*): The arguments; those of the process by default.
        program (`str`, *optional*): The name for help and errors; by default that of the process's script.

    Returns:
        `int`: the exit code: 0, 2 after a mistake of the user's, 130 after Ctrl-C.
    """
    parser = Parser(prog=program, description=f"{TRAININGS[training].help}.")
    TRAININGS[training].add_options(parser)

    def run() -> None:
        args = parser.parse_args(argv)
        check_arguments(args)
        TRAININGS[training].run(args)

    return exit_code(parser.prog, run, ERRORS)


# -- text to image -----------------------------------------------------------------------------------------------------


def add_text_to_image_options(parser: Parser) -> None:
    """The options of `text-to-image`."""
    add = parser.add_argument_group("model").add_argument
    add("--pretrained_model_name_or_path", help="pipeline to continue from: a folder or a Hub id")
    add("--model_config", help="JSON with the sizes of a new model; by default that of the shapes checkpoint")
    add(
        "--tokenizer_name",
        help="tokenizer of a new model: a folder or a Hub id; by default one is trained on the captions",
    )
    add("--text_encoder_name_or_path", help="text encoder to start from, such as train_shapes_text_encoder.py's")
    add_data_options(parser)
    add_stage_options(parser)
    add_run_options(parser)
    add = parser.add_argument_group("validation").add_argument
    add("--validation_prompts", nargs="+", help="generate these at every checkpoint, into OUTPUT_DIR/validation")


def text_to_image(args: argparse.Namespace) -> None:
    """Train the base model or the upsampler."""
    _train_stage(args, _text_to_image_parts)


def _text_to_image_parts(args: argparse.Namespace, data: TrainingData, accelerator: Accelerator) -> PipelineParts:
    """The stage to train, new or of a pipeline, in its pipeline."""
    import torch

    from glide_pipelines import GLIDEPipeline, GLIDETextEncoder
    from glide_pipelines.training import PipelineParts

    if args.pretrained_model_name_or_path is not None:
        parts = PipelineParts.from_pretrained(GLIDEPipeline, args.pretrained_model_name_or_path, args.stage)
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
        tokenizer = GPT2Tokenizer.from_pretrained(args.tokenizer_name)
    elif joined.is_dir():  # that of the other stage, or of an earlier run
        accelerator.print(f"The tokenizer is that of the pipeline, {joined}. (--tokenizer_name takes another one.)")
        tokenizer = GPT2Tokenizer.from_pretrained(joined)
    else:
        tokenizer = data.new_tokenizer(accelerator, context)
    prepare_tokenizer(tokenizer, context)
    try:
        return PipelineParts(GLIDEPipeline, tokenizer, new_stage(args.stage, tokenizer, sizes))
    except TypeError as error:  # a size of another name
        raise ValueError(f"`model_config` {path}: {error}") from error


# -- inpainting --------------------------------------------------------------------------------------------------------


def add_inpaint_options(parser: Parser) -> None:
    """The options of `inpaint`."""
    parser.add_argument(
        "--pretrained_model_name_or_path",
        help="text-to-image or inpainting pipeline to start from: a folder or a Hub id; for the shapes world by "
        "default the one that ships",
    )
    add_data_options(parser)
    add_stage_options(parser)
    add_run_options(parser)


def inpaint(args: argparse.Namespace) -> None:
    """Train the base model or the upsampler to inpaint."""
    from glide_pipelines.training import random_mask

    _train_stage(args, _inpaint_parts, random_mask)


def _inpaint_parts(args: argparse.Namespace, data: TrainingData, accelerator: Accelerator) -> PipelineParts:
    """The stage to train and the other one, both able to inpaint: a text-to-image model is widened."""
    from glide_pipelines import GLIDEInpaintPipeline
    from glide_pipelines.training import PipelineParts, prepare_for_inpainting

    path = _model_or_shapes(args, "pretrained_model_name_or_path", "the pipeline to start from")
    parts = PipelineParts.from_pretrained(GLIDEInpaintPipeline, path, args.stage)
    for stage in (parts.stage, parts.other):
        if stage is not None:
            prepare_for_inpainting(stage)
    return parts


def _model_or_shapes(args: argparse.Namespace, option: str, what: str) -> str:
    """The model that an option names; for the shapes world by default the checkpoint that ships."""
    from glide_pipelines import shapes_checkpoint

    path = getattr(args, option)
    if path is None and args.dataset_name != SHAPES:
        raise ValueError(f"`{option}` must name {what}: the checkpoint that ships knows the shapes world only.")
    return path or str(shapes_checkpoint())


# -- both stages -------------------------------------------------------------------------------------------------------


def _pipeline_folder(args: argparse.Namespace) -> Path:
    return Path(args.pipeline_dir or Path(args.output_dir) / "pipeline")


def _train_stage(
    args: argparse.Namespace,
    make_parts: Callable[[argparse.Namespace, TrainingData, Accelerator], PipelineParts],
    make_mask: Callable[[np.random.Generator, int, int], torch.Tensor] | None = None,
) -> None:
    """Train one stage, from the first step or the last checkpoint to the saved pipeline."""
    from accelerate.utils import set_seed

    from glide_pipelines.sampling import scale_factor
    from glide_pipelines.training import save_validation_images, train_stage

    config, accelerator = training_config(args), make_accelerator(args)
    folder, prompts = _pipeline_folder(args), getattr(args, "validation_prompts", None) or []
    set_seed(args.seed)
    with accelerator.main_process_first():
        data = TrainingData.load(args)
        parts = make_parts(args, data, accelerator)
        parts.settings = {"prompt_domain": data.prompt_domain}
        if args.low_res_consistency:
            parts.settings["low_res_consistency"] = True
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
        dataset = make_dataset(args, data, parts, make_mask)

    def validate(step: int) -> None:
        save_validation_images(parts, prompts, args.seed, Path(args.output_dir) / "validation" / f"step-{step:06}.png")

    done = train_stage(
        accelerator,
        config,
        parts.stage,
        dataset,
        freeze_text_encoder=args.freeze_text_encoder,
        gradient_checkpointing=args.gradient_checkpointing,
        on_checkpoint=validate if prompts else None,
    )

    def save() -> Path:
        parts.save(folder, save_dtype(args))
        return folder

    _finish(args, accelerator, done, save, data, parts.pipeline_class.__name__)


def make_dataset(
    args: argparse.Namespace,
    data: TrainingData,
    parts: PipelineParts,
    make_mask: Callable[[np.random.Generator, int, int], torch.Tensor] | None = None,
) -> TextToImageDataset:
    """The examples for a stage."""
    from glide_pipelines.training import LowResolution, TextToImageDataset

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
    return TextToImageDataset(
        data.source(parts.resolution),
        parts.tokenizer,
        timestep_weighting(args, scheduler.config.num_train_timesteps),
        args.seed,
        args.proportion_empty_prompts,
        low_resolution,
        args.noise_offset,
        make_mask,
    )


# -- a noised CLIP -----------------------------------------------------------------------------------------------------


def add_noised_clip_options(parser: Parser) -> None:
    """The options of `noised-clip`."""
    add = parser.add_argument_group("model").add_argument
    add("--pretrained_model_name_or_path", help="noised CLIP to continue from: a folder or a Hub id")
    add(
        "--model_config",
        default=str(MODEL_CONFIGS / "shapes_noised_clip.json"),
        help="JSON with the sizes of a new model (default: %(default)s)",
    )
    add(
        "--guided_model",
        help="pipeline that is to be guided, whose noise schedule and (for a new model) tokenizer are taken: a folder "
        "or a Hub id; for the shapes world by default the one that ships",
    )
    add("--tokenizer_name", help="tokenizer of a new model: a folder or a Hub id; by default the guided model's")
    add("--model_dir", help="where the trained model goes; by default OUTPUT_DIR/model")
    add_timestep_options(add)
    full = "of shapes: share of captions that state every attribute except positions (default: %(default)s)"
    add("--proportion_full_captions", type=float, default=0.0, help=full)
    add_data_options(parser)
    add_run_options(parser)


def noised_clip(args: argparse.Namespace) -> None:
    """Train a CLIP on noised images, whose gradient can guide a diffusion model."""
    from accelerate.utils import set_seed
    from transformers import AutoTokenizer

    from glide_pipelines import GLIDEDDPMScheduler, NoisedCLIPModel
    from glide_pipelines.files import updated_folder
    from glide_pipelines.training import (
        TextToImageDataset,
        new_noised_clip,
        noised_clip_loss,
        prepare_tokenizer,
        train,
    )

    config, accelerator = training_config(args), make_accelerator(args)
    guided_model = _model_or_shapes(args, "guided_model", "the pipeline that is to be guided")
    set_seed(args.seed)
    with accelerator.main_process_first():
        data = TrainingData.load(args)
        if args.pretrained_model_name_or_path is not None:
            model = NoisedCLIPModel.from_pretrained(args.pretrained_model_name_or_path)
            tokenizer = AutoTokenizer.from_pretrained(args.pretrained_model_name_or_path)
        else:
            sizes = read_sizes(args.model_config, "text_config", "vision_config")
            name, subfolder = (guided_model, "tokenizer") if args.tokenizer_name is None else (args.tokenizer_name, "")
            tokenizer = AutoTokenizer.from_pretrained(name, subfolder=subfolder)
            model = new_noised_clip(tokenizer, sizes)
        text: Any = model.config.text_config
        vision: Any = model.config.vision_config
        prepare_tokenizer(tokenizer, text.max_position_embeddings)
        scheduler = GLIDEDDPMScheduler.from_pretrained(guided_model, subfolder="scheduler")
        num_timesteps = scheduler.config.num_train_timesteps
        if num_timesteps != vision.num_train_timesteps:
            raise ValueError(
                f"`guided_model` has {num_timesteps} timesteps, the noised CLIP {vision.num_train_timesteps}."
            )
        if args.resolution not in (None, vision.image_size):
            raise ValueError(f"`resolution` must be that of the model, {vision.image_size}, got {args.resolution}.")
        # Every caption is kept: an empty one tells no two images apart.
        weighting = timestep_weighting(args, num_timesteps)
        source = data.source(vision.image_size)
        dataset = TextToImageDataset(source, tokenizer, weighting, args.seed, proportion_empty_prompts=0.0)
    if args.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    done = train(accelerator, config, model, dataset, noised_clip_loss(accelerator, scheduler), num_timesteps)

    def save() -> Path:
        folder = Path(args.model_dir or Path(args.output_dir) / "model")
        with updated_folder(folder) as temporary:
            model.to(save_dtype(args)).save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
        return folder

    _finish(args, accelerator, done, save, data, "NoisedCLIPModel")


def _finish(
    args: argparse.Namespace,
    accelerator: Accelerator,
    done: int,
    save: Callable[[], Path],
    data: TrainingData,
    loaded_as: str,
) -> None:
    """End a run: save and upload what was trained, or say how to continue.

    Args:
        args (`argparse.Namespace`): The options.
        accelerator (`Accelerator`): Only the main process writes.
        done (`int`): Steps done.
        save (`Callable[[], Path]`): Saves the trained model and returns its folder.
        data ([`TrainingData`]): What it was trained on.
        loaded_as (`str`): The class of glide_pipelines that opens the folder.
    """
    if accelerator.is_main_process:
        if done < args.max_train_steps:
            print(f"Stopped at step {done} of {args.max_train_steps}; continue with --resume_from_checkpoint latest.")
        else:
            folder = save()
            print(f"The trained model is in {folder}.")
            if args.push_to_hub:
                from .hub import push_to_hub, training_card

                tag = "zero-shot-image-classification" if loaded_as == "NoisedCLIPModel" else "text-to-image"
                card = training_card(args.hub_model_id, loaded_as, data.name, _facts(args, accelerator), tag)
                print(f"Uploaded: {push_to_hub(folder, args.hub_model_id, card)}")
    accelerator.end_training()


def _facts(args: argparse.Namespace, accelerator: Accelerator) -> dict[str, Any]:
    """The settings that a model card lists."""
    batch = args.train_batch_size * args.gradient_accumulation_steps * accelerator.num_processes
    facts = {
        "stage": getattr(args, "stage", None),
        "started from": args.pretrained_model_name_or_path,
        "steps": args.max_train_steps,
        "images per step": batch,
        "learning rate": f"{args.learning_rate}, {args.lr_scheduler}",
        "precision": accelerator.mixed_precision,
        "moving average of the weights": args.ema_decay,
        "seed": args.seed,
    }
    return {name: value for name, value in facts.items() if value is not None}


class Training(NamedTuple):
    """One of the trainings: its line in the help, its options, and what they start."""

    help: str
    add_options: Callable[[Parser], None]
    run: Callable[[argparse.Namespace], None]


TRAININGS = {
    "text-to-image": Training(
        "Train GLIDE's base model or its upsampler, from scratch or from an existing pipeline",
        add_text_to_image_options,
        text_to_image,
    ),
    "inpaint": Training(
        "Fine-tune a text-to-image model, or continue with an inpainting one, to paint what a mask leaves out",
        add_inpaint_options,
        inpaint,
    ),
    "noised-clip": Training(
        "Train a CLIP on noised images, whose gradient can guide a diffusion model",
        add_noised_clip_options,
        noised_clip,
    ),
}
