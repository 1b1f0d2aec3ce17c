"""What belongs to one call of a pipeline, and travels with it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from diffusers.guiders import BaseGuidance
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from ..sampling import CondFn, SchedulerRun, Stage


@dataclass
class CallState:
    """What a callback may read of the running call, and change in it, through the pipeline's properties.

    Attributes:
        guidance_scale: Of classifier-free guidance.
        cond_fns: The score gradients, bound to the call.
        num_timesteps: Evaluations of the model, over both stages.
        stage: `"base"` or `"super_res"` while a stage runs.
        interrupt: True skips the steps that are left.
    """

    guidance_scale: float
    cond_fns: Sequence[CondFn] = ()
    num_timesteps: int = 0
    stage: str | None = None
    interrupt: bool = False


@dataclass
class Call:
    """One call of a pipeline, its arguments checked and its schedulers' runs planned.

    Attributes:
        state: What callbacks may read and change.
        stages: The stages that run, in order, by name.
        batch_size: Prompts.
        num_images_per_prompt: Images for each of them.
        runs: The run of each stage's scheduler, by the stage's name; what is stepped is a copy.
        prompts: The arguments of `encode_prompt` that name prompts and embeddings.
        generator: Source of all noise.
        upsample_temperature: Factor on the upsampler's starting noise.
        guider: In place of classifier-free guidance.
        cross_attention_kwargs: Passed to the UNet of the first stage.
        max_batch_size: The UNets take at most so many inputs at a time.
        output_type: `"pil"`, `"np"`, `"pt"` or `"latent"`.
        return_dict: False gives a tuple.
        callback, callback_inputs: Called after each step, with these tensors.
        prompt_embeds, negative_prompt_embeds, super_res_prompt_embeds: Set once the prompts are encoded.
        steps_taken: Over both stages.
        part: What the progress bar says of the part of the images that is worked on.
    """

    state: CallState
    stages: dict[str, Stage]
    batch_size: int
    num_images_per_prompt: int
    runs: dict[str, SchedulerRun]
    prompts: dict[str, Any]
    generator: torch.Generator | list[torch.Generator] | None
    upsample_temperature: float
    guider: BaseGuidance | None
    cross_attention_kwargs: dict[str, Any] | None
    max_batch_size: int | None
    output_type: str
    return_dict: bool
    callback: Callable | None
    callback_inputs: Sequence[str]
    prompt_embeds: torch.Tensor | None = field(default=None, init=False)
    negative_prompt_embeds: torch.Tensor | None = field(default=None, init=False)
    super_res_prompt_embeds: torch.Tensor | None = field(default=None, init=False)
    steps_taken: int = field(default=0, init=False)
    part: str = field(default="", init=False)

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
