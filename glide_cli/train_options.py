"""The options that the trainings share, named as in diffusers' own scripts, and the values that they stand for."""

from __future__ import annotations

import argparse
import ast
import json
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import UserError
from .options import DTYPES, Parser, positive_int
from .train_metrics import check_metrics


if TYPE_CHECKING:  # importing these takes seconds
    import datasets
    import torch
    from accelerate import Accelerator
    from peft import LoraConfig
    from transformers import PreTrainedTokenizerBase

    from glide_pipelines.datasets import DatasetExamples
    from glide_pipelines.training import TarShards, TimestepWeighting, TrainingConfig
    from glide_pipelines.training.sources import Source


SAVE_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", **{name: name for name in DTYPES}}
SHAPES = "shapes"  # the name of the dataset that is made as it is needed
A_MODEL = "a folder, a Hub id, or the name of one that ships (shapes, emoji)"
# Options that only some trainings have, and their values in the others.
_OF_SOME = dict.fromkeys(
    (
        *("stage", "pipeline_dir", "text_encoder_name_or_path", "snr_gamma", "snr_weight_range"),
        *("lora_rank", "lora_alpha", "lora_targets", "validation_prompts"),
        *("validation_metrics_steps", "features", "clip", "validation_inference_steps"),
    )
) | {"low_res_consistency": False, "use_dora": False}
MODEL_CONFIGS = Path(__file__).parent / "model_configs"


def add_data_options(parser: Parser) -> None:
    """Which images and captions, and how the images are cropped."""
    parser.set_defaults(**_OF_SOME)
    add = parser.add_argument_group("data: --dataset_name, --train_data_dir or --train_shards").add_argument
    add("--dataset_name", help='a dataset on the Hub, or "shapes", the world of coloured shapes, without a download')
    add("--train_data_dir", help="folder of images with a metadata.jsonl, or another layout that prepare-data reads")
    add(
        "--train_shards",
        nargs="+",
        metavar="URL",
        help='tar shards in webdataset\'s layout, such as "data/{000..127}.tar": files, or URLs that fsspec opens',
    )
    add("--shuffle_buffer", type=positive_int, metavar="N", help="of shards: shuffle within so many (default: 65536)")
    add("--image_column", default="image", help="column of the images (default: %(default)s)")
    add("--caption_column", default="text", help="column of the captions (default: %(default)s)")
    add("--resolution", type=int, help="width and height of the images, which become the model's; by default its own")
    add("--max_train_samples", type=positive_int, metavar="N", help="train on so many of the images, chosen at random")
    add("--center_crop", action="store_true", help="crop the centre; otherwise at random")
    add("--random_flip", action="store_true", help="mirror half of the images (wrong where captions say left)")
    add(
        "--num_objects_shares",
        type=float,
        nargs=3,
        metavar="SHARE",
        help="of shapes: shares of scenes with one, two and three objects (default: 0.4 0.4 0.2)",
    )
    add(
        "--proportion_full_captions",
        type=float,
        default=0.0,
        help="of shapes: share of captions that state every attribute except positions (default: %(default)s)",
    )


def add_stage_options(parser: Parser) -> None:
    """Which of the two diffusion models is trained, on what noise, and where it goes."""
    add = parser.add_argument_group("stage").add_argument
    add("--stage", choices=("base", "super_res"), default="base", help="which of the two models (default: %(default)s)")
    add("--pipeline_dir", help="the pipeline that the trained stage becomes part of; by default OUTPUT_DIR/pipeline")
    add("--crop_size", type=int, help="super_res: train on crops of this size")
    add("--low_resolution", type=int, help="super_res: size of the small image; by default the base's, or a quarter")
    add(
        "--low_res_blur",
        type=float,
        default=0.0,
        help="super_res: largest blur of the small image (default: %(default)s)",
    )
    add(
        "--low_res_noise",
        type=float,
        default=0.0,
        help="super_res: largest standard deviation of noise in the small image (default: %(default)s)",
    )
    add("--low_res_consistency", action="store_true", help="super_res: sampling keeps the colours of the small image")
    add("--freeze_text_encoder", action="store_true", help="train the UNet only")
    add("--compile", action="store_true", help="torch.compile the UNet's blocks, in the first step")
    add(
        "--proportion_empty_prompts",
        type=float,
        default=0.2,
        help="share of captions that are replaced by the empty one (default: %(default)s)",
    )
    add(
        "--noise_offset",
        type=float,
        default=0.0,
        help="standard deviation of a constant on each channel's noise (default: %(default)s)",
    )


def add_weighting_options(parser: Parser) -> None:
    """Which timesteps are trained on more often than others, and how much each counts."""
    add = parser.add_argument_group("timesteps").add_argument
    add("--snr_gamma", type=float, help="weight by min(SNR, GAMMA) / SNR, as Min-SNR does; 5 is its choice")
    add("--snr_weight_range", type=float, nargs=2, metavar=("LOW", "HIGH"), help="weight by clamp(1/SNR, LOW, HIGH)")
    add_timestep_options(add)


def add_validation_options(add: Callable[..., Any]) -> None:
    """The loss on images that are held out."""
    add("--validation_data_dir", help="folder of images that are held out: their loss goes into the log, by checkpoint")
    add(
        "--max_validation_samples",
        type=positive_int,
        default=256,
        metavar="N",
        help="use so many of them (default: %(default)s)",
    )


def add_lora_options(parser: Parser) -> None:
    """Adapters in place of all weights."""
    add = parser.add_argument_group("LoRA: trains adapters of a pipeline, into OUTPUT_DIR/lora").add_argument
    add("--lora_rank", type=positive_int, metavar="R", help="rank of the adapters; without it all weights are trained")
    add("--lora_alpha", type=positive_int, metavar="A", help="the adapters count A / R (default: R)")
    add(
        "--lora_targets",
        nargs="+",
        metavar="NAME",
        help="layers that are adapted, by name or its end (default: the projections of the attention)",
    )
    add("--use_dora", action="store_true", help="DoRA: learn the length of the weights apart from their direction")


def add_timestep_options(add: Callable[..., Any]) -> None:
    """Which timesteps are trained on more often than others, as in diffusers' SDXL script."""
    add(
        "--timestep_bias_strategy",
        choices=("none", "earlier", "later"),
        default="none",
        help="which timesteps are sampled more often: the later, noisy ones or the earlier, clean ones "
        "(default: %(default)s)",
    )
    add("--timestep_bias_multiplier", type=float, default=1.0, help="how many times more often (default: %(default)s)")
    add("--timestep_bias_portion", type=float, default=0.25, help="their share of all timesteps (default: %(default)s)")
    add("--noisy_share", type=float, help=argparse.SUPPRESS)  # deprecated


def add_run_options(parser: Parser) -> None:
    """How a run goes, what it logs and what it keeps. The defaults are those of [`TrainingConfig`]."""
    add = parser.add_argument_group("run").add_argument
    add("--output_dir", required=True, help="folder of the run: log and checkpoints")
    add("--save_dtype", choices=SAVE_DTYPES, default="fp32", help="of the trained model (default: %(default)s)")
    add("--push_to_hub", action="store_true", help="upload the trained model")
    add("--hub_model_id", help="repository to upload to, such as name/model")
    add("--seed", type=int, default=0, help="default: %(default)s")
    add("--max_train_steps", type=int, help="steps in all, those before a resumption included")
    add("--num_train_epochs", type=positive_int, metavar="N", help="in place of it: how often each image is used")
    add("--train_batch_size", type=int, default=16, help="per process (default: %(default)s)")
    add("--gradient_accumulation_steps", type=int, default=1, help="batches per step (default: %(default)s)")
    add("--gradient_checkpointing", action="store_true", help="recompute in the backward pass, to save memory")
    add("--learning_rate", type=float, default=1e-4, help="default: %(default)s")
    add("--lr_scheduler", default="constant", help="constant, linear or cosine decay (default: %(default)s)")
    add("--lr_warmup_steps", type=int, default=0, help="default: %(default)s")
    add("--lr_decay_steps", type=int, help="length of the decay at the end; by default all after the warm-up")
    add(
        "--optimizer",
        default="adamw",
        help="one of torch.optim's, adamw8bit or adamwschedulefree (default: %(default)s)",
    )
    add(
        "--optimizer_args",
        type=_setting,
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="further settings of the optimizer, such as momentum=0.9",
    )
    add("--adam_beta1", type=float, default=0.9, help="default: %(default)s")
    add("--adam_beta2", type=float, default=0.999, help="default: %(default)s")
    add("--adam_weight_decay", type=float, default=0.01, help="default: %(default)s")
    add("--adam_epsilon", type=float, default=1e-8, help="default: %(default)s")
    add("--max_grad_norm", type=float, default=1.0, help="clip the gradient to it (default: %(default)s)")
    add(
        "--ema_decay",
        type=float,
        nargs="+",
        default=[0.9999],
        metavar="D",
        help="of the moving average that is saved; 0 keeps none; of several the first is saved (default: 0.9999)",
    )
    add(
        "--post_hoc_ema_steps",
        type=int,
        metavar="N",
        help="steps between snapshots of averages, so that the width of the average can be chosen afterwards",
    )
    add(
        "--ema_sigma_rel",
        type=float,
        metavar="S",
        help="save the average of this width (such as 0.1 of the run) in place of the moving one",
    )
    add("--mixed_precision", choices=("no", "fp16", "bf16"), help="by default what accelerate is configured for")
    add("--checkpointing_steps", type=int, help="steps between two checkpoints")
    add("--checkpointing_minutes", type=float, help="minutes between two checkpoints")
    add("--checkpoints_total_limit", type=int, help="how many checkpoints to keep")
    add("--resume_from_checkpoint", help='"latest", or a checkpoint')
    add("--report_to", help="tensorboard, wandb or another of accelerate's trackers, beside OUTPUT_DIR/log.jsonl")
    add("--logging_steps", type=int, default=50, help="steps that a line of the log covers (default: %(default)s)")
    add("--skip_bad_images", type=int, default=0, help="go on past up to so many unreadable images (default: none)")
    add("--dataloader_num_workers", type=int, default=0, help="processes that load images (default: %(default)s)")


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse options that contradict each other, before anything is loaded."""
    given = [name for name in ("dataset_name", "train_data_dir", "train_shards") if getattr(args, name) is not None]
    if len(given) > 1:
        raise UserError(f"Pass only one of {' and '.join(f'`{name}`' for name in given)}.")
    if not given:
        raise UserError(
            "There is no training data: pass `--train_data_dir`, a folder of images with a metadata.jsonl, "
            "`--train_shards`, or `--dataset_name`, a dataset on the Hub or `shapes`."
        )
    for name in ("output_dir", "pipeline_dir"):
        folder = getattr(args, name)
        if folder is not None and Path(folder).exists() and not Path(folder).is_dir():
            raise UserError(f"`{name}` must be a folder, and {folder} is a file.")
    if args.shuffle_buffer is not None and args.train_shards is None:
        raise UserError("`shuffle_buffer` is for `train_shards`: a dataset is shuffled as a whole.")
    if args.train_shards is not None and args.image_column != "image":
        raise UserError("`image_column` is for a dataset: in `train_shards`, the member that is an image is taken.")
    if args.push_to_hub != (args.hub_model_id is not None):
        raise UserError("`push_to_hub` and `hub_model_id` go together.")
    if (args.max_train_steps is None) == (args.num_train_epochs is None):
        raise UserError("Pass one of `max_train_steps` and `num_train_epochs`.")
    for name in ("max_train_samples", "num_train_epochs"):
        if getattr(args, name) is not None and args.dataset_name == SHAPES:
            raise UserError(f"`{name}` is for a dataset that ends: the shapes world does not.")
    for name in ("proportion_full_captions", "num_objects_shares"):
        if getattr(args, name) and args.dataset_name != SHAPES:
            raise UserError(f"`{name}` is for the shapes world.")
    if args.stage == "base":
        for name in ("crop_size", "low_resolution", "low_res_blur", "low_res_noise", "low_res_consistency"):
            if getattr(args, name):
                raise UserError(f"`{name}` is for the stage super_res.")
    check_metrics(args)
    if args.lora_rank is None:
        for name in ("lora_alpha", "lora_targets", "use_dora"):
            if getattr(args, name):
                raise UserError(f"`{name}` needs `lora_rank`.")
    else:
        if args.pretrained_model_name_or_path is None:
            raise UserError("`lora_rank` needs `pretrained_model_name_or_path`: the model that is adapted.")
        for name in ("pipeline_dir", "text_encoder_name_or_path", "low_res_consistency"):
            if getattr(args, name):
                raise UserError(f"`{name}` is for a model that is trained whole: a LoRA is the adapters alone.")


def model_or_shapes(args: argparse.Namespace, option: str, what: str) -> str:
    """The model that an option names; for the shapes world by default the checkpoint that ships."""
    from .loading import find_model

    name = getattr(args, option)
    if name is None and args.dataset_name != SHAPES:
        raise ValueError(f"`{option}` must name {what}: only the shapes world has a default.")
    return find_model(name, option=f"`{option}`")


def read_sizes(path: str | Path, *parts: str) -> dict[str, dict[str, Any]]:
    """The sizes of a model's parts in the JSON file that `--model_config` names."""
    if not Path(path).is_file():
        raise ValueError(f"`model_config` must be a JSON file, got {str(path)!r}.")
    try:
        sizes = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"`model_config` {path} is no JSON: {error}") from error
    for part in parts:
        if not isinstance(sizes, dict) or not isinstance(sizes.get(part), dict):
            raise ValueError(f"`model_config` {path} is of another kind of model: it lacks {part!r}.")
    return sizes


def load_rows(
    args: argparse.Namespace,
    dataset_name: str | None,
    option: str = "train_data_dir",
    split: str | Sequence[str] = ("train",),
) -> datasets.Dataset:
    """The rows of a dataset on the Hub, or of the folder that an option names.

    Raises:
        ImportError: if `datasets` is not installed.
        ValueError: if there is no such folder, part or column.
    """
    from glide_pipelines.datasets import load_captioned_rows

    folder = getattr(args, option)
    if folder is not None and not Path(folder).is_dir():
        raise ValueError(f"`{option}` must be a folder, got {folder!r}.")
    return load_captioned_rows(dataset_name, folder, args.image_column, args.caption_column, split)


def load_tokenizer(name: str, kind: type[PreTrainedTokenizerBase] | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer that `--tokenizer_name` names, by default of the class that it was saved as.

    Raises:
        ValueError: if there is none.
    """
    from transformers import AutoTokenizer

    message = f"`tokenizer_name` must be a tokenizer, a folder or a Hub id, got {name!r}."
    try:
        tokenizer: PreTrainedTokenizerBase = (kind or AutoTokenizer).from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"{message} {str(error).splitlines()[0]}") from error  # the Hub may be out of reach
    if not tokenizer.vocab_size:  # transformers makes an empty one where there are no files
        raise ValueError(message)
    return tokenizer


@dataclass
class TrainingData:
    """The images and captions that the options name: a dataset's, those of shards, or else of the shapes world."""

    args: argparse.Namespace
    examples: DatasetExamples | TarShards | None

    @classmethod
    def load(cls, args: argparse.Namespace) -> TrainingData:
        """Find the dataset.

        Raises:
            ImportError: if `datasets` is not installed.
            ValueError: if there is no such folder or column.
        """
        if args.dataset_name == SHAPES:
            return cls(args, None)
        if args.train_shards is not None:
            from glide_pipelines.training import TarShards, expand_shards

            shards = TarShards(expand_shards(args.train_shards), args.caption_column)
            if args.max_train_samples is not None:
                shards = shards.sample(args.max_train_samples, args.seed)
            return cls(args, shards)
        from glide_pipelines.datasets import DatasetExamples

        rows = load_rows(args, args.dataset_name)
        if args.max_train_samples is not None:
            rows = rows.shuffle(seed=args.seed).select(range(min(args.max_train_samples, len(rows))))
        return cls(args, DatasetExamples(rows, args.image_column, args.caption_column))

    @property
    def name(self) -> str:
        """For people to read."""
        if self.examples is None:
            return "the shapes world"
        from glide_pipelines.training import TarShards

        if isinstance(self.examples, TarShards):
            return f"{len(self.examples.urls)} tar shards"
        return self.args.dataset_name or Path(self.args.train_data_dir).name

    @property
    def num_images(self) -> int | None:
        """How many there are; None for a world without end."""
        return None if self.examples is None else len(self.examples)

    @property
    def prompt_domain(self) -> str | None:
        """The setting of a pipeline that is trained on the data."""
        if self.examples is not None:
            return None
        from glide_pipelines.shapes import ShapesSource

        return ShapesSource.prompt_domain

    def source(self, resolution: int) -> Source:
        """The examples, as images of this width and height."""
        args = self.args
        if self.examples is None:
            from glide_pipelines.shapes import ShapesSource

            return ShapesSource(resolution, args.seed, args.proportion_full_captions, args.num_objects_shares)
        from glide_pipelines.training import DatasetSource, ShardSource, TarShards

        options = {name: getattr(args, name) for name in ("center_crop", "random_flip", "skip_bad_images")}
        if not isinstance(self.examples, TarShards):
            return DatasetSource(self.examples, resolution, args.seed, **options)
        if args.shuffle_buffer is not None:
            options["shuffle_buffer"] = args.shuffle_buffer
        return ShardSource(self.examples, resolution, args.seed, **options)

    def new_tokenizer(self, accelerator: Accelerator, context: int) -> PreTrainedTokenizerBase:
        """The tokenizer of `OUTPUT_DIR/tokenizer`, which is trained on the captions unless it is there already.

        Args:
            accelerator (`Accelerator`): Its main process says what is done.
            context (`int`): Context of the text encoder, in tokens.
        """
        from transformers import GPT2Tokenizer

        folder = Path(self.args.output_dir) / "tokenizer"
        if (folder / "tokenizer_config.json").exists():  # another process trained it, or an earlier run
            accelerator.print(f"The tokenizer is {folder}, which was there.")
            return GPT2Tokenizer.from_pretrained(folder)
        from glide_pipelines import models, shapes
        from glide_pipelines.training.sources import iterate_captions

        if self.examples is None:
            size = shapes.train_tokenizer(folder, model_max_length=context)
        else:
            self.examples.check_captions()  # before the source does: the next run would find the tokenizer
            size = models.train_tokenizer(folder, iterate_captions(self.examples), model_max_length=context)
        accelerator.print(
            f"Trained a byte-level BPE tokenizer of {size} entries on the captions of {self.name}: {folder}. "
            "(--tokenizer_name takes another one.)"
        )
        return GPT2Tokenizer.from_pretrained(folder)

    def report_cut_captions(self, accelerator: Accelerator, tokenizer: PreTrainedTokenizerBase) -> None:
        """Say how many captions are longer than the text context of a tokenizer, which cuts them."""
        if self.examples is None or not accelerator.is_main_process:
            return
        from glide_pipelines.models.tokenization import prompt_lengths
        from glide_pipelines.training.sources import iterate_captions

        captions = list(iterate_captions(self.examples))
        lengths = list(prompt_lengths(tokenizer, captions))
        total, longest = len(lengths), max(lengths)
        if blank := sum(not caption.strip() for caption in captions):
            print(f"{blank} of {total} captions are blank: of these images the model learns no words.")
        cut = sum(length > tokenizer.model_max_length for length in lengths)
        context = f"the text context of {tokenizer.model_max_length} tokens (tokenizer of {len(tokenizer)} entries)"
        if cut:
            share = f"{100 * cut / total:.2g} %"
            print(
                f"{cut} of {total} captions ({share}) are longer than {context} and are cut; the longest has {longest}."
            )
        else:
            print(f"None of {total} captions is longer than {context}; the longest has {longest}.")


def training_config(args: argparse.Namespace) -> TrainingConfig:
    """The [`TrainingConfig`] of the options of [`add_run_options`], once `max_train_steps` is known."""
    from dataclasses import fields

    from glide_pipelines.training import LearningRate, TrainingConfig

    learning_rate = LearningRate(
        args.learning_rate, args.max_train_steps, args.lr_warmup_steps, args.lr_scheduler, args.lr_decay_steps
    )
    names = {field.name for field in fields(TrainingConfig)} - {"learning_rate", "optimizer_args"}
    values = {name: getattr(args, name) for name in names}
    if len(args.ema_decay) == 1:
        [values["ema_decay"]] = args.ema_decay
    return TrainingConfig(learning_rate=learning_rate, optimizer_args=dict(args.optimizer_args), **values)


def _setting(text: str) -> tuple[str, Any]:
    """`NAME=VALUE`, whose value is what Python writes so, or else a text."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"must be NAME=VALUE, got {text!r}")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def timestep_weighting(args: argparse.Namespace, num_train_timesteps: int) -> TimestepWeighting:
    """The [`TimestepWeighting`] of the options of [`add_timestep_options`] and `--snr_weight_range`."""
    from glide_pipelines.training import TimestepWeighting

    strategy, multiplier = args.timestep_bias_strategy, args.timestep_bias_multiplier
    portion = args.timestep_bias_portion
    if args.noisy_share is not None:
        warnings.warn(
            "`--noisy_share` is deprecated: pass `--timestep_bias_strategy`, `--timestep_bias_multiplier` and "
            "`--timestep_bias_portion 0.5`.",
            FutureWarning,
            stacklevel=2,
        )
        if strategy != "none":
            raise ValueError("Pass only one of `noisy_share` and `timestep_bias_strategy`.")
        if not -1 < args.noisy_share < 1:
            raise ValueError(f"`noisy_share` must be between -1 and 1, got {args.noisy_share}.")
        if args.noisy_share:
            strategy, portion = "later" if args.noisy_share > 0 else "earlier", 0.5
            multiplier = (1 + abs(args.noisy_share)) / (1 - abs(args.noisy_share))
    return TimestepWeighting(
        num_train_timesteps,
        strategy,
        multiplier,
        portion,
        tuple(args.snr_weight_range) if args.snr_weight_range else None,
        args.snr_gamma,
    )


def lora_config(args: argparse.Namespace) -> LoraConfig | None:
    """The adapters of the options of [`add_lora_options`]; None if all weights are trained.

    Raises:
        ImportError: if peft is not installed.
    """
    if args.lora_rank is None:
        return None
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise ImportError("`lora_rank` needs the package peft: pip install peft") from error
    alpha = args.lora_alpha or args.lora_rank
    # Gaussian, as in diffusers' own scripts.
    options = {"use_dora": args.use_dora, "init_lora_weights": "gaussian"}
    return LoraConfig(r=args.lora_rank, lora_alpha=alpha, target_modules=args.lora_targets, **options)


def save_dtype(args: argparse.Namespace) -> torch.dtype:
    """The number format of `--save_dtype`."""
    import torch

    return getattr(torch, SAVE_DTYPES[args.save_dtype])


def make_accelerator(args: argparse.Namespace) -> Accelerator:
    """The `Accelerator` of the options of [`add_run_options`], with its tracker started."""
    from accelerate import Accelerator
    from accelerate.tracking import get_available_trackers

    from .loading import hide_loading_bars, is_slow

    available = sorted(str(tracker) for tracker in get_available_trackers())
    if args.report_to is not None and args.report_to not in (*available, "all"):
        raise ValueError(
            f"`report_to` must be a tracker that is installed ({', '.join(available) or 'there is none'}), "
            f"got {args.report_to!r}."
        )
    accelerator = Accelerator(
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        mixed_precision=args.mixed_precision,
        log_with=args.report_to,
        project_dir=args.output_dir,
    )
    hide_loading_bars()
    if accelerator.mixed_precision == "bf16" and is_slow("bfloat16", accelerator.device):
        accelerator.print(
            "bf16 is slow on a processor without instructions for it, and this one seems to have none: training is "
            "faster without `--mixed_precision bf16`."
        )
    if args.report_to is not None:
        plain = {name: value for name, value in vars(args).items() if isinstance(value, int | float | str)}
        plain["ema_decay"] = " ".join(map(str, args.ema_decay))
        accelerator.init_trackers("glide-pipelines", config=plain)
    return accelerator


def start(args: argparse.Namespace) -> tuple[Accelerator, TrainingData, TrainingConfig]:
    """Begin a run: its processes, its data, and its settings, in which `num_train_epochs` becomes `max_train_steps`."""
    from accelerate.utils import set_seed

    accelerator = make_accelerator(args)
    set_seed(args.seed)
    with accelerator.main_process_first():
        data = TrainingData.load(args)
    if args.num_train_epochs is not None and data.num_images is not None:
        batch = args.train_batch_size * args.gradient_accumulation_steps * accelerator.num_processes
        args.max_train_steps = math.ceil(args.num_train_epochs * data.num_images / batch)
    return accelerator, data, training_config(args)
