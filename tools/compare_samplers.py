"""Few steps: how often images show what their captions say, by sampler, by number of steps, and with guidance in an
interval of them alone.

    python tools/compare_samplers.py --output runs/samplers
    accelerate launch tools/compare_samplers.py --output runs/samplers --guidance-interval 0.2 0.8

By default it measures the base model that ships, with the guidance that it recommends. A stopped run goes on with the
images that OUTPUT holds already. See docs/schedulers_and_guidance.md.
"""

from __future__ import annotations

import argparse
import sys
from itertools import product
from pathlib import Path
from typing import Any

from accelerate import PartialState

from glide_cli import Parser, script
from glide_cli.loading import open_pipeline, other_scheduler, silence_libraries
from glide_cli.options import SCHEDULERS, add_model_options, finite, positive_int, seed, share
from glide_pipelines import GLIDEPipeline
from glide_pipelines.evaluation import (
    Sampling,
    join_processes,
    package_versions,
    plot_steps,
    run_sweep,
    sampling_settings,
    steps_table,
    write_report,
)
from glide_pipelines.shapes.features import ShapesNetwork
from glide_pipelines.shapes.images import ShapesImages
from glide_pipelines.shapes.tally import judged_table


SAMPLERS = ["dpm-solver++", "sde-dpm-solver++", "unipc", "ddim", "ddpm"]
STEPS = [5, 8, 10, 15, 20, 25, 50, 100]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    add = parser.add_argument_group("what to measure").add_argument
    add("--output", type=Path, required=True, metavar="FOLDER", help="images, table, JSON and plot")
    names = f"of {', '.join(SCHEDULERS)} (default: {' '.join(SAMPLERS)})"
    add("--samplers", choices=SCHEDULERS, nargs="+", default=SAMPLERS, metavar="NAME", help=names)
    numbers = f"steps of the base stage (default: {' '.join(map(str, STEPS))})"
    add("--num-steps", type=positive_int, nargs="+", default=STEPS, metavar="N", help=numbers)
    add("--guidance-scale", type=finite, metavar="X", help="default: what the model recommends")
    add(
        "--guidance-interval",
        type=share,
        nargs=2,
        metavar=("START", "STOP"),
        help="measure once more with guidance in this part of the steps alone, from the noisiest at 0 to the last at 1",
    )
    add("--num-captions", type=positive_int, default=512, metavar="N", help="default: %(default)s")
    add("--upsample", action="store_true", help="measure the upsampled images; the upsampler keeps its own steps")
    add("--seed", type=seed, default=0, metavar="N", help="of noise and scenes (default: %(default)s)")
    add("--batch-size", type=positive_int, default=32, metavar="N", help="images at a time (default: 32)")
    add_model_options(parser.add_argument_group("which model, and where it runs"), dtype="float32")
    args = parser.parse_args(argv)
    if args.guidance_interval is not None and not args.guidance_interval[0] < args.guidance_interval[1]:
        parser.error(f"--guidance-interval must end after its START, got {' '.join(map(str, args.guidance_interval))}")
    return args


def load_pipelines(args: argparse.Namespace) -> dict[str, GLIDEPipeline]:
    """The model, which all of them share, with each sampler in its base stage."""
    pipe = open_pipeline(args.model, args.device, args.dtype, upsample=args.upsample)
    pipes = {}
    for sampler in args.samplers:
        scheduler = other_scheduler(pipe.scheduler, sampler)
        pipes[sampler] = GLIDEPipeline.from_pipe(pipe, scheduler=scheduler)
        pipes[sampler].set_progress_bar_config(disable=True)
    return pipes


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Generate what is not there yet, and measure all of it."""
    state = join_processes(args.device)
    args.device = args.device or str(state.device)
    pipes = load_pipelines(args)
    first = next(iter(pipes.values()))
    scale = first.default_guidance_scale if args.guidance_scale is None else args.guidance_scale
    intervals = [None] if args.guidance_interval is None else [None, tuple(args.guidance_interval)]
    sweep = [
        Sampling(sampler, steps, scale, interval)
        for interval, sampler, steps in product(intervals, args.samplers, sorted(set(args.num_steps)))
    ]
    images = ShapesImages(args.num_captions, args.seed)
    common = {"seed": args.seed, "batch_size": args.batch_size}
    settings = sampling_settings(first, model=args.model or "shapes_checkpoint()", dtype=args.dtype, **common)
    del settings["steps"], settings["scheduler"]  # each point's own
    network = ShapesNetwork().to(args.device)
    results = run_sweep(pipes, sweep, images, args.output / "pictures", settings, network, **common)
    return {"settings": settings, "versions": package_versions(), **results}


@script(ValueError, ImportError)
def main(argv: list[str] | None) -> None:
    """Generate, measure, and print and write the report."""
    args = parse_args(argv)
    silence_libraries()
    results = compare(args)
    if PartialState().is_main_process:
        print(write_report(results, args.output, plot_steps, steps_table, judged_table))


if __name__ == "__main__":
    sys.exit(main())
