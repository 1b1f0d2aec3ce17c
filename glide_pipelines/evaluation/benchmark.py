"""What an image costs: time and counted operations of text encoding, of a step of each stage, and of the whole.

Operations are counted, two per multiply-add, and set beside the rate of a plain matrix product on the same machine in
the same dtype. The steps are those of [`GLIDEPipeline`] itself, timed by a callback.
"""

from __future__ import annotations

import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from ..markdown import markdown_table
from ..models import GLIDETextConfig, GLIDETextEncoder, GLIDEUNet2DConditionModel
from ..pipelines import GLIDEPipeline
from ..schedulers import GLIDEDDIMScheduler, GLIDEDDPMScheduler


RELEASED_BASE: dict[str, Any] = {
    "block_out_channels": (192, 384, 576, 768),
    "attention_levels": (1, 2, 3),
    "layers_per_block": 3,
}
RELEASED_SUPER_RES: dict[str, Any] = {
    "block_out_channels": (192, 192, 384, 384, 768, 768),
    "attention_levels": (3, 4, 5),
    "layers_per_block": 2,
    "in_channels": 6,
    "sample_size": 256,
}


class Stopwatch:
    """A `callback_on_step_end` that reads a clock after each step: seconds, or operations counted.

    Args:
        read (`Callable[[], float]`): The clock.

    Attributes:
        steps (`dict[str, list[float]]`): What each step took, by stage. The first step of a stage includes its
            preparations.
    """

    def __init__(self, read: Callable[[], float]) -> None:
        self.read = read
        self.steps: dict[str, list[float]] = {}
        self.last = read()

    def __call__(self, pipe: GLIDEPipeline, step: int, timestep: int, tensors: dict[str, Any]) -> dict[str, Any]:
        now = self.read()
        self.steps.setdefault(str(pipe.stage), []).append(now - self.last)
        self.last = now
        return {}


def random_pipeline(device: torch.device, dtype: torch.dtype) -> GLIDEPipeline:
    """A pipeline of the sizes of OpenAI's released checkpoints with random weights, without a tokenizer."""
    default_dtype = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            text_encoders = [GLIDETextEncoder(GLIDETextConfig()) for _ in range(2)]
            configs = (
                GLIDEUNet2DConditionModel.glide_config(**sizes, text_hidden_size=512)
                for sizes in (RELEASED_BASE, RELEASED_SUPER_RES)
            )
            unets = [GLIDEUNet2DConditionModel(**config).use_fastest_layout() for config in configs]
    finally:
        torch.set_default_dtype(default_dtype)
    networks: list[torch.nn.Module] = [*text_encoders, *unets]
    for network in networks:
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
    """torch's counter of operations, extended to the attention kernel of CPUs, which it passes over."""

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

    def encode(text_encoder: GLIDETextEncoder | None, batch_size: int) -> torch.Tensor:
        assert text_encoder is not None  # a pipeline without one has no text to encode
        shape = (batch_size, text_encoder.config.max_position_embeddings)
        ids = torch.randint(text_encoder.config.vocab_size, shape, device=text_encoder.device)
        return text_encoder(ids, attention_mask=torch.ones_like(ids)).last_hidden_state

    embeds = {"prompt_embeds": encode(pipe.text_encoder, batch_size)}
    if guided:
        embeds["negative_prompt_embeds"] = encode(pipe.text_encoder, 1).expand(batch_size, -1, -1)
    if pipe.super_res_text_encoder is not None:
        embeds["super_res_prompt_embeds"] = encode(pipe.super_res_text_encoder, batch_size)
    return embeds


def benchmark(
    pipe: GLIDEPipeline,
    *,
    steps: int = 100,
    super_res_steps: int = 27,
    batch_size: int = 1,
    guidance_scale: float = 3.0,
    repeats: int = 5,
    compile: bool = False,
    whole_image: bool = False,
    cpu_time: bool = False,
) -> dict[str, Any]:
    """Time a pipeline.

    Args:
        pipe ([`GLIDEPipeline`]): On its device, in its dtype; the upsampler may be missing.
        steps (`int`, defaults to 100): Base steps of a whole image.
        super_res_steps (`int`, defaults to 27): And its upsampler steps.
        batch_size (`int`, defaults to 1): Images at once.
        guidance_scale (`float`, defaults to 3.0): 1 is no guidance, half of the base's work.
        repeats (`int`, defaults to 5): The median of so many is taken.
        compile (`bool`, defaults to `False`): Compile the networks with `torch.compile`.
        whole_image (`bool`, defaults to `False`): Generate the whole image, instead of adding up its steps.
        cpu_time (`bool`, defaults to `False`): Processor time instead of elapsed time, for a busy CPU.

    Returns:
        `dict`: `device`, `torch`, `matmul_flops_per_second`, `compile_seconds`, `peak_memory_bytes` (None where the
        system does not tell) and `rows`: each part's `count` in an image, its `seconds` and its counted `flops`.
    """
    device, dtype = pipe.device, pipe.dtype
    guided = guidance_scale != 1
    networks = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    embeds = encode_texts(pipe, batch_size, guided)

    def clock() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.process_time() if cpu_time else time.perf_counter()

    def time_texts() -> float:
        start = clock()
        encode_texts(pipe, batch_size, guided)
        return clock() - start

    def time_image(steps: int, super_res_steps: int, stopwatch: Stopwatch | None = None) -> float:
        start = clock()
        pipe(
            **embeds,
            num_inference_steps=steps,
            super_res_num_inference_steps=super_res_steps,
            guidance_scale=guidance_scale,
            output_type="pt",
            callback_on_step_end=stopwatch,
        )
        return clock() - start

    # Count before compiling: the counter sees operators, not compiled kernels. This is the warm-up as well.
    with flop_counter() as counter:
        encode_texts(pipe, batch_size, guided)
        text_flops = counter.get_total_flops()
        counted = Stopwatch(counter.get_total_flops)
        time_image(1, 1, counted)
    compile_seconds = None
    if compile:
        for network in networks:
            network.compile(fullgraph=True)
        compile_seconds = time_texts() + time_image(2, 2)

    text_seconds = statistics.median(time_texts() for _ in range(repeats))
    timed = Stopwatch(clock)
    time_image(repeats + 1, repeats + 1, timed)
    rows = {"text encoding": {"count": 1, "seconds": text_seconds, "flops": text_flops}}
    for stage, label, count in (("base", "one base step", steps), ("super_res", "one upsampler step", super_res_steps)):
        if stage in timed.steps:
            seconds = statistics.median(timed.steps[stage][1:])
            rows[label] = {"count": count, "seconds": seconds, "flops": counted.steps[stage][0]}
    whole = {name: sum(row["count"] * row[name] for row in rows.values()) for name in ("seconds", "flops")}
    counts = " + ".join(str(row["count"]) for label, row in rows.items() if label.endswith("step"))
    if whole_image:
        whole["seconds"] = time_image(steps, super_res_steps) + text_seconds
    how = "measured" if whole_image else "added up"
    rows[f"an image, {counts} steps, {how}"] = {"count": 1, **whole}
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "torch": torch.__version__,
        "matmul_flops_per_second": matmul_rate(device, dtype, clock),
        "compile_seconds": compile_seconds,
        "peak_memory_bytes": _peak_memory(device),
        "rows": rows,
    }


def _processor() -> str:
    return f"CPU ({platform.machine()}, {torch.backends.cpu.get_cpu_capability()}), threads: {torch.get_num_threads()}"


def _peak_memory(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # on Windows
        return None
    # Kilobytes on Linux, bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def benchmark_table(result: dict[str, Any], description: str) -> str:
    """A result of [`benchmark`] as Markdown.

    Args:
        result (`dict`): The result.
        description (`str`): Of the model and how it ran; it begins the first line.
    """
    rate, memory = result["matmul_flops_per_second"], result["peak_memory_bytes"]
    facts = [f"matrix product: {rate / 1e12:.3g} TFLOP/s"]
    facts += [f"peak memory: {memory / 1e9:.2f} GB"] if memory is not None else []
    facts += [f"compiling: {result['compile_seconds']:.0f} s"] if result["compile_seconds"] else []
    rows = []
    for label, row in result["rows"].items():
        reached = row["flops"] / row["seconds"]
        numbers = (row["seconds"], row["flops"] / 1e12, reached / 1e12)
        rows.append([label, *(f"{number:.3g}" for number in numbers), f"{reached / rate:.0%}"])
    titles = ["part", "seconds", "TFLOP", "TFLOP/s", "of the matrix product"]
    machine = f"{description}; {result['device']}, torch {result['torch']}"
    return "\n".join([machine, "; ".join(facts), "", markdown_table(titles, rows)])
