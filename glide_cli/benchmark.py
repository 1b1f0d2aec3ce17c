"""What an image costs: text encoding, a base step, an upsampler step, the whole, and how near to the machine's speed.

    glide benchmark --device cuda --dtype bfloat16 --compile

Without --model the networks have the sizes of OpenAI's released checkpoints and random weights: the time does not
depend on the values. See docs/performance.md.

    git clone https://github.com/openai/glide-text2im
    glide benchmark --against glide-text2im

times the original too, as its notebook runs it, and shows how many times as long it takes.

    glide benchmark --train --device cuda --mixed_precision bf16 --batch-size 128 --compile

times a step of training, of the base or with --stage super_res the upsampler.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from .errors import UserError
from .options import DTYPES, finite, output_file, positive_int


if TYPE_CHECKING:  # importing it takes seconds
    import torch


# Of --train alone, as `glide train` has them.
TRAINING = ("stage", "mixed_precision", "gradient_checkpointing", "lora_rank", "optimizer")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `glide benchmark`."""
    add = parser.add_argument
    add("--model", help="a pipeline to time: a folder or a Hub id (default: released sizes, random weights)")
    add("--device", help="cpu, cuda, cuda:1, mps (default: cuda if there is one)")
    add("--dtype", choices=DTYPES, default="float32", help="default: %(default)s")
    add("--compile", action="store_true", help="torch.compile the networks")
    add("--no-cuda-graphs", action="store_true", help="CUDA only: launch each kernel by itself")
    formats = "of the UNets (default: channels_last for wide ones)"
    add("--memory-format", choices=("channels_last", "contiguous"), help=formats)
    add("--batch-size", type=positive_int, default=1, metavar="N", help="images at once (default: %(default)s)")
    scale = "1 is no guidance, half of the base's work (default: %(default)s)"
    add("--guidance-scale", type=finite, default=3.0, metavar="X", help=scale)
    steps = "base steps of a whole image (default: %(default)s)"
    add("--steps", type=positive_int, default=100, metavar="N", help=steps)
    super_res_steps = "and its upsampler steps (default: %(default)s)"
    add("--super-res-steps", type=positive_int, default=27, metavar="N", help=super_res_steps)
    against = "a clone of openai/glide-text2im to time in turns with this package"
    add("--against", metavar="PATH", help=against)
    whole = "generate the whole image, instead of adding up its steps"
    add("--whole-image", "--whole-picture", action="store_true", help=whole)
    repeats = "the median of so many is shown (default: %(default)s)"
    add("--repeats", type=positive_int, default=5, metavar="N", help=repeats)
    add(
        "--cpu-time",
        action="store_true",
        help="CPU only: processor time; with OMP_NUM_THREADS=1 fair on a busy machine",
    )
    add("--output", type=output_file, metavar="FILE.json", help="write the figures here too")
    add("--train", action="store_true", help="time a step of training; the next options are for it")
    add("--stage", choices=("base", "super_res"), help="which of the two models (default: base)")
    add("--mixed_precision", choices=("no", "fp16", "bf16"), help="as of glide train (default: no)")
    add("--gradient_checkpointing", action="store_true", help="recompute in the backward pass, to save memory")
    add("--lora_rank", type=positive_int, metavar="R", help="train adapters of this rank")
    add("--optimizer", metavar="NAME", help="as of glide train (default: adamw)")


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse options that do not fit together: processor time is that of the CPU, and the original runs one way."""
    if not args.train:
        for option in TRAINING:
            if getattr(args, option):
                raise UserError(f"--{option} needs --train")
    elif args.against is not None or args.whole_image or args.dtype != "float32":
        raise UserError("--train goes with none of --against, --whole-image and --dtype")
    if args.cpu_time and args.device is not None and args.device.split(":")[0] != "cpu":
        raise UserError("--cpu-time needs --device cpu")
    if args.against is not None:
        for option in ("model", "compile"):
            if getattr(args, option):
                raise UserError(f"--against times networks of the released sizes, uncompiled: leave out --{option}")
        if args.guidance_scale == 1:
            raise UserError("--against: the original's notebook always guides; --guidance-scale must not be 1")


def run(args: argparse.Namespace) -> None:
    """Time, print, and write the JSON if asked."""
    from glide_pipelines.files import write_json

    from .loading import find_device

    device = find_device("cpu" if args.cpu_time else args.device)
    result, table = (_benchmark_training if args.train else _benchmark_sampling)(args, device)
    print(table)
    result["settings"] = {name: value for name, value in vars(args).items() if name != "output"}
    if args.output is not None:
        write_json(result, args.output)


def _benchmark_sampling(args: argparse.Namespace, device: torch.device) -> tuple[dict[str, Any], str]:
    import torch

    from glide_pipelines.evaluation.benchmark import (
        benchmark,
        benchmark_table,
        compare,
        comparison_table,
        random_pipeline,
    )
    from glide_pipelines.evaluation.original import Original

    from .loading import open_pipeline

    if args.model is None:
        pipe = random_pipeline(device, getattr(torch, args.dtype))
    else:
        pipe = open_pipeline(args.model, str(device), args.dtype, cuda_graphs=False)
    pipe.set_progress_bar_config(disable=True)
    for unet in filter(None, (pipe.unet, pipe.super_res_unet)):
        _set_memory_format(unet, args.memory_format)
    graphs = device.type == "cuda" and not args.no_cuda_graphs and not args.compile
    names = ["steps", "super_res_steps", "guidance_scale", "repeats", "whole_image", "cpu_time"]
    values = {name: getattr(args, name) for name in names} | {"cuda_graphs": graphs}
    ways = [args.dtype, "compiled" if args.compile else "CUDA graphs" if graphs else "eager"]
    ways += [args.memory_format] if args.memory_format else []
    ways += [f"batch {args.batch_size}"] if args.batch_size > 1 else []
    ways += ["processor time"] if args.cpu_time else []
    how = f"{args.model or 'released sizes, random weights'}; {', '.join(ways)}"
    if args.against is None:
        result = benchmark(pipe, batch_size=args.batch_size, compile=args.compile, **values)
        return result, benchmark_table(result, how)
    try:
        sizes = {name: getattr(args, name) for name in ("batch_size", "steps", "super_res_steps", "guidance_scale")}
        original = Original(args.against, device, **sizes)
    except (FileNotFoundError, ImportError) as error:
        raise UserError(f"--against: {error}") from error
    result = compare(pipe, original, **values)
    theirs = "float16" if device.type == "cuda" else "float32"
    return result, comparison_table(result, f"{how} (the original: {theirs})")


def _benchmark_training(args: argparse.Namespace, device: torch.device) -> tuple[dict[str, Any], str]:
    from accelerate import Accelerator

    from glide_pipelines import GLIDEPipeline
    from glide_pipelines.sampling.released import released_stage
    from glide_pipelines.training import PipelineParts
    from glide_pipelines.training.speed import benchmark_training, training_table

    from .loading import find_model

    name, optimizer = args.stage or "base", args.optimizer or "adamw"
    if args.model is None:
        stage = released_stage(name)
    else:
        stage = PipelineParts.from_pretrained(GLIDEPipeline, find_model(args.model), name).stage
        stage.unet.use_fastest_layout()
    _set_memory_format(stage.unet, args.memory_format)
    accelerator = Accelerator(mixed_precision=args.mixed_precision or "no", cpu=device.type == "cpu")
    names = ("batch_size", "repeats", "gradient_checkpointing", "lora_rank", "compile", "cpu_time")
    values = {name: getattr(args, name) for name in names}
    result = benchmark_training(accelerator, stage, optimizer=optimizer, **values)
    how = [args.model or "released sizes, random weights", name, f"batch {args.batch_size}"]
    how += [args.mixed_precision or "float32", optimizer]
    how += [f"LoRA of rank {args.lora_rank}"] if args.lora_rank else []
    how += ["gradient checkpointing"] * args.gradient_checkpointing + ["compiled"] * args.compile
    how += ["processor time"] * args.cpu_time
    return result, training_table(result, ", ".join(how))


def _set_memory_format(unet: Any, name: str | None) -> None:
    import torch

    if name is not None:
        formats = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
        unet.to(memory_format=formats[name])
