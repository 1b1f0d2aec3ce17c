"""What belongs to one call of a pipeline, and travels with it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any
from weakref import WeakKeyDictionary

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.guiders import BaseGuidance
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from ..sampling import CondFn, SchedulerRun, Stage


@dataclass
class CallState:
    """What a callback may read of the running call, and change in it, through the pipeline's properties.

    Attributes:
        guidance_scale: Of classifier-free guidance.
        has_guider: Whether the call has a guider of its own.
        cond_fns: The score gradients, bound to the call.
        num_timesteps: Evaluations of the model, over both stages.
        stage: `"base"` or `"super_res"` while a stage runs.
        interrupt: True skips the steps that are left.
    """

    guidance_scale: float
    has_guider: bool = False
    cond_fns: Sequence[CondFn] = ()
    num_timesteps: int = 0
    stage: str | None = None
    interrupt: bool = False


@dataclass
class Call:
    """One call of a pipeline: the arguments that pipelines share, as [`GLIDEPipeline`] takes them, and what is made of
    them. The embeddings are those of all images once the prompts are encoded.

    Attributes:
        strength: The share of the first stage's steps that is run.
        num_resample: How often a stage in implicit mode takes each step.
        state: What callbacks may read and change.
        stages: The stages that run, in order, by name.
        runs: The run of each stage's scheduler, by the stage's name; what is stepped is a copy.
        batch_size: Prompts.
        steps_taken: Over both stages.
        part: What the progress bar says of the part of the images that is worked on.
    """

    prompt: str | list[str] | None
    num_images_per_prompt: int
    generator: torch.Generator | list[torch.Generator] | None
    upsample_temperature: float
    eta: float
    super_res_num_inference_steps: int | None
    super_res_timesteps: str | list[int] | None
    super_res_prompt_embeds: torch.Tensor | None
    cond_fn: CondFn | list[CondFn] | None
    cross_attention_kwargs: dict[str, Any] | None
    max_batch_size: int | None
    output_type: str
    return_dict: bool
    callback_on_step_end: Callable | PipelineCallback | MultiPipelineCallbacks | None
    callback_on_step_end_tensor_inputs: list[str]
    # Of a base stage.
    num_inference_steps: int | None = None
    timesteps: str | list[int] | None = None
    guidance_scale: float | None = None
    guider: BaseGuidance | None = None
    negative_prompt: str | list[str] | None = None
    prompt_embeds: torch.Tensor | None = None
    negative_prompt_embeds: torch.Tensor | None = None
    strength: float = 1.0
    num_resample: int = 1
    # Made of the arguments.
    state: CallState = field(init=False)
    stages: dict[str, Stage] = field(init=False)
    runs: dict[str, SchedulerRun] = field(init=False)
    batch_size: int = field(init=False)
    steps_taken: int = field(default=0, init=False)
    part: str = field(default="", init=False)

    @classmethod
    def of(cls, arguments: dict[str, Any]) -> Call:
        """Of the arguments of a pipeline's `__call__` those that pipelines share."""
        names = [each.name for each in fields(cls) if each.init]
        return cls(**{name: arguments[name] for name in names if name in arguments})

    @property
    def is_guided(self) -> bool:
        """Whether the base stage also runs on the negative prompt: at scale 1 it would change nothing."""
        return self.guidance_scale != 1 or self.guider is not None

    @property
    def num_images(self) -> int:
        """Images in all."""
        return self.batch_size * self.num_images_per_prompt


class _CallStates:
    """The states of all pipelines' calls. A pipeline itself keeps none, so that threads may share it."""

    def __init__(self) -> None:
        self._own = threading.local()
        self._running: WeakKeyDictionary[DiffusionPipeline, list[CallState]] = WeakKeyDictionary()
        self._lock = threading.Lock()

    def last(self, pipeline: DiffusionPipeline) -> CallState | None:
        """Of this thread's running call of a pipeline, else of its last one; None before the first one."""
        return self._of_this_thread().get(pipeline)

    def to_change(self, pipeline: DiffusionPipeline) -> list[CallState]:
        """The running call of this thread; where there is none, as in a thread that handles a stop button, all running
        calls of the pipeline."""
        own = self._of_this_thread().get(pipeline)
        with self._lock:
            running = list(self._running.get(pipeline, ()))
        return [own] if own is not None and any(own is state for state in running) else running

    @contextmanager
    def running(self, pipeline: DiffusionPipeline, state: CallState) -> Iterator[None]:
        """Make a state that of the running call."""
        states = self._of_this_thread()
        outer = states.get(pipeline)
        states[pipeline] = state
        with self._lock:
            self._running.setdefault(pipeline, []).append(state)
        try:
            yield
        finally:
            state.cond_fns = ()  # which may hold a CLIP, or the pipeline itself
            with self._lock:
                running = [other for other in self._running[pipeline] if other is not state]
                self._running[pipeline] = running
                is_nested = any(other is outer for other in running)
            if is_nested and outer is not None:  # a callback has called its own pipeline
                states[pipeline] = outer

    def _of_this_thread(self) -> WeakKeyDictionary[DiffusionPipeline, CallState]:
        if not hasattr(self._own, "states"):
            self._own.states = WeakKeyDictionary()
        return self._own.states


call_states = _CallStates()
