"""What a picture costs: text encoding, a base step, an upsampler step, the whole, and how near to the machine's speed.

    python examples/benchmark.py --device cuda --dtype bfloat16 --compile

Without `--model` the networks have the sizes of OpenAI's released checkpoints and random weights: the time does not
depend on the values. The steps are those of `GLIDEPipeline` itself, timed by a callback. Operations are counted, two
per multiply-add, and set beside the rate of a plain matrix product on the same machine in the same dtype. See
docs/performance.md.
"""

from __future__ import annotations

import argparse
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

import glide_cli
from glide_pipelines import (
    GLIDEDDIMScheduler,
    GLIDEDDPMScheduler,
    GLIDEPipeline,
    GLIDETextConfig,
    GLIDETextEncoder,
    GLIDEUNet2DConditionModel,
)
from glide_pipelines.cli import find_device, load_pipeline
from glide_pipelines.files import write_json
from glide_pipelines.markdown import markdown_table


RELEASED_BASE = {"block_out_channels": (192, 384, 576, 768), "attention_levels": (1, 2, 3), "layers_per_block": 3}
RELEASED_SUPER_RES = {
    "block_out_channels": (192, 192, 384, 384, 768, 768),
    "attention_levels": (3, 4, 5),
    "layers_per_block": 2,
    "in_channels": 6,
    "sample_size": 256,
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The options; see `--help`."""
    parser = glide_cli.Parser(description=__doc__)
    add = parser.add_argument
    add("--model", help="a pipeline to time: a folder or a Hub id (default: released sizes, random weights)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s")
    add("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="default: %(default)s")
    add("--compile", action="store_true", help="torch.compile the networks")
    add(
        "--memory-format",
        choices=("channels_last", "contiguous"),
        help="of the UNets (default: channels_last for wide ones)",
    )
    add("--batch-size", type=glide_cli.positive_int, default=1, help="pictures at once (default: %(default)s)")
    add(
        "--guidance-scale",
        type=float,
        default=3.0,
        help="1 is no guidance, half of the base's work (default: %(default)s)",
    )
    add(
        "--steps", type=glide_cli.positive_int, default=100, help="base steps of a whole picture (default: %(default)s)"
    )
    add(
        "--super-res-steps",
        type=glide_cli.positive_int,
        default=27,
        help="and its upsampler steps (default: %(default)s)",
    )
    add("--whole-picture", action="store_true", help="draw the whole picture, instead of adding up its steps")
    add(
        "--repeats",
        type=glide_cli.positive_int,
        default=5,
        help="the median of so many is shown (default: %(default)s)",
    )
    add(
        "--cpu-time",
        action="store_true",
        help="CPU only: processor time; with OMP_NUM_THREADS=1 fair on a busy machine",
    )
    add("--output", type=glide_cli.output_file, metavar="FILE.json", help="write the figures here too")
    args = parser.parse_args(argv)
    if args.cpu_time and args.device.split(":")[0] != "cpu":
        parser.error("--cpu-time needs --device cpu")
    return args


class Stopwatch:
    """A `callback_on_step_end` that reads a clock after each step: seconds, or operations counted.

    Args:
        read (`Callable[[], float]`): The clock.

    Attributes:
        steps (`dict[str, list[float]]`): What each step took, by stage; the first step of a stage, which carries its
            preparations too, stands first.
    """

    def __init__(self, read: Callable[[], float]) -> None:
        self.read = read
        self.steps: dict[str, list[float]] = {}
        self.last = read()

    def __call__(self, pipe: GLIDEPipeline, step: int, timestep: int, tensors: dict) -> dict:
        now = self.read()
        self.steps.setdefault(pipe.stage, []).append(now - self.last)
        self.last = now
        return {}


def random_pipeline(device: torch.device, dtype: torch.dtype) -> GLIDEPipeline:
    """A pipeline of the released sizes with random weights, without a tokenizer."""
    default_dtype = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            text_encoders = [GLIDETextEncoder(GLIDETextConfig()) for _ in range(2)]
            unets = [
                GLIDEUNet2DConditionModel(
                    **GLIDEUNet2DConditionModel.glide_config(**config, text_hidden_size=512)
                ).use_fastest_layout()
                for config in (RELEASED_BASE, RELEASED_SUPER_RES)
            ]
    finally:
        torch.set_default_dtype(default_dtype)
    for network in (*text_encoders, *unets):
        network.eval()
    return GLIDEPipeline(
        tokenizer=None,
        text_encoder=text_encoders[0],
        unet=unets[0],
        scheduler=GLIDEDDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        super_res_text_encoder=text_encoders[1],
        super_res_unet=unets[1],
        super_res_scheduler=GLIDEDDIMScheduler(),
    )


def flop_counter() -> FlopCounterMode:
    """torch's counter of operations, which passes over the attention kernel of CPUs, with that one too."""

    def attention(query: Sequence[int], key: Sequence[int], value: Sequence[int], *args: Any, **kwargs: Any) -> int:
        return sdpa_flop_count(query, key, value)

    on_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return FlopCounterMode(display=False, custom_mapping={on_cpu: attention})


def matmul_rate(device: torch.device, dtype: torch.dtype, clock: Callable[[], float]) -> float:
    """The machine's rate at a large matrix product, in operations per second; the best of half a second."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    times: list[float] = []
    while len(times) < 2 or sum(times) < 0.5:
        start = clock()
        a @ b
        times.append(clock() - start)
    return 2 * size**3 / min(times)


@torch.no_grad()
def encode_texts(pipe: GLIDEPipeline, batch_size: int, guided: bool) -> dict[str, torch.Tensor]:
    """What `encode_prompt` computes, from random token ids: a prompt for each stage, and the empty one."""

    def encode(text_encoder: GLIDETextEncoder, batch_size: int) -> torch.Tensor:
        shape = (batch_size, text_encoder.config.max_position_embeddings)
        ids = torch.randint(text_encoder.config.vocab_size, shape, device=text_encoder.device)
        return text_encoder(ids, attention_mask=torch.ones_like(ids)).last_hidden_state

    embeds = {"prompt_embeds": encode(pipe.text_encoder, batch_size)}
    if guided:
        embeds["negative_prompt_embeds"] = encode(pipe.text_encoder, 1).expand(batch_size, -1, -1)
    if pipe.super_res_text_encoder is not None:
        embeds["super_res_prompt_embeds"] = encode(pipe.super_res_text_encoder, batch_size)
    return embeds


def benchmark(args: argparse.Namespace) -> dict:
    """Time everything.

    Args:
        args (`argparse.Namespace`): From [`parse_args`].

    Returns:
        `dict`: the machine, the settings and, under `"rows"`, for each part its seconds and its counted operations.

    Raises:
        argparse.ArgumentError: if there is no such model or device.
    """
    device, dtype = find_device(args.device), getattr(torch, args.dtype)

    def clock() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.process_time() if args.cpu_time else time.perf_counter()

    if args.model is None:
        pipe = random_pipeline(device, dtype)
    else:
        options = {"no_upsample": False, "scheduler": None, "super_res_scheduler": None, "quiet": True}
        pipe = load_pipeline(argparse.Namespace(**vars(args), **options))
    pipe.set_progress_bar_config(disable=True)
    unets = [unet for unet in (pipe.unet, pipe.super_res_unet) if unet is not None]
    text_encoders = [encoder for encoder in (pipe.text_encoder, pipe.super_res_text_encoder) if encoder is not None]
    if args.memory_format is not None:
        memory_format = getattr(torch, {"contiguous": "contiguous_format"}.get(args.memory_format, args.memory_format))
        for unet in unets:
            unet.to(memory_format=memory_format)
    guided = args.guidance_scale != 1
    embeds = encode_texts(pipe, args.batch_size, guided)

    def draw(steps: int, super_res_steps: int, stopwatch: Stopwatch | None = None) -> None:
        pipe(
            **embeds,
            num_inference_steps=steps,
            super_res_num_inference_steps=super_res_steps,
            guidance_scale=args.guidance_scale,
            output_type="pt",
            callback_on_step_end=stopwatch,
        )

    # Count before compiling: the counter sees operators, not compiled kernels. This is the warm-up as well.
    with flop_counter() as counter:
        encode_texts(pipe, args.batch_size, guided)
        text_flops = counter.get_total_flops()
        counted = Stopwatch(counter.get_total_flops)
        draw(1, 1, counted)
    compile_seconds = None
    if args.compile:
        start = clock()
        for network in (*unets, *text_encoders):
            network.compile(fullgraph=True)
        encode_texts(pipe, args.batch_size, guided)
        draw(2, 2)
        compile_seconds = clock() - start

    text_times = []
    for _ in range(args.repeats):
        start = clock()
        encode_texts(pipe, args.batch_size, guided)
        text_times.append(clock() - start)
    timed = Stopwatch(clock)
    draw(args.repeats + 1, args.repeats + 1, timed)

    rows = {"text encoding": {"count": 1, "seconds": statistics.median(text_times), "flops": text_flops}}
    for stage, label, count in (
        ("base", "one base step", args.steps),
        ("super_res", "one upsampler step", args.super_res_steps),
    ):
        if stage in timed.steps:
            seconds = statistics.median(timed.steps[stage][1:])
            rows[label] = {"count": count, "seconds": seconds, "flops": counted.steps[stage][0]}
    whole = {name: sum(row["count"] * row[name] for row in rows.values()) for name in ("seconds", "flops")}
    steps = " + ".join(str(row["count"]) for label, row in rows.items() if label.endswith("step"))
    if args.whole_picture:
        start = clock()
        draw(args.steps, args.super_res_steps)
        whole["seconds"] = clock() - start + rows["text encoding"]["seconds"]
    how = "measured" if args.whole_picture else "added up"
    rows[f"a picture, {steps} steps, {how}"] = {"count": 1, **whole}

    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "torch": torch.__version__,
        "settings": {name: value for name, value in vars(args).items() if name != "output"},
        "matmul_flops_per_second": matmul_rate(device, dtype, clock),
        "compile_seconds": compile_seconds,
        "peak_memory_bytes": _peak_memory(device),
        "rows": rows,
    }


def _processor() -> str:
    return f"CPU ({platform.machine()}, {torch.backends.cpu.get_cpu_capability()}), threads: {torch.get_num_threads()}"


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Kilobytes on Linux, bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def format_table(result: dict) -> str:
    """The result as Markdown."""
    settings = result["settings"]
    rate = result["matmul_flops_per_second"]
    ways = [settings["dtype"], "compiled" if settings["compile"] else "eager"]
    ways += [settings["memory_format"]] if settings["memory_format"] else []
    ways += [f"batch {settings['batch_size']}"] if settings["batch_size"] > 1 else []
    ways += ["processor time"] if settings["cpu_time"] else []
    model = settings["model"] or "released sizes, random weights"
    lines = [
        f"{model}; {', '.join(ways)}; {result['device']}, torch {result['torch']}",
        f"matrix product: {rate / 1e12:.3g} TFLOP/s; peak memory: {result['peak_memory_bytes'] / 1e9:.2f} GB"
        + (f"; compiling: {result['compile_seconds']:.0f} s" if result["compile_seconds"] else ""),
        "",
    ]
    rows = []
    for label, row in result["rows"].items():
        reached = row["flops"] / row["seconds"]
        figures = (row["seconds"], row["flops"] / 1e12, reached / 1e12)
        rows.append([label, *(f"{figure:.3g}" for figure in figures), f"{reached / rate:.0%}"])
    titles = ["part", "seconds", "TFLOP", "TFLOP/s", "of the matrix product"]
    return "\n".join([*lines, markdown_table(titles, rows)])


def main(argv: list[str] | None = None) -> int:
    """Time, print, and write the JSON if asked. Returns the exit code, as `glide_cli.exit_code` does."""

    def run() -> None:
        args = parse_args(argv)
        result = benchmark(args)
        print(format_table(result))
        if args.output is not None:
            write_json(result, args.output)

    return glide_cli.exit_code("benchmark.py", run)


if __name__ == "__main__":
    sys.exit(main())
