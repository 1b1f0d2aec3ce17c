"""The training loop that every stage shares: accelerate, EMA, whole checkpoints, and a log that hides nothing."""

from __future__ import annotations

import contextlib
import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from .checkpoints import check_none_later, find_checkpoint, save_checkpoint
from .data import make_loader
from .learning_rate import LearningRate


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a run is run; the names are those of the scripts' arguments.

    Args:
        output_dir (`str`): Where the log and the checkpoints go.
        max_train_steps (`int`): Steps in all, those before a resumption included.
        learning_rate ([`LearningRate`]): By step.
        seed (`int`, defaults to 0): Of everything drawn in the run.
        train_batch_size (`int`, defaults to 16): Examples per process and micro batch.
        gradient_accumulation_steps (`int`, defaults to 1): Micro batches per step.
        adam_beta1, adam_beta2, adam_weight_decay, adam_epsilon (`float`): AdamW's; by default
            0.9, 0.999, 0.01 and 1e-8.
        max_grad_norm (`float`, defaults to 1.0): Longer gradients are scaled down to this length.
        ema_decay (`float`, defaults to 0.9999): Of the moving average of the weights, which is what is kept in the
            end. It ramps up over the first steps; 0 keeps the weights themselves.
        checkpointing_steps (`int`, *optional*): A checkpoint every so many steps.
        checkpointing_minutes (`float`, *optional*): A checkpoint whenever so many minutes have passed.
        checkpoints_total_limit (`int`, *optional*): So many are kept.
        resume_from_checkpoint (`str`, *optional*): `"latest"`, or a checkpoint.
        logging_steps (`int`, defaults to 50): A line of the log covers so many steps.
        dataloader_num_workers (`int`, defaults to 0): Processes that make examples; 0 makes them between the steps.
    """

    output_dir: str
    max_train_steps: int
    learning_rate: LearningRate
    seed: int = 0
    train_batch_size: int = 16
    gradient_accumulation_steps: int = 1
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_weight_decay: float = 0.01
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    ema_decay: float = 0.9999
    checkpointing_steps: int | None = None
    checkpointing_minutes: float | None = None
    checkpoints_total_limit: int | None = None
    resume_from_checkpoint: str | None = None
    logging_steps: int = 50
    dataloader_num_workers: int = 0

    def __post_init__(self) -> None:
        for name in ("train_batch_size", "gradient_accumulation_steps", "logging_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        for name in ("checkpointing_steps", "checkpointing_minutes", "checkpoints_total_limit"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise ValueError(f"`{name}` must be above 0, got {getattr(self, name)}.")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"`ema_decay` must be at least 0 and below 1, got {self.ema_decay}.")
        if self.max_grad_norm <= 0:
            raise ValueError(f"`max_grad_norm` must be above 0, got {self.max_grad_norm}.")


# `(model, batch)` to the loss `[B]` that is minimised and what is logged of it by timestep, each `[B]`.
LossFunction = Callable[[nn.Module, dict[str, torch.Tensor]], tuple[torch.Tensor, dict[str, torch.Tensor]]]


@dataclass
class _Progress:
    """Where in the run and in the data a checkpoint was made."""

    seed: int
    step: int = 0
    examples: int = 0

    def state_dict(self) -> dict[str, int]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, int]) -> None:
        if state["seed"] != self.seed:
            raise ValueError(f"`seed` of the run to resume is {state['seed']}, got {self.seed}.")
        self.step, self.examples = state["step"], state["examples"]


def train(
    accelerator: Accelerator,
    config: TrainingConfig,
    model: nn.Module,
    dataset: Dataset,
    compute_loss: LossFunction,
    num_train_timesteps: int,
    on_checkpoint: Callable[[int], None] | None = None,
) -> int:
    """Train a model, or go on training it, and leave the moving average of its weights in it.

    A run that was stopped and resumed equals an unbroken one to the bit. Without dropout, which each process draws by
    itself, what a step does is a function of the seed and the step alone: several processes equal one at the same
    global batch up to the order of summation.

    SIGTERM and SIGINT make the run save a checkpoint after the step it is in, and end.

    Args:
        accelerator (`Accelerator`): Devices, processes, precision and gradient accumulation.
        config ([`TrainingConfig`]): The run.
        model (`nn.Module`): What is trained: everything that takes part, in one module, in float32.
        dataset (`Dataset`): Examples by number, without end; each a `dict` with `timesteps`.
        compute_loss (`Callable`): See `LossFunction`.
        num_train_timesteps (`int`): Steps T of the process, for the log by quarter.
        on_checkpoint (`Callable[[int], None]`, *optional*): Called in the main process with the step whenever a
            checkpoint was saved, while the model holds the averaged weights. It may draw random numbers: the run does
            not notice.

    Returns:
        `int`: The steps done so far; fewer than `config.max_train_steps` if the run was stopped.

    Raises:
        FloatingPointError: if the loss or the gradient is not finite. Nothing of that step is ever saved.
        ValueError: if the checkpoint to resume from does not exist or belongs to a run with another seed, or if the
            folder holds later checkpoints than the one to go on from, or any when the run is new.
    """
    Path(config.output_dir).mkdir(parents=True, exist_ok=True)
    optimizer = torch.optim.AdamW(
        model.parameters(),  # the frozen ones too, so that a run may thaw them when it goes on
        lr=config.learning_rate.peak,
        betas=(config.adam_beta1, config.adam_beta2),
        weight_decay=config.adam_weight_decay,
        eps=config.adam_epsilon,
        fused=True,
    )
    model, optimizer = accelerator.prepare(model, optimizer)
    parameters = list(accelerator.unwrap_model(model).parameters())
    ema = EMAModel(parameters, decay=config.ema_decay, foreach=True)
    progress = _Progress(config.seed)
    accelerator.register_for_checkpointing(ema, progress)
    if config.resume_from_checkpoint is not None:
        path = find_checkpoint(config.output_dir, config.resume_from_checkpoint)
        if path is not None:
            accelerator.load_state(str(path))
            # accelerate would go on counting micro batches, out of phase where `gradient_accumulation_steps` is another
            # now; checkpoints are only written between whole steps.
            accelerator.step = 0
            ema.decay = config.ema_decay
    if progress.step < config.max_train_steps:
        check_none_later(config.output_dir, progress.step)
    ema.to(accelerator.device)

    model.train()
    log = _Log(accelerator, Path(config.output_dir) / "log.jsonl", num_train_timesteps, progress.step)
    saved_step, saved_time = progress.step, time.monotonic()
    loader = make_loader(
        dataset,
        first=progress.examples,
        steps=max(0, config.max_train_steps - progress.step),
        batch_size=config.train_batch_size,
        accumulation=config.gradient_accumulation_steps,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        num_workers=config.dataloader_num_workers,
    )
    global_batch = config.train_batch_size * config.gradient_accumulation_steps * accelerator.num_processes
    bar = tqdm(
        total=config.max_train_steps,
        initial=progress.step,
        disable=not accelerator.is_local_main_process,
        mininterval=5,
    )

    def save() -> None:
        nonlocal saved_step, saved_time
        if progress.step > saved_step:
            log.flush(progress.step)
            save_checkpoint(accelerator, config.output_dir, progress.step, config.checkpoints_total_limit)
            if on_checkpoint is not None and accelerator.is_main_process:
                with _averaged(accelerator.unwrap_model(model), ema), torch.random.fork_rng():
                    on_checkpoint(progress.step)
        saved_step, saved_time = progress.step, time.monotonic()

    with bar, _stop_signal() as stop, _fast_attention(accelerator.device):
        for batch in loader:
            batch = {name: value.to(accelerator.device) for name, value in batch.items()}
            with accelerator.accumulate(model):
                loss, metrics = compute_loss(model, batch)
                accelerator.backward(loss.mean())
                log.add(batch["timesteps"], {"loss": loss, **metrics})
                if accelerator.sync_gradients:
                    rate = config.learning_rate(progress.step)
                    for group in optimizer.param_groups:
                        group["lr"] = rate
                    log.gradient(accelerator.clip_grad_norm_(parameters, config.max_grad_norm), rate)
                optimizer.step()
                optimizer.zero_grad()
            if not accelerator.sync_gradients:
                continue
            ema.step(parameters)
            progress.step += 1
            progress.examples += global_batch
            bar.update()
            if progress.step % config.logging_steps == 0:
                log.flush(progress.step)
            elapsed = (time.monotonic() - saved_time) / 60
            late = config.checkpointing_minutes is not None and elapsed >= config.checkpointing_minutes
            # One process may be told to stop, or see the time pass, before the others.
            stopping, late = _any_process(accelerator, stop.is_set, late)
            if stopping:
                break
            if late or (config.checkpointing_steps and progress.step % config.checkpointing_steps == 0):
                save()
        save()  # in here, where a signal does not end the process halfway
    ema.copy_to(parameters)
    return progress.step


@contextlib.contextmanager
def _averaged(model: nn.Module, ema: EMAModel) -> Iterator[None]:
    """The model with the averaged weights in it, ready to sample from."""
    parameters = list(model.parameters())
    ema.store(parameters)
    ema.copy_to(parameters)
    model.eval()
    try:
        yield
    finally:
        model.train()
        ema.restore(parameters)


class _Log:
    """Means over the steps since the last line: overall, and by quarter of the timesteps, whose losses differ by
    orders of magnitude. One JSON object per line."""

    def __init__(self, accelerator: Accelerator, path: Path, num_train_timesteps: int, step: int) -> None:
        self.accelerator = accelerator
        self.path = path
        self.num_train_timesteps = num_train_timesteps
        self._start(step)

    def _start(self, step: int) -> None:
        self.first_step, self.started = step, time.monotonic()
        self.counts = torch.zeros(4, device=self.accelerator.device)
        self.sums: dict[str, torch.Tensor] = {}
        # The sum over the steps where it is finite, and their number.
        self.grad_norm, self.finite_steps = torch.zeros(2, device=self.accelerator.device)
        self.rate = 0.0

    def add(self, timesteps: torch.Tensor, metrics: dict[str, torch.Tensor]) -> None:
        quarter = timesteps * 4 // self.num_train_timesteps
        self.counts += torch.bincount(quarter, minlength=4)
        for name, values in metrics.items():
            sums = self.sums.setdefault(name, torch.zeros_like(self.counts))
            sums.index_add_(0, quarter, values.detach().to(sums.dtype))

    def gradient(self, norm: torch.Tensor, rate: float) -> None:
        finite = norm.isfinite()
        self.grad_norm += norm.detach().where(finite, 0.0)
        self.finite_steps += finite
        self.rate = rate

    def flush(self, step: int) -> None:
        """Write a line, unless there is nothing new; every process must call it."""
        steps = step - self.first_step
        if steps == 0:
            return
        counts = self.accelerator.reduce(self.counts, "sum").cpu()
        line: dict[str, object] = {"step": step}
        for name, sums in self.sums.items():
            sums = self.accelerator.reduce(sums, "sum").cpu()
            line[name] = _rounded(sums.sum() / counts.sum())
            if name != "loss":
                line[f"{name}_by_quarter"] = [_rounded(mean) for mean in sums / counts]
        line["grad_norm"] = _rounded(self.grad_norm / self.finite_steps)
        line["learning_rate"] = self.rate
        line["seconds_per_step"] = _rounded((time.monotonic() - self.started) / steps)
        line["time"] = time.strftime("%Y-%m-%dT%H:%M:%S")
        self.accelerator.log({name: value for name, value in line.items() if isinstance(value, float)}, step=step)
        if self.accelerator.is_main_process:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, allow_nan=False) + "\n")
        broken = line["loss"] is None
        # Under fp16 a gradient that overflows is skipped by the gradient scaler.
        if self.accelerator.mixed_precision != "fp16":
            broken |= self.finite_steps.item() < steps
        if broken:
            raise FloatingPointError(
                f"The loss or the gradient was not finite between steps {self.first_step} and {step}: {line}"
            )
        self._start(step)


def _rounded(value: torch.Tensor | float) -> float | None:
    """5 digits; None for infinity and NaN (also that of 0 / 0, a mean over nothing), which are no JSON."""
    return float(f"{float(value):.5g}") if math.isfinite(value) else None


@contextlib.contextmanager
def _stop_signal() -> Iterator[_Flag]:
    flag = _Flag()
    previous = {number: signal.signal(number, flag.set) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield flag
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class _Flag:
    is_set = False

    def set(self, *_: object) -> None:
        self.is_set = True


def _any_process(accelerator: Accelerator, *flags: bool) -> list[bool]:
    if accelerator.num_processes == 1:
        return list(flags)
    counts = accelerator.reduce(torch.tensor(flags, dtype=torch.float32, device=accelerator.device), "sum")
    return (counts > 0).tolist()


def _fast_attention(device: torch.device) -> contextlib.AbstractContextManager:
    # On a CPU the fused kernel's bfloat16 backward pass takes 2 to 4 times as long as the plain one, at the lengths of
    # small models: 15 % of a step (torch 2.13).
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else contextlib.nullcontext()
