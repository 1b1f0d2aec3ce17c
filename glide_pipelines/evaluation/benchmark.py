"""What an image costs: time and counted operations of text encoding, of a step of each stage, and of the whole.

Operations are counted, two per multiply-add, and set beside the rate of a plain matrix product on the same machine in
the same dtype. The steps are those of [`GLIDEPipeline`] itself, timed by a callback. [`compare`] times
the original beside them.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch

from ..markdown import markdown_table
from ..measuring import flop_counter, machine, make_clock, matmul_rate, peak_memory, seconds_of
from ..models import GLIDETextEncoder
from ..pipelines import GLIDEPipeline
from ..sampling import STAGE_PREFIXES
from ..sampling.released import released_stage
from .original import Original


class Stopwatch:
    """Reads a clock after each step: seconds, or operations counted. `steps` holds what each took, by stage; the first
    step of a stage includes its preparations."""

    def __init__(self, read: Callable[[], float]) -> None:
        self.read = read
        self.steps: dict[str, list[float]] = {}
        self.last = read()

    def tick(self, stage: str) -> None:
        """A step of the stage has been taken."""
        now = self.read()
        self.steps.setdefault(stage, []).append(now - self.last)
        self.last = now


class TimedPipeline:
    """What is timed of a pipeline: its texts and its images.

    Args:
        pipe ([`GLIDEPipeline`]): On its device, in its dtype; the upsampler may be missing.
        batch_size (`int`, defaults to 1): Images at once.
        guidance_scale (`float`, defaults to 3.0): 1 is no guidance.
    """

    def __init__(self, pipe: GLIDEPipeline, batch_size: int = 1, guidance_scale: float = 3.0) -> None:
        self.pipe = pipe
        self.batch_size = batch_size
        self.guidance_scale = guidance_scale
        self.embeds: dict[str, Any] = self.texts()

    def num_bytes(self) -> int:
        """Memory of the weights."""
        return sum(p.numel() * p.element_size() for network in networks_of(self.pipe) for p in network.parameters())

    @torch.no_grad()
    def texts(self) -> dict[str, torch.Tensor]:
        """What `encode_prompt` computes, from random token ids: a prompt for each stage, and the empty one."""

        def encode(text_encoder: GLIDETextEncoder | None, batch_size: int = self.batch_size) -> torch.Tensor:
            assert text_encoder is not None  # a pipeline without one has no text to encode
            shape = (batch_size, text_encoder.config.max_position_embeddings)
            ids = torch.randint(text_encoder.config.vocab_size, shape, device=text_encoder.device)
            # In a graph, where the pipeline has them.
            encoder = self.pipe._graphed(text_encoder)
            return encoder(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state

        embeds = {"prompt_embeds": encode(self.pipe.text_encoder)}
        if self.guidance_scale != 1:
            embeds["negative_prompt_embeds"] = encode(self.pipe.text_encoder, 1).expand(self.batch_size, -1, -1)
        if self.pipe.super_res_text_encoder is not None:
            embeds["super_res_prompt_embeds"] = encode(self.pipe.super_res_text_encoder)
        return embeds

    def image(self, steps: int, super_res_steps: int, tick: Callable[[str], None] | None = None) -> torch.Tensor:
        """Generate images `[B, 3, H, W]` of encoded prompts; `tick` is called with the stage's name after each step."""

        def callback(pipe: GLIDEPipeline, step: int, timestep: torch.Tensor, tensors: dict[str, Any]) -> None:
            if tick is not None:
                tick(str(pipe.stage))

        images = self.pipe(
            **self.embeds,
            num_inference_steps=steps,
            super_res_num_inference_steps=super_res_steps,
            guidance_scale=self.guidance_scale,
            output_type="pt",
            callback_on_step_end=None if tick is None else callback,
        ).images
        assert isinstance(images, torch.Tensor)  # of the output type "pt"
        return images


def networks_of(pipe: GLIDEPipeline) -> list[torch.nn.Module]:
    """The networks of a pipeline."""
    return [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]


def random_pipeline(device: torch.device, dtype: torch.dtype) -> GLIDEPipeline:
    """A pipeline of the sizes of OpenAI's released checkpoints with random weights, without a tokenizer."""
    base, super_res = (released_stage(name, device, dtype).eval() for name in STAGE_PREFIXES)
    pipe = GLIDEPipeline(tokenizer=None, **base.components(), **super_res.components())
    pipe.check_finite = False  # its images mean nothing
    return pipe


def benchmark(
    pipe: GLIDEPipeline,
    *,
    steps: int = 100,
    super_res_steps: int = 27,
    batch_size: int = 1,
    guidance_scale: float = 3.0,
    repeats: int = 5,
    compile: bool = False,
    cuda_graphs: bool = False,
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
        cuda_graphs (`bool`, defaults to `False`): Run the UNets in CUDA graphs.
        whole_image (`bool`, defaults to `False`): Generate the whole image, instead of adding up its steps.
        cpu_time (`bool`, defaults to `False`): Processor time instead of elapsed time, for a busy CPU.

    Returns:
        `dict`: `device`, `torch`, `matmul_flops_per_second`, `compile_seconds` (or those of capturing graphs),
        `peak_memory_bytes` (None where the system does not tell) and `rows`: each part's `count` in an image, its
        `seconds` and its counted `flops`.
    """
    clock = make_clock(pipe.device, cpu_time)
    parts = TimedPipeline(pipe, batch_size, guidance_scale)

    # Count before compiling: the counter sees operators, not compiled kernels. This is the warm-up as well.
    with flop_counter() as counter:
        parts.texts()
        text_flops = counter.get_total_flops()
        counted = Stopwatch(counter.get_total_flops)
        parts.image(1, 1, counted.tick)
    if compile:
        for network in networks_of(pipe):
            network.compile(fullgraph=True)
    if cuda_graphs:
        pipe.enable_cuda_graphs()
    compile_seconds = None
    if compile or cuda_graphs:
        compile_seconds = seconds_of(clock, parts.texts) + seconds_of(clock, parts.image, 2, 2)

    text_seconds = statistics.median(seconds_of(clock, parts.texts) for _ in range(repeats))
    timed = Stopwatch(clock)
    parts.image(repeats + 1, repeats + 1, timed.tick)
    rows = {"text encoding": {"count": 1, "seconds": text_seconds, "flops": text_flops}}
    for stage, label, count in (("base", "one base step", steps), ("super_res", "one upsampler step", super_res_steps)):
        if stage in timed.steps:
            seconds = statistics.median(timed.steps[stage][1:])
            rows[label] = {"count": count, "seconds": seconds, "flops": counted.steps[stage][0]}
    whole = {name: sum(row["count"] * row[name] for row in rows.values()) for name in ("seconds", "flops")}
    counts = " + ".join(str(row["count"]) for label, row in rows.items() if label.endswith("step"))
    if whole_image:
        whole["seconds"] = seconds_of(clock, parts.image, steps, super_res_steps) + text_seconds
    how = "measured" if whole_image else "added up"
    rows[f"an image, {counts} steps, {how}"] = {"count": 1, **whole}
    return {
        **machine(pipe.device),
        "matmul_flops_per_second": matmul_rate(pipe.device, pipe.dtype, clock),
        "compile_seconds": compile_seconds,
        "peak_memory_bytes": peak_memory(pipe.device),
        "rows": rows,
    }


def compare(
    pipe: GLIDEPipeline,
    original: Original,
    *,
    steps: int = 100,
    super_res_steps: int = 27,
    guidance_scale: float = 3.0,
    repeats: int = 5,
    cuda_graphs: bool = False,
    whole_image: bool = False,
    cpu_time: bool = False,
) -> dict[str, Any]:
    """Time a pipeline and the original on the same device, in turns.

    Args:
        pipe ([`GLIDEPipeline`]): Of the released sizes.
        original ([`Original`]): On the same device; it says how many images are generated at once.
        steps, super_res_steps, guidance_scale, repeats, cuda_graphs, whole_image, cpu_time: See [`benchmark`]. The
            original encodes the text again at every step, as its notebook does.

    Returns:
        `dict`: `device`, `torch` and `rows`, each with what the `original` took, the package (`ours`), and the `ratio`:
        seconds, or on CUDA bytes of peak memory.
    """
    clock = make_clock(pipe.device, cpu_time)
    if cuda_graphs:
        pipe.enable_cuda_graphs()
    contestants: dict[str, Original | TimedPipeline] = {
        "original": original,
        "ours": TimedPipeline(pipe, original.batch_size, guidance_scale),
    }
    names = {"base": "one base step", "super_res": "one upsampler step"}
    image = f"an image, {steps} + {super_res_steps} steps, {'measured' if whole_image else 'added up'}"
    seconds: dict[str, dict[str, list[float]]] = {}
    memory: dict[str, float] = {}

    def note(row: str, name: str, value: float) -> None:
        seconds.setdefault(row, {}).setdefault(name, []).append(value)

    for turn in range(repeats):
        for name, parts in contestants.items():
            if pipe.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(pipe.device)
            if whole_image and turn == 0:
                note("the first image", name, seconds_of(clock, parts.image, steps, super_res_steps))
            note("text encoding", name, seconds_of(clock, parts.texts))
            timed = Stopwatch(clock)
            parts.image(2, 2, timed.tick)
            for stage, (_, second) in timed.steps.items():
                note(names[stage], name, second)
            if whole_image:
                note(image, name, seconds_of(clock, parts.image, steps, super_res_steps))
            if pipe.device.type == "cuda":
                # A graph takes its memory in the first turn, when it is captured.
                others = sum(other.num_bytes() for other in contestants.values() if other is not parts)
                memory[name] = max(memory.get(name, 0), torch.cuda.max_memory_allocated(pipe.device) - others)
    rows = {row: {name: statistics.median(values) for name, values in by.items()} for row, by in seconds.items()}
    if not whole_image:
        base, super_res = (rows[name] for name in names.values())
        rows[image] = {name: steps * base[name] + super_res_steps * super_res[name] for name in contestants}
        rows[image]["ours"] += rows["text encoding"]["ours"]  # the original's steps hold its own
    if memory:
        rows["peak memory, GB"] = {name: value / 1e9 for name, value in memory.items()}
    return {
        **machine(pipe.device),
        "rows": {row: {**values, "ratio": values["original"] / values["ours"]} for row, values in rows.items()},
    }


def benchmark_table(result: dict[str, Any], description: str) -> str:
    """A result of [`benchmark`] as Markdown, which begins with a description of the model and how it ran."""
    rate, memory = result["matmul_flops_per_second"], result["peak_memory_bytes"]
    facts = [f"matrix product: {rate / 1e12:.3g} TFLOP/s"]
    facts += [f"peak memory: {memory / 1e9:.2f} GB"] if memory is not None else []
    facts += [f"compiling, capturing: {result['compile_seconds']:.1f} s"] if result["compile_seconds"] else []
    rows = []
    for label, row in result["rows"].items():
        reached = row["flops"] / row["seconds"]
        numbers = (row["seconds"], row["flops"] / 1e12, reached / 1e12)
        rows.append([label, *(f"{number:.3g}" for number in numbers), f"{reached / rate:.0%}"])
    titles = ["part", "seconds", "TFLOP", "TFLOP/s", "of the matrix product"]
    machine = f"{description}; {result['device']}, torch {result['torch']}"
    return "\n".join([machine, "; ".join(facts), "", markdown_table(titles, rows)])


def comparison_table(result: dict[str, Any], description: str) -> str:
    """A result of [`compare`] as Markdown, which begins with a description of how both ran."""
    rows = [
        [label, *(f"{values[name]:.3g}" for name in ("original", "ours")), f"{values['ratio']:.2f}"]
        for label, values in result["rows"].items()
    ]
    machine = f"{description}; {result['device']}, torch {result['torch']}"
    return "\n".join([machine, "", markdown_table(["seconds", "the original", "this package", "ratio"], rows)])
