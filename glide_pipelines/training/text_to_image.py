"""Training a stage of text to image: the base model or the upsampler, for inpainting too."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import nn

from ..models import GLIDEUNet2DConditionModel
from ..sampling import Stage
from ..schedulers import GLIDEDDPMScheduler, GLIDEScheduler
from .dataset import TextToImageDataset
from .lora import add_lora, lora_parameters, lora_settings
from .losses import hybrid_loss
from .timesteps import TimestepWeighting
from .trainer import LossFunction, TrainingConfig, train


if TYPE_CHECKING:
    from peft import LoraConfig  # an optional package

    from .distillation import Distillation


def text_to_image_loss(scheduler: GLIDEScheduler, weighting: TimestepWeighting) -> LossFunction:
    """The loss function of a [`Stage`] on batches of a [`TextToImageDataset`].

    Args:
        scheduler ([`GLIDEDDPMScheduler`] or [`GLIDEDDIMScheduler`]): The noise schedule to train on.
        weighting ([`TimestepWeighting`]): What the timesteps of the batches were sampled by.
    """

    def compute_loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        conditions = dict(batch)
        x_start, noise, timesteps = (conditions.pop(name) for name in ("pixel_values", "noise", "timesteps"))
        x_t = scheduler.train_process.q_sample(x_start, noise, timesteps)
        model_output = model(x_t, timesteps, **conditions)
        terms = hybrid_loss(scheduler, model_output, x_start, noise, timesteps)
        loss = weighting.apply(terms, scheduler.train_process, timesteps)
        return loss, {"mse": terms.mse, "vb": terms.vb}

    return compute_loss


def training_scheduler(stage: Stage) -> GLIDEDDPMScheduler:
    """The process that a stage is trained on, whatever it is sampled with, be it a scheduler of diffusers' own.

    Raises:
        ValueError: if the stage has no scheduler, or is a few-step student.
    """
    given: Any = stage.scheduler
    if given is None:
        raise ValueError("`stage` must have a scheduler to be trained.")
    if given.config.get("trained_timesteps") is not None:
        raise ValueError(
            "`stage` must know all timesteps to be trained, and this is a few-step student: train its teacher, and "
            "distill it again."
        )
    return GLIDEDDPMScheduler.from_config(given.config)


def train_stage(
    accelerator: Accelerator,
    config: TrainingConfig,
    stage: Stage,
    dataset: TextToImageDataset,
    freeze_text_encoder: bool = False,
    gradient_checkpointing: bool = False,
    on_checkpoint: Callable[[int], dict[str, Any] | None] | None = None,
    lora: LoraConfig | None = None,
    compile: bool = False,
    distillation: Distillation | None = None,
) -> int:
    """Train a stage, or adapters of it, and leave the moving average of the weights in it.

    Args:
        accelerator (`Accelerator`): Devices, processes, precision and gradient accumulation.
        config ([`TrainingConfig`]): The run.
        stage ([`Stage`]): Text encoder and UNet, in float32, and the scheduler with the noise schedule to train on.
        dataset ([`TextToImageDataset`]): Examples that fit the stage.
        freeze_text_encoder (`bool`, defaults to `False`): Train the UNet only.
        gradient_checkpointing (`bool`, defaults to `False`): Recompute activations in the backward pass.
        on_checkpoint (`Callable`, *optional*): See [`train`].
        lora (`peft.LoraConfig`, *optional*): Adapters that are added to the stage and trained in its place; see
            [`add_lora`], and [`save_lora`] to save them.
        compile (`bool`, defaults to `False`): Compile the UNet's blocks, see [`compile_blocks`]. `on_checkpoint` runs
            without what was compiled, whose shapes are those of training.
        distillation ([`Distillation`], *optional*): What the stage learns in place of the loss of [`hybrid_loss`].

    Returns:
        `int`: The steps done so far; fewer than `config.max_train_steps` if the run was stopped.

    Raises:
        ValueError: if the stage lacks its text encoder or its scheduler, if it cannot be compiled; and as [`train`]
            does.
    """
    if stage.text_encoder is None:
        raise ValueError("`stage` must have a text encoder to be trained.")
    if distillation is None:
        loss = text_to_image_loss(training_scheduler(stage), dataset.weighting)
    else:
        loss = distillation.loss(accelerator)
    parameters, settings = None, {} if distillation is None else distillation.settings
    settings["resolution"] = stage.sample_size[0]
    changeable = {"resolution", *(() if distillation is None else distillation.changeable)}
    if lora is None:
        stage.text_encoder.requires_grad_(not freeze_text_encoder)
    else:
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            add_lora(stage, lora, freeze_text_encoder)
        parameters, settings = lora_parameters(stage), settings | lora_settings(stage)
    if gradient_checkpointing:
        stage.unet.enable_gradient_checkpointing()
        stage.text_encoder.activation_checkpointing_enable()
    if compile:
        if accelerator.is_fsdp2:
            raise ValueError("`compile` does not work where FSDP shards the weights: leave it out.")
        compile_blocks(stage.unet, accelerator.device)
        if on_checkpoint is not None:
            on_checkpoint = torch.compiler.set_stance("force_eager")(on_checkpoint)
    num_timesteps = dataset.weighting.num_train_timesteps
    return train(
        accelerator, config, stage, dataset, loss, num_timesteps, on_checkpoint, parameters, settings, changeable
    )


def compile_blocks(unet: GLIDEUNet2DConditionModel, device: torch.device) -> None:
    """Have a UNet's blocks compiled by `torch.compile` when they are first used, each for the shapes that it gets.

    It is the same module afterwards: the names and the values of its weights do not change.

    Raises:
        ValueError: if nothing can be compiled for the device, as without a C++ compiler on a CPU, or Triton on a GPU.
    """

    def increment(value: torch.Tensor) -> torch.Tensor:
        return value + 1

    try:
        torch.compile(increment)(torch.zeros(1, device=device))
    except Exception as error:  # whatever the compiler raises
        reason = next(iter(str(error).strip().splitlines()), repr(error))
        raise ValueError(
            f"`compile` needs a `torch.compile` that works on {device.type}, and this one does not: {reason}"
        ) from error
    unet.compile_repeated_blocks(dynamic=False)
