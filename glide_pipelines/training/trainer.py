"""The training loop that every stage shares: accelerate, a moving average of the weights, checkpoints, and a log."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from ..arguments import differences
from .averages import Average, copy_to, moving
from .checkpoints import any_process, check_none_later, find_checkpoint, locked, save_checkpoint
from .learning_rate import LearningRate
from .loader import make_loader
from .log import TrainingLog
from .optimizers import evaluation_weights, make_optimizer
from .power_averages import SIGMA_RELS, exponent, power, reconstruct, remove_snapshots_after, save_snapshot
from .run_state import RunState, random_state
from .sharding import check_sharding, full_tensor, gather, sharded_copy


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """The settings of a run; the names are those of the command line's options.

    Args:
        output_dir (`str`): Where the log and the checkpoints go.
        max_train_steps (`int`): Steps in all, those before a resumption included.
        learning_rate ([`LearningRate`]): The rate of each step, of a run of as many.
        seed (`int`, defaults to 0): Of everything random in the run.
        train_batch_size (`int`, defaults to 16): Examples per process and micro batch.
        gradient_accumulation_steps (`int`, defaults to 1): Micro batches per step.
        optimizer (`str`, defaults to `"adamw"`): See [`~glide_pipelines.training.optimizers.optimizer_class`].
        optimizer_args (`Mapping[str, Any]`): Further settings of the optimizer.
        adam_beta1, adam_beta2, adam_weight_decay, adam_epsilon (`float`): Of Adam and its relatives; by default
            0.9, 0.999, 0.01 and 1e-8.
        max_grad_norm (`float`, defaults to 1.0): Gradients with a larger norm are scaled down to it.
        ema_decay (`float` or `Sequence[float]`, defaults to 0.9999): Decay of the moving average of the weights, which
            is the trained model. It ramps up over the first steps; 0 keeps the weights themselves. Of several, each
            has its average, and the first is the trained model.
        post_hoc_ema_steps (`int`, *optional*): Steps between two snapshots of averages in `output_dir/averages`, of
            which an average of any width is made afterwards.
        ema_sigma_rel (`float`, *optional*): The width of the average that is the trained model, in place of the moving
            one: see [`~glide_pipelines.training.power_averages.reconstruct`].
        checkpointing_steps (`int`, *optional*): Steps between two checkpoints.
        checkpointing_minutes (`float`, *optional*): Minutes between two checkpoints.
        checkpoints_total_limit (`int`, *optional*): How many checkpoints are kept.
        validation_metrics_steps (`int`, *optional*): Steps between two checkpoints of their own, at which
            `on_checkpoint` may measure what takes long.
        resume_from_checkpoint (`str`, *optional*): `"latest"`, or a checkpoint.
        logging_steps (`int`, defaults to 50): Steps that a line of the log covers.
        dataloader_num_workers (`int`, defaults to 0): Processes that make examples; 0 makes them between the steps.
        skip_bad_images (`int`, defaults to 0): How many images the dataset may skip, in all processes together.

    Raises:
        ValueError: if a value is out of its range.
    """

    output_dir: str
    max_train_steps: int
    learning_rate: LearningRate
    seed: int = 0
    train_batch_size: int = 16
    gradient_accumulation_steps: int = 1
    optimizer: str = "adamw"
    optimizer_args: Mapping[str, Any] = field(default_factory=dict)
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_weight_decay: float = 0.01
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    ema_decay: float | Sequence[float] = 0.9999
    post_hoc_ema_steps: int | None = None
    ema_sigma_rel: float | None = None
    checkpointing_steps: int | None = None
    checkpointing_minutes: float | None = None
    checkpoints_total_limit: int | None = None
    validation_metrics_steps: int | None = None
    resume_from_checkpoint: str | None = None
    logging_steps: int = 50
    dataloader_num_workers: int = 0
    skip_bad_images: int = 0

    def __post_init__(self) -> None:
        for name in ("train_batch_size", "gradient_accumulation_steps", "logging_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.ema_sigma_rel is not None:
            exponent(self.ema_sigma_rel)  # checks it
            if self.post_hoc_ema_steps is None:
                raise ValueError("`ema_sigma_rel` needs `post_hoc_ema_steps`.")
        for name in (
            "checkpointing_steps",
            "checkpointing_minutes",
            "checkpoints_total_limit",
            "validation_metrics_steps",
            "post_hoc_ema_steps",
        ):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be above 0, got {getattr(self, name)}.")
        if self.skip_bad_images < 0:
            raise ValueError(f"`skip_bad_images` must be at least 0, got {self.skip_bad_images}.")
        decays = self.ema_decays
        if not decays or len(set(decays)) < len(decays) or not all(0 <= decay < 1 for decay in decays):
            raise ValueError(f"`ema_decay` must be at least 0 and below 1, and no two alike, got {self.ema_decay}.")
        if not self.max_grad_norm > 0:
            raise ValueError(f"`max_grad_norm` must be above 0, got {self.max_grad_norm}.")
        if self.learning_rate.max_train_steps != self.max_train_steps:
            raise ValueError(
                f"`max_train_steps` must be that of the learning rate, {self.learning_rate.max_train_steps}, got "
                f"{self.max_train_steps}."
            )

    @property
    def ema_decays(self) -> tuple[float, ...]:
        """The decays of all averages; the first is that of the trained model."""
        return tuple(self.ema_decay) if isinstance(self.ema_decay, Sequence) else (self.ema_decay,)


# `(model, batch)` to the loss `[B]` that is minimised, and further values for the log, each `[B]`.
LossFunction = Callable[[nn.Module, dict[str, torch.Tensor]], tuple[torch.Tensor, dict[str, torch.Tensor]]]


@dataclass
class _Progress:
    """The position in the run and in the data that a checkpoint holds."""

    seed: int
    dataset: dict[str, Any] | None
    settings: dict[str, Any] | None
    step: int = 0
    examples: int = 0
    bad_rows: dict[str, str] = field(default_factory=dict)

    def load(self, saved: dict[str, Any], max_train_steps: int, changeable: Collection[str]) -> list[str]:
        """Go on from there, if it is the same run. Returns what changed of what may, for people to read."""
        if saved["seed"] != self.seed:
            raise ValueError(f"`seed` of the run to resume is {saved['seed']}, got {self.seed}.")
        earlier = dict(saved.get("settings") or {})
        for name, value in (self.settings or {}).items():
            if name in changeable:
                earlier.setdefault(name, value)  # checkpoints of earlier versions do not hold all of them
        changed_settings = differences(earlier, self.settings or {})
        for name, (then, now) in changed_settings.items():
            if name not in changeable:
                raise ValueError(f"The run to resume is of another model: `{name}` is {then}, got {now}.")
        changes = differences(saved["dataset"] or {}, self.dataset or {})
        if changes and saved["step"] < max_train_steps:
            changed = "; ".join(f"{name} {then}, now {now}" for name, (then, now) in changes.items())
            raise ValueError(
                f"The dataset is not the one of the run to resume: {changed}. Restore it, or start a new run from the "
                "pipeline that this one trained."
            )
        self.step, self.examples, self.bad_rows = saved["step"], saved["examples"], dict(saved["bad_rows"])
        return [
            f"The run goes on with `{name}` {now}; it was {then}." for name, (then, now) in changed_settings.items()
        ]


def train(
    accelerator: Accelerator,
    config: TrainingConfig,
    model: nn.Module,
    dataset: Dataset[Any],
    compute_loss: LossFunction,
    num_train_timesteps: int,
    on_checkpoint: Callable[[int], dict[str, Any] | None] | None = None,
    parameters: Collection[str] | None = None,
    settings: dict[str, Any] | None = None,
    changeable: Collection[str] = (),
) -> int:
    """Train a model, or go on training it, and leave the moving average of its weights in it.

    A run that was stopped and resumed equals an unbroken one to the bit. Several processes equal one at the same global
    batch, up to the order of summation, because a step is a function of the seed and the step's number alone. (Dropout
    is the exception: its masks come from the random state of each process, which is seeded here.)

    SIGTERM and SIGINT make the run finish its step, save a checkpoint, and end. So does an error of the data; one in a
    step saves the state before that step, where there is a single process.

    Args:
        accelerator (`Accelerator`): Devices, processes, precision and gradient accumulation; and whether each process
            holds a part of the weights only (FSDP2).
        config ([`TrainingConfig`]): The run.
        model (`nn.Module`): Everything that is trained, in one module, in float32. Where the weights are sharded it is
            a copy that is trained, and the model stays whole, on the CPU.
        dataset (`Dataset`): Examples by number, without end; each a `dict` with `timesteps`. Its `fingerprint` (a
            `dict`, may be missing) must be the same when a run is resumed; its `bad_rows` (may be missing) are the rows
            that it skipped.
        compute_loss (`Callable`): Takes the model and a batch; returns the loss `[B]` and a `dict` of further values
            `[B]` for the log.
        num_train_timesteps (`int`): Steps T of the process; the log has means by quarter of the timesteps.
        on_checkpoint (`Callable[[int], dict[str, Any] | None]`, *optional*): Called in every process with the step
            whenever a checkpoint was saved, while the model holds the averaged weights; of several averages, once for
            each. What it returns in the main process goes into the log, of all but the first average with
            `_ema_<decay>` after each name. The random numbers that it uses do not change the run.
        parameters (`Collection[str]`, *optional*): Names of what is trained, averaged and saved of the model; by
            default all of it.
        settings (`dict[str, Any]`, *optional*): What must be the same when a run is resumed, as JSON can hold it.
        changeable (`Collection[str]`): Names of those of `settings` that may differ all the same, which is told.

    Returns:
        `int`: The steps done so far; fewer than `config.max_train_steps` if the run was stopped.

    Raises:
        FloatingPointError: if the loss or the gradient is not finite. Nothing of that step is ever saved.
        OSError: if a checkpoint cannot be written, as on a full disk. Nothing of it is left behind.
        ValueError: if accelerate is configured for what training does not take; if the checkpoint to resume from does
            not exist, is damaged, or belongs to a run with another seed, model or dataset; if the folder holds later
            checkpoints than the one to go on from, or any when the run is new; or if another run is under way there.
    """
    _check_parallelism(accelerator)
    check_sharding(accelerator, model, config.optimizer)
    names = {name for name, _ in model.named_parameters()} if parameters is None else set(parameters)
    with contextlib.ExitStack() as stack:
        if accelerator.is_main_process:
            stack.enter_context(locked(config.output_dir))
        set_seed(config.seed, device_specific=True)
        trained = sharded_copy(accelerator, model) if accelerator.is_fsdp2 else model
        bare_optimizer = make_optimizer(
            config.optimizer,
            _named(trained, names).values(),  # the frozen ones too: a resumed run may train them
            lr=config.learning_rate.peak,
            adam={
                "betas": (config.adam_beta1, config.adam_beta2),
                "weight_decay": config.adam_weight_decay,
                "eps": config.adam_epsilon,
            },
            options=config.optimizer_args,
        )
        trained, optimizer = accelerator.prepare(trained, bare_optimizer)
        bare_model = accelerator.unwrap_model(trained)
        weights = _named(bare_model, names)
        averages = {decay: Average(weights, moving(decay)) for decay in config.ema_decays}
        snapshot_steps, snapshots = config.post_hoc_ema_steps or 0, Path(config.output_dir) / "averages"
        widths = SIGMA_RELS if snapshot_steps else ()
        powers = {sigma_rel: Average(weights, power(sigma_rel)) for sigma_rel in widths}
        state = RunState(accelerator, bare_model, weights, bare_optimizer, averages, powers)
        progress = _Progress(config.seed, getattr(dataset, "fingerprint", None), settings)
        if config.resume_from_checkpoint is not None:
            path = find_checkpoint(config.output_dir, config.resume_from_checkpoint)
            if path is not None:
                for change in progress.load(state.load(path), config.max_train_steps, changeable):
                    accelerator.print(change)
        if progress.step < config.max_train_steps:
            check_none_later(config.output_dir, progress.step)
            is_resumed = config.resume_from_checkpoint is not None
            if powers and (accelerator.is_main_process or not is_resumed):  # an error is every process's
                remove_snapshots_after(snapshots, progress.step, is_resumed)

        trained.train()
        global_batch = config.train_batch_size * config.gradient_accumulation_steps * accelerator.num_processes
        path = Path(config.output_dir) / "log.jsonl"
        log = TrainingLog(
            accelerator, path, num_train_timesteps, progress.step, config.max_train_steps, images_per_step=global_batch
        )
        saved_step, saved_time = progress.step, time.monotonic()
        save_steps = (config.checkpointing_steps, config.validation_metrics_steps)
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
        bar = stack.enter_context(
            tqdm(
                total=config.max_train_steps,
                initial=progress.step,
                disable=not accelerator.is_local_main_process,
                mininterval=5,
            )
        )

        def flush() -> None:
            for found in gather_object([progress.bad_rows]):
                progress.bad_rows |= found
            line = log.flush(progress.step, len(progress.bad_rows))
            if line is not None:
                bar.set_postfix(loss=line["loss"], images_per_second=line["images_per_second"], refresh=False)

        def validate(measure: Callable[[int], dict[str, Any] | None]) -> None:
            found: dict[str, Any] = {}
            for decay, average in averages.items():
                suffix = "" if decay == config.ema_decays[0] else f"_ema_{decay}"
                with average.in_model(model), torch.random.fork_rng():
                    own = measure(progress.step) or {}
                found |= {f"{name}{suffix}": value for name, value in own.items()}
            if found:
                log.write({"step": progress.step, **found})

        def save(random: dict[str, Any] | None = None) -> None:
            nonlocal saved_step, saved_time
            if progress.step > saved_step:
                flush()
                save_checkpoint(
                    accelerator, config.output_dir, state, vars(progress), config.checkpoints_total_limit, random
                )
                if on_checkpoint is not None:
                    validate(on_checkpoint)
                log.start(progress.step)
            saved_step, saved_time = progress.step, time.monotonic()

        # From here to the end a signal does not end the process.
        stop = stack.enter_context(_stop_signal())
        stack.enter_context(_fast_attention(accelerator.device))
        batches = iter(loader)
        if config.dataloader_num_workers:
            # A traceback may keep the loader until the process ends, which would wait for workers that heed no signal.
            stack.callback(getattr(batches, "_shutdown_workers"))  # noqa: B009  # torch has no public name for it
        while progress.step < config.max_train_steps:
            micro_batches, error = _next_step(batches, config.gradient_accumulation_steps, progress.bad_rows)
            if error is None and len(progress.bad_rows) > config.skip_bad_images:
                rows = ", ".join(progress.bad_rows)
                error = ValueError(f"`skip_bad_images` is {config.skip_bad_images}, but there are more: {rows}.")
            elapsed = (time.monotonic() - saved_time) / 60
            late = config.checkpointing_minutes is not None and elapsed >= config.checkpointing_minutes
            # One process may receive the signal, see the time pass, or fail, before the others.
            stopping, late, failed = any_process(accelerator, stop.is_set, late, error is not None)
            if failed:
                save()
                raise error or ValueError("Another process could not read its examples.")
            if stopping:
                break
            if late or any(steps and progress.step % steps == 0 for steps in save_steps):
                save()
            before, unchanged = random_state(accelerator.device), True
            try:
                for batch in micro_batches:
                    batch = {name: value.to(accelerator.device) for name, value in batch.items()}
                    with accelerator.accumulate(trained):
                        loss, metrics = compute_loss(trained, batch)
                        accelerator.backward(loss.mean())
                        log.add(batch["timesteps"], {"loss": loss, **metrics})
                        if accelerator.sync_gradients:
                            rate = config.learning_rate(progress.step)
                            for group in optimizer.param_groups:
                                group["lr"] = rate
                            norm = accelerator.clip_grad_norm_(list(weights.values()), config.max_grad_norm)
                            log.add_gradient(full_tensor(norm), rate)
                            unchanged = False
                        optimizer.step()
                        optimizer.zero_grad()
            except Exception:
                if unchanged and accelerator.num_processes == 1:
                    save(before)
                raise
            progress.step += 1
            with evaluation_weights(bare_optimizer):
                for average in (*averages.values(), *powers.values()):
                    average.step(progress.step)
            progress.examples += global_batch
            bar.update()
            last = progress.step == config.max_train_steps
            if powers and (last or progress.step % snapshot_steps == 0):
                flush()  # an error, if the step was not finite
                save_snapshot(snapshots, progress.step, powers, write=accelerator.is_main_process)
            if progress.step % config.logging_steps == 0:
                flush()
        save()
        copy_to(model, gather(averages[config.ema_decays[0]].tensors()))
        if config.ema_sigma_rel is not None and progress.step >= config.max_train_steps:
            accelerator.wait_for_everyone()
            copy_to(model, reconstruct(snapshots, config.ema_sigma_rel, progress.step))
        return progress.step


def _check_parallelism(accelerator: Accelerator) -> None:
    """Refuse what accelerate would do in another way, or do on a CPU only in appearance."""
    for kind, name in (("DEEPSPEED", "DeepSpeed"), ("MEGATRON_LM", "Megatron-LM")):
        # On a CPU accelerate leaves the type as it is, and would keep the weights whole in silence.
        if accelerator.distributed_type.value == kind or os.environ.get(f"ACCELERATE_USE_{kind}") == "true":
            raise ValueError(
                f"accelerate is configured for {name}, which training here does not take: take FSDP (`fsdp_version: "
                "2`), which shards the weights too, or `--multi_gpu`, with `--gradient_checkpointing` or `--lora_rank` "
                "to save memory."
            )


def _named(model: nn.Module, names: set[str]) -> dict[str, nn.Parameter]:
    """The parameters of these names."""
    return {name: parameter for name, parameter in model.named_parameters() if name in names}


@contextlib.contextmanager
def _stop_signal() -> Iterator[_Flag]:
    """A flag that SIGTERM and SIGINT set inside the block, in place of ending the process."""
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


def _next_step(
    batches: Iterator[Any], accumulation: int, bad_rows: dict[str, str]
) -> tuple[list[dict[str, torch.Tensor]], Exception | None]:
    """The micro batches of a step, or the error that there is in place of one. `bad_rows` gets what was skipped."""
    micro_batches = []
    for batch in itertools.islice(batches, accumulation):
        if isinstance(batch, Exception):
            return [], batch
        bad_rows.update(batch.pop("bad_rows", {}))
        micro_batches.append(batch)
    return micro_batches, None


def _fast_attention(device: torch.device) -> contextlib.AbstractContextManager[None]:
    # On a CPU the fused kernel's bfloat16 backward pass takes 2 to 4 times as long as the plain one, at the lengths of
    # small models: 15 % of a step (torch 2.13).
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else contextlib.nullcontext()
