"""What a training step costs: time, memory and counted operations."""

from __future__ import annotations

import itertools
import statistics
from typing import Any

import torch
from accelerate import Accelerator

from ..markdown import markdown_table
from ..measuring import flop_counter, machine, make_clock, matmul_rate, peak_memory, seconds_of
from ..sampling import Stage
from .averages import Average, moving
from .lora import add_lora, lora_parameters
from .optimizers import make_optimizer
from .text_to_image import compile_blocks, text_to_image_loss, training_scheduler
from .timesteps import TimestepWeighting


def random_batch(stage: Stage, batch_size: int, device: torch.device) -> dict[str, torch.Tensor]:
    """A batch for a stage, as a [`TextToImageDataset`] makes it, of noise."""
    encoder: Any = stage.text_encoder
    height, width = stage.sample_size
    size, channels = (batch_size, 3, height, width), stage.unet.config.in_channels
    length = encoder.config.max_position_embeddings
    batch = {
        "pixel_values": torch.rand(size, device=device) * 2 - 1,
        "noise": torch.randn(size, device=device),
        "timesteps": torch.arange(batch_size, device=device) * 1000 // batch_size,
        "input_ids": torch.randint(encoder.config.vocab_size, (batch_size, length), device=device),
        "attention_mask": torch.ones(batch_size, length, dtype=torch.long, device=device),
    }
    if channels in (6, 10):
        batch["low_res"] = torch.rand(batch_size, 3, height // 4, width // 4, device=device) * 2 - 1
    if stage.unet.is_inpainter:
        batch["image"], batch["mask"] = batch["pixel_values"], torch.ones(batch_size, 1, height, width, device=device)
    return batch


def benchmark_training(
    accelerator: Accelerator,
    stage: Stage,
    batch_size: int,
    repeats: int = 5,
    optimizer: str = "adamw",
    gradient_checkpointing: bool = False,
    lora_rank: int | None = None,
    compile: bool = False,
    cpu_time: bool = False,
) -> dict[str, Any]:
    """Time whole steps of [`train`], without its loader: loss, gradient, optimizer and average.

    Args:
        accelerator (`Accelerator`): Device and precision.
        stage ([`Stage`]): What is trained. Its weights change.
        batch_size (`int`): Images in a step.
        repeats (`int`, defaults to 5): The median of so many steps is taken, after one to warm up.
        optimizer (`str`, defaults to `"adamw"`): By its name.
        gradient_checkpointing (`bool`, defaults to `False`): Recompute activations.
        lora_rank (`int`, *optional*): Train adapters of this rank.
        compile (`bool`, defaults to `False`): Compile the UNet's blocks, see [`compile_blocks`].
        cpu_time (`bool`, defaults to `False`): Take the processor's time in place of the elapsed time.

    Returns:
        `dict`: `device`, `torch`, `trained_parameters`, `seconds_per_step`, `images_per_second`, `first_step_seconds`
        (with compiling), `flops` of a step without what is recomputed, `matmul_flops_per_second` in the precision of
        the step, `state_bytes`, those of weights, gradients, moments and average, and `peak_memory_bytes` (of the whole
        process on a CPU; None where the system does not tell).
    """
    trained = dict(stage.named_parameters())
    if lora_rank is not None:
        from peft import LoraConfig

        add_lora(stage, LoraConfig(r=lora_rank, lora_alpha=lora_rank))
        trained = lora_parameters(stage)
    parameters = list(trained.values())
    device = accelerator.device
    batch = random_batch(stage, batch_size, device)
    compute_loss = text_to_image_loss(training_scheduler(stage), TimestepWeighting(1000))
    clock = make_clock(device, cpu_time)
    adam = {"betas": (0.9, 0.999), "weight_decay": 0.01, "eps": 1e-8}
    stage.to(device).train()
    if gradient_checkpointing:
        _set_checkpointing(stage, True)
    if compile:
        compile_blocks(stage.unet, device)
    bare = make_optimizer(optimizer, parameters, 1e-6, adam, {})
    model, prepared = accelerator.prepare(stage, bare)
    average, steps = Average(trained, moving(0.9999)), itertools.count(1)

    def step() -> None:
        accelerator.backward(compute_loss(model, batch)[0].mean())
        accelerator.clip_grad_norm_(parameters, 1.0)
        prepared.step()
        prepared.zero_grad()
        average.step(next(steps))

    first = seconds_of(make_clock(device), step)  # elapsed time: compilers are processes of their own
    seconds = statistics.median(seconds_of(clock, step) for _ in range(repeats))
    memory = peak_memory(device)
    # Without what is recomputed, and after the peak was read.
    _set_checkpointing(stage, False)
    with torch.compiler.set_stance("force_eager"), flop_counter() as counter:
        compute_loss(model, batch)[0].mean().backward()
    states = [value for state in bare.state.values() for value in state.values() if isinstance(value, torch.Tensor)]
    # The trained ones twice: their gradients.
    kept = [*stage.parameters(), *parameters, *states, *average.tensors().values()]
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision, torch.float32)
    return {
        **machine(device),
        "trained_parameters": sum(parameter.numel() for parameter in parameters),
        "seconds_per_step": seconds,
        "images_per_second": batch_size / seconds,
        "first_step_seconds": first,
        "flops": counter.get_total_flops(),
        "matmul_flops_per_second": matmul_rate(device, dtype, clock),
        "state_bytes": sum(tensor.numel() * tensor.element_size() for tensor in kept),
        "peak_memory_bytes": memory,
    }


def training_table(result: dict[str, Any], description: str) -> str:
    """A result of [`benchmark_training`] as Markdown; the first line begins with the description of model and run."""
    rate, reached = result["matmul_flops_per_second"], result["flops"] / result["seconds_per_step"]
    memory = result["peak_memory_bytes"]
    rows = [
        ["parameters that are trained", f"{result['trained_parameters'] / 1e6:.3g} M"],
        ["seconds a step", f"{result['seconds_per_step']:.3g}"],
        ["images a second", f"{result['images_per_second']:.3g}"],
        ["first step, seconds", f"{result['first_step_seconds']:.3g}"],
        ["TFLOP/s", f"{reached / 1e12:.3g}, {reached / rate:.0%} of the matrix product's {rate / 1e12:.3g}"],
        ["weights, gradients, moments, average", f"{result['state_bytes'] / 1e9:.2f} GB"],
        ["peak memory", "unknown" if memory is None else f"{memory / 1e9:.2f} GB"],
    ]
    where = f"{description}; {result['device']}, torch {result['torch']}"
    return "\n".join([where, "", markdown_table(["a training step", ""], rows)])


def _set_checkpointing(stage: Stage, on: bool) -> None:
    encoder: Any = stage.text_encoder
    if on:
        stage.unet.enable_gradient_checkpointing()
        encoder.activation_checkpointing_enable()
    else:
        stage.unet.disable_gradient_checkpointing()
        encoder.activation_checkpointing_disable()
