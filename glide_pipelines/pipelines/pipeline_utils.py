"""What every GLIDE pipeline shares around the sampling of its stages: one call, sizes, composition."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import logging, scale_lora_layers, unscale_lora_layers
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image

from ..arguments import check_number
from ..images import common_size, round_pixels
from ..sampling import (
    Constraint,
    CUDAGraphs,
    Denoiser,
    FiniteCheck,
    KnownPixels,
    SchedulerRun,
    Stage,
    Step,
    classifier_free_guidance,
    denoise,
    height_and_width,
    keep_low_res,
    num_steps,
)
from ..schedulers import GLIDEScheduler
from ..single_file import GLIDESingleFileMixin
from .call import Call, CallState, call_states
from .input_checks import (
    check_callable,
    check_callback,
    check_callback_inputs,
    check_callback_outputs,
    check_cross_attention_kwargs,
    check_generator,
    check_guider,
    check_multiple,
    check_output_type,
    check_positive_int,
    rehearse_guider,
)
from .lora import GLIDELoraLoaderMixin
from .pipeline_output import GLIDEPipelineOutput
from .prompted import PromptedPipeline
from .working_area import Box, Size, WorkingArea, rounded_up


logger = logging.get_logger(__name__)

# The released notebooks' spacings (GLIDE, section 4, samples the base model with 150 steps; the notebooks with 100).
DEFAULT_TIMESTEPS = {"base": "100", "super_res": "fast27"}

_LESS_MEMORY = (
    "What needs less memory: a smaller `max_batch_size`; `tile_size`, where GLIDESuperResolutionPipeline enlarges; "
    "bfloat16; `disable_cuda_graphs()`; `enable_model_cpu_offload()`, which keeps one network at a time on the device."
)


class GLIDEPipelineBase(GLIDESingleFileMixin, GLIDELoraLoaderMixin, PromptedPipeline):
    """What the pipelines have in common, for one stage or two.

    What belongs to a call travels with it ([`Call`]), so that threads may share a pipeline; the properties that a
    callback reads show the running call of their own thread.
    """

    image_processor: VaeImageProcessor
    # Whether an image that is not finite is an error, or returned as it is.
    check_finite: bool = True

    # Components that `__init__` can do without.
    _components_with_defaults: tuple[str, ...] = ()
    _callback_tensor_inputs = ["latents", "prompt_embeds", "negative_prompt_embeds", "pred_original_sample"]

    # -- properties that a callback may read, or change while the pipeline runs ---------------------------------------

    @property
    def guidance_scale(self) -> float | None:
        """Scale of classifier-free guidance in the running or the last call; read at every base step."""
        return getattr(call_states.last(self), "guidance_scale", None)

    @property
    def _guidance_scale(self) -> float | None:
        return self.guidance_scale

    @_guidance_scale.setter
    def _guidance_scale(self, value: float) -> None:
        for state in call_states.to_change(self):
            state.guidance_scale = value

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the model also runs on the negative prompt: at scale 1 it would change nothing."""
        state = call_states.last(self)
        return state is not None and (state.guidance_scale != 1 or state.has_guider)

    @property
    def stage(self) -> str | None:
        """`"base"` or `"super_res"` while the pipeline runs, else None."""
        return getattr(call_states.last(self), "stage", None)

    @property
    def num_timesteps(self) -> int:
        """Evaluations of the model in the running or the last call, over both stages.

        They are the steps for most schedulers; 2n - 1 for n steps of Heun's, n + 1 for n of PNDM's. In implicit
        inpainting every step but the last of a stage counts `num_resample` times. An image that is repainted part by
        part counts all of them.
        """
        return getattr(call_states.last(self), "num_timesteps", 0)

    @property
    def interrupt(self) -> bool:
        """A callback sets `pipe._interrupt = True` to skip the steps that are left; another thread may do so too."""
        return getattr(call_states.last(self), "interrupt", False)

    @property
    def _interrupt(self) -> bool:
        return self.interrupt

    @_interrupt.setter
    def _interrupt(self, value: bool) -> None:
        for state in call_states.to_change(self):
            state.interrupt = value

    # -- the stages ---------------------------------------------------------------------------------------------------

    @property
    def scale_factor(self) -> int:
        """How many times larger than the image of the first stage the returned one is."""
        raise NotImplementedError

    @property
    def size_multiple(self) -> int:
        """Height and width of what is generated must be multiples of this number of pixels."""
        raise NotImplementedError

    @property
    def default_size(self) -> tuple[int, int]:
        """Height and width of the images that the last stage was trained on, in pixels."""
        unet = getattr(self, "super_res_unet", None)
        unet = self.unet if unet is None else unet  # a compiled one has no truth value
        return height_and_width(unet.config.sample_size)

    @property
    def default_guidance_scale(self) -> float:
        """Classifier-free guidance of a call that names none; 1 is off."""
        return 1.0

    # Where nothing but the prompt and the known pixels decide what a stage generates, a checkpoint's own few steps do.
    _stages_by_prompt: tuple[str, ...] = ("base", "super_res")

    def default_steps(self, stage: str, steered: bool = False) -> int | str:
        """What a stage is sampled with where a call names no steps: as many as its scheduler's `trained_timesteps` or
        `default_timesteps`, else as in OpenAI's notebooks. What steers the samples on their way, such as a CLIP or a
        sketch, needs time, and `default_timesteps` do not count there.

        Args:
            stage (`str`): `"base"` or `"super_res"`.
            steered (`bool`, defaults to `False`): Whether the call has a `cond_fn`.

        Returns:
            `int` or `str`: A number of steps, or a respacing string.
        """
        scheduler: Any = getattr(self, Stage.component_names(stage)[2], None)
        own = None if scheduler is None else scheduler.config.get("trained_timesteps")
        by_prompt = stage in self._stages_by_prompt and not steered
        if own is None and by_prompt and isinstance(scheduler, GLIDEScheduler):  # others would take other timesteps
            own = scheduler.config.default_timesteps
        return DEFAULT_TIMESTEPS[stage] if own is None else len(own)

    # -- speed --------------------------------------------------------------------------------------------------------

    _cuda_graphs: CUDAGraphs | None = None

    def enable_cuda_graphs(self, max_graphs: int = 8) -> None:
        """Capture each pass of the networks in a CUDA graph the first time, and replay it from then on.

        The results are the same to rounding. It pays off where a pass is repeated: every shape of the inputs (size,
        batch, with or without guidance) is captured once, which costs about as much as a few steps and memory of its
        own. Changed weights and LoRA scales are noticed. Pipelines made by `from_pipe` share the graphs.

        Args:
            max_graphs (`int`, defaults to 8): Graphs to keep; the one that was not used for longest is dropped.

        Raises:
            ValueError: if a UNet is not on a CUDA device, is compiled, or has hooks that move or cast its weights.
        """
        check_positive_int("max_graphs", max_graphs)
        graphs = CUDAGraphs(max_graphs)
        for stage in self.stages.values():
            reason = graphs.obstacle(stage.unet)
            if reason is not None:
                raise ValueError(f"`{stage.prefix}unet` cannot run in CUDA graphs: {reason}.")
        self._cuda_graphs = graphs

    def disable_cuda_graphs(self) -> None:
        """Run the networks without CUDA graphs again, and free the graphs."""
        self._cuda_graphs = None

    def _graphed(self, network: Any) -> Any:
        """The network in graphs, where they are enabled."""
        return network if self._cuda_graphs is None else self._cuda_graphs.of(network)

    # -- one call -----------------------------------------------------------------------------------------------------

    @contextmanager
    def _running_call(self, call: Call) -> Iterator[Call]:
        """Check the arguments that pipelines share, plan the schedulers' runs, and make the call the running one."""
        self._check_channels()
        check_callback(call.callback_on_step_end)
        if isinstance(call.callback_on_step_end, PipelineCallback | MultiPipelineCallbacks):
            call.callback_on_step_end_tensor_inputs = call.callback_on_step_end.tensor_inputs
        check_callback_inputs(call.callback_on_step_end_tensor_inputs, self._callback_tensor_inputs)
        check_positive_int("num_images_per_prompt", call.num_images_per_prompt)
        if call.guidance_scale is None:
            call.guidance_scale = self.default_guidance_scale
        check_number("guidance_scale", call.guidance_scale)
        check_number("eta", call.eta, 0, 1)
        check_number("strength", call.strength, 0, 1)
        check_number("upsample_temperature", call.upsample_temperature, 0)
        check_output_type(call.output_type)
        if not isinstance(call.return_dict, bool):
            raise TypeError(f"`return_dict` must be True or False, got {call.return_dict!r}.")
        check_guider(call.guider)
        if call.max_batch_size is not None:
            check_positive_int("max_batch_size", call.max_batch_size)
        given = call.cond_fn if isinstance(call.cond_fn, list) else [call.cond_fn]
        cond_fns = [each for each in given if each is not None]
        for each in cond_fns:
            check_callable("cond_fn", each)
        call.stages = self.stages
        first = next(iter(call.stages.values()))
        check_cross_attention_kwargs(call.cross_attention_kwargs, first.unet)
        call.batch_size = self._check_prompts(call)
        if call.negative_prompt and not call.is_guided:
            logger.warning("`negative_prompt` changes nothing without guidance, at `guidance_scale` 1.")
        check_generator(call.generator, call.num_images)

        steps = {
            "base": (call.num_inference_steps, call.timesteps),
            "super_res": (call.super_res_num_inference_steps, call.super_res_timesteps),
        }
        call.state = CallState(float(call.guidance_scale), call.guider is not None, cond_fns)
        call.runs = {}
        for name, stage in call.stages.items():
            if stage.scheduler is None:
                raise ValueError(f"`{stage.prefix}unet` needs `{stage.prefix}scheduler`, and there is none.")
            call.runs[name] = SchedulerRun(
                stage.scheduler,
                *steps[name],
                default=self.default_steps(name, steered=stage is first and bool(cond_fns)),
                generator=call.generator,
                eta=call.eta if stage is first else 0.0,
                strength=call.strength if stage is first else 1.0,
                device=self._execution_device,
                prefix=stage.prefix,
            )
            # Only a stage in implicit mode takes its steps several times.
            resamples = call.num_resample > 1 and not stage.unet.is_inpainter
            call.state.num_timesteps += num_steps(call.runs[name], call.num_resample if resamples else 1)
        rehearse_guider(call.guider, call.runs[first.name])
        with call_states.running(self, call.state):
            try:
                yield call
            except RuntimeError as error:
                if re.search("out of memory|can't allocate memory", str(error)):
                    error.add_note(_LESS_MEMORY)
                raise

    def _check_channels(self) -> None:
        """The UNets must be of a kind that fits their stage, which their input channels show."""
        for name, channels in (("unet", (3, 7)), ("super_res_unet", (6, 10))):
            unet = getattr(self, name, None)
            if unet is not None and unet.config.in_channels not in channels:
                raise ValueError(
                    f"`{name}` has {unet.config.in_channels} input channels; {type(self).__name__} needs one with "
                    f"{' or '.join(map(str, channels))}."
                )

    def _bind_cond_fns(self, call: Call, size: tuple[int, int]) -> None:
        """Bind score gradients that know of calls, such as [`CLIPGuidance`], to this one, whose first stage generates
        images of a size."""
        run = next(iter(call.runs.values()))
        call.state.cond_fns = [
            cond_fn.bind(
                call.prompt,
                call.batch_size,
                call.num_images_per_prompt,
                size,
                run.scheduler.config.num_train_timesteps,
                self.scale_factor,
                call.max_batch_size,
            )
            if hasattr(cond_fn, "bind")
            else cond_fn
            for cond_fn in call.state.cond_fns
        ]

    def _encode_call(self, call: Call) -> None:
        """Encode a call's prompts, once for all steps."""
        # The UNet scales its own LoRA layers at every pass.
        scale = (call.cross_attention_kwargs or {}).get("scale")
        text_encoder = next(iter(call.stages.values())).text_encoder
        if scale is not None and text_encoder is not None:
            scale_lora_layers(text_encoder, scale)
        try:
            call.prompt_embeds, call.negative_prompt_embeds, call.super_res_prompt_embeds = self.encode_prompt(
                call.prompt,
                call.num_images_per_prompt,
                call.is_guided,
                call.negative_prompt,
                prompt_embeds=call.prompt_embeds,
                negative_prompt_embeds=call.negative_prompt_embeds,
                super_res_prompt_embeds=call.super_res_prompt_embeds,
            )
        finally:
            if scale is not None and text_encoder is not None:
                unscale_lora_layers(text_encoder, scale)

    # -- sampling -----------------------------------------------------------------------------------------------------

    def prepare_latents(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        scale: float | torch.Tensor = 1.0,
        device: torch.device | None = None,
    ) -> torch.Tensor:
        """The noise that sampling starts from, in float32, as the sample stays whatever the networks' dtype is.

        Args:
            shape (`tuple[int, ...]`): `(B, 3, H, W)`.
            generator (`torch.Generator` or a list of them, *optional*): Source of the noise.
            latents (`torch.Tensor`, *optional*): Unit noise of that shape, in place of a draw.
            scale (`float`, defaults to 1.0): Factor on the noise.
            device (`torch.device`, *optional*): Where to put it; the pipeline's device by default.

        Returns:
            `torch.Tensor` of the given shape.
        """
        device = device or self._execution_device
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        return latents.to(device, torch.float32) * scale

    def _sample_base(self, call: Call, latents: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """The base stage: noise `[B, 3, h, w]` to images in [-1, 1]."""
        guider = copy.deepcopy(call.guider)  # guiders keep state
        if guider is None and call.negative_prompt_embeds is not None:
            guider = classifier_free_guidance(call.state.guidance_scale)
        return self._sample_stage(
            call,
            call.stages["base"],
            latents,
            prompt_embeds=call.prompt_embeds,
            negative_prompt_embeds=call.negative_prompt_embeds,
            guider=guider,
            **kwargs,
        )

    def _enlarge(
        self,
        call: Call,
        low_res: torch.Tensor,
        size: tuple[int, int],
        latents: torch.Tensor | None = None,
        conditions: dict[str, torch.Tensor] | None = None,
        constraint: Constraint | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """The upsampler's stage: images in [-1, 1] of shape `[B, 3, h, w]` to `size`, without guidance.

        Without an upsampler the images as they are; where a callback has interrupted the base stage, enlarged
        bilinearly.
        """
        if "super_res" not in call.runs:
            return low_res
        if call.state.interrupt:
            return F.interpolate(low_res.clamp(-1, 1), size, mode="bilinear", align_corners=False)
        # Training images came from 8-bit files: round the small image as they were.
        low_res = round_pixels(low_res)
        if self.config.low_res_consistency:
            constraint = keep_low_res(low_res, constraint)
        scale = call.upsample_temperature * call.runs["super_res"].init_noise_sigma
        latents = self.prepare_latents((low_res.shape[0], 3, *size), call.generator, latents, scale)
        return self._sample_stage(
            call,
            call.stages["super_res"],
            latents,
            prompt_embeds=call.super_res_prompt_embeds,
            conditions={"low_res": low_res, **(conditions or {})},
            constraint=constraint,
            **kwargs,
        )

    def _sample_stage(
        self,
        call: Call,
        stage: Stage,
        latents: torch.Tensor,
        *,
        unet: Any = None,
        known_pixels: KnownPixels | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Step noise through a stage to images in [-1, 1], with a progress bar and the callback."""
        run, state = call.runs[stage.name].copy(), call.state
        is_first = stage.name == next(iter(call.runs))
        denoiser = Denoiser(
            self._graphed(stage.unet) if unet is None else unet,
            run,
            cond_fns=state.cond_fns if is_first else (),
            cross_attention_kwargs=call.cross_attention_kwargs if is_first else None,
            max_batch_size=call.max_batch_size,
            **kwargs,
        )
        total = num_steps(run, 1 if known_pixels is None else known_pixels.num_resample)
        state.stage = stage.name
        finite = FiniteCheck()
        try:
            with self.progress_bar(total=total) as progress_bar:
                if "desc" not in self._progress_bar_config:
                    is_inpainting = known_pixels is not None or "image" in denoiser.conditions
                    mode = "" if not is_inpainting else ", implicit" if known_pixels is not None else ", fine-tuned"
                    size = f"{latents.shape[-1]}x{latents.shape[-2]}"
                    progress_bar.set_description(f"{stage.name} {size}{mode}{call.part}")
                for step in denoise(denoiser, run, latents, known_pixels):
                    self._end_step(call, denoiser, step)
                    latents = step.sample
                    finite.watch(latents)
                    progress_bar.update()
                    if state.interrupt:
                        break
        finally:
            state.stage = None
        if self.check_finite:
            finite.check(stage.name)
        return latents

    def _end_step(self, call: Call, denoiser: Denoiser, step: Step) -> None:
        """Let the callback see a step, and take over what it changes."""
        if call.callback_on_step_end is not None:
            tensors = {
                "latents": step.sample,
                "prompt_embeds": denoiser.prompt_embeds,
                "negative_prompt_embeds": denoiser.negative_prompt_embeds,
                "pred_original_sample": step.x_start,
            }
            asked = {name: tensors[name] for name in call.callback_on_step_end_tensor_inputs}
            returned = call.callback_on_step_end(self, call.steps_taken, step.timestep, asked)
            changed = check_callback_outputs(returned, tensors)
            if self._cuda_graphs is not None:
                self._cuda_graphs.look_again()  # it may have changed a LoRA
            step.sample = changed.get("latents", step.sample)
            denoiser.prompt_embeds = changed.get("prompt_embeds", denoiser.prompt_embeds)
            denoiser.negative_prompt_embeds = changed.get("negative_prompt_embeds", denoiser.negative_prompt_embeds)
            if not asked.keys() <= {"latents", "pred_original_sample"}:
                denoiser.forget_inputs()
        call.steps_taken += 1
        scale = call.state.guidance_scale
        if denoiser.guider is not None and call.guider is None:
            denoiser.guider.guidance_scale = scale
        elif denoiser.guider is None and call.state.stage == "base" and scale != 1:
            raise ValueError("`guidance_scale` was 1 when the call began: a callback cannot switch guidance on.")

    def _finish(self, call: Call, images: Iterable[torch.Tensor]) -> Any:
        """The output of a call, from images of shape `[3, H, W]`, one at a time: large ones take room as floats."""
        finished = [self.image_processor.postprocess(image[None], call.output_type) for image in images]
        joined = {"pil": lambda: [image for (image,) in finished], "np": lambda: np.concatenate(finished)}
        output = joined.get(call.output_type, lambda: torch.cat(finished))()
        self.maybe_free_model_hooks()
        # `Any` for who checks types, here and in each `__call__`: a union would have every caller ask which it is.
        return GLIDEPipelineOutput(output) if call.return_dict else (output,)

    # -- images that are given ----------------------------------------------------------------------------------------

    def _image_size(self, images: list[Image.Image], height: int | None, width: int | None) -> Size:
        """Size of the returned image, the given images' own by default."""
        own = common_size("image", images) if height is None or width is None else (height, width)
        size = (own[0] if height is None else height, own[1] if width is None else width)
        for name, value in zip(("height", "width"), size, strict=True):
            check_positive_int(name, value)
        return size

    def _working_size(self, working_size: Any) -> Size | None:
        """Height and width that parts of images are fitted to; None leaves them their own."""
        if isinstance(working_size, str) and working_size in ("model", "image"):
            return self.default_size if working_size == "model" else None
        if not isinstance(working_size, list | tuple) or len(working_size) != 2:
            raise ValueError(f"`working_size` must be 'model', 'image' or (height, width), got {working_size!r}.")
        for length in working_size:
            check_multiple("working_size", length, self.size_multiple)
        return int(working_size[0]), int(working_size[1])

    def _working_area(self, box: Box, working_size: Size | None, size: Size | None = None) -> WorkingArea:
        """Work on a part of an image at the working size, or at `size`, which is by default the part's own."""
        if working_size is not None:
            return WorkingArea.fitted(box, working_size, self.size_multiple)
        size = (box[3] - box[1], box[2] - box[0]) if size is None else size
        padded_size = rounded_up(size, self.size_multiple)
        self._warn_of_size(*padded_size)
        return WorkingArea(box, size, padded_size)

    def _warn_of_size(self, height: int, width: int) -> None:
        """Sizes far from the model's own are allowed, with a warning."""
        trained_height, trained_width = self.default_size
        ratio = height * width / (trained_height * trained_width)
        if not 0.5 <= ratio <= 2:
            logger.warning(
                f"The model was trained on images of {trained_height} x {trained_width} pixels; "
                f"{height} x {width} is far from that, and the image may be incoherent."
            )

    # -- composition --------------------------------------------------------------------------------------------------

    @classmethod
    def from_pipe(
        cls,
        pipeline: DiffusionPipeline,
        dtype: torch.dtype | None = None,
        torch_dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> Self:
        """Another pipeline around the components of an existing one, which are shared and not copied.

        Args:
            pipeline (`DiffusionPipeline`): Where the components come from.
            dtype (`torch.dtype`, *optional*): Cast all components, in place; by default they stay as they are.
            torch_dtype (`torch.dtype`, *optional*): The older name of `dtype` in diffusers.
            kwargs: Components that take the place of the pipeline's, or that it lacks (`clip_model=...`).

        Returns:
            A pipeline of this class.

        Raises:
            TypeError: if a keyword is no component of this class.
            ValueError: if a component is missing.
        """
        dtype = torch_dtype if dtype is None else dtype
        components, options = cls._get_signature_keys(cls)
        unknown = sorted(set(kwargs) - set(components) - set(options))
        if unknown:
            raise TypeError(f"{cls.__name__} has no {', '.join(f'`{name}`' for name in unknown)}.")
        shared = {name: part for name, part in pipeline.components.items() if name in components}
        shared.update({name: pipeline.config[name] for name in options if name in pipeline.config})
        shared.update(kwargs)
        parameters = inspect.signature(cls.__init__).parameters.items()
        needed = [name for name, p in parameters if p.default is p.empty and name not in cls._components_with_defaults]
        missing = [name for name in needed if name not in {"self", *shared}]
        if missing:
            raise ValueError(
                f"{type(pipeline).__name__} lacks what {cls.__name__} needs; "
                f"pass {', '.join(f'`{name}`' for name in missing)}."
            )
        composed = cls(**shared)
        composed._cuda_graphs = getattr(pipeline, "_cuda_graphs", None)
        if dtype is not None:
            composed.to(dtype=dtype)
        return composed
