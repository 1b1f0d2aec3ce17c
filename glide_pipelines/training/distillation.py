"""Few-step students: one step of the student is to end where several guided steps of its teacher end.

Progressive distillation (arXiv 2202.00512) of a guided teacher (arXiv 2210.03142, section 3), from all of the teacher's
steps to those of the student at once, or by and by.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedTokenizerBase

from ..metadata import fingerprint
from ..models import tokenize_prompts
from ..sampling import Denoiser, SchedulerRun, Stage, classifier_free_guidance, keep_low_res
from ..schedulers import GLIDEDDIMScheduler
from .inpainting import narrow_for_text_to_image
from .trainer import LossFunction


# What an error of the noise may count in x_0, sqrt(1 - alpha_bar_t) / sqrt(alpha_bar_t) times. It is 157 times at the
# end of the linear schedule, but 20,000 times at that of the cosine one, whose last timesteps say nothing of the image.
MAX_SIGMA = 200.0
# An error of the noise counts 1 / alpha_bar_t times as much as one of v, but no more than this: at the noisiest
# timestep it would be thousands of times, and little else be learned.
MAX_NOISE_WEIGHT = 100.0


class Distillation:
    """A teacher, and what its student is to learn from it.

    The teacher takes `teacher_steps` DDIM steps, with guidance, in place of each step of the student.

    Args:
        teacher ([`Stage`]): A trained stage, which may itself be a student of more steps. Of one that inpaints, the
            student learns to make images from text alone.
        tokenizer (`PreTrainedTokenizerBase`): The text encoder's.
        timesteps (`int` or `Sequence[int]`, defaults to 4): The student's steps: their number, spread evenly from the
            noisiest timestep that says something of the image (999 of the linear schedule, 995 of the cosine one), or
            the timesteps themselves, descending.
        teacher_steps (`int`, defaults to 2): Steps of the teacher for each of them, spread evenly between.
        guidance_scale (`float`, defaults to 1.0): Classifier-free guidance of the teacher, which the student then needs
            no more. Upsamplers are not guided.
        prediction_type (`str`, *optional*): What the student predicts, `"epsilon"` or `"v_prediction"`; by default what
            its teacher does, from which it then starts. To learn another prediction takes longer.
        low_res_consistency (`bool`, defaults to `False`): As the pipeline samples the teacher, see [`GLIDEPipeline`].
        teacher_timesteps (`Sequence[int]`, *optional*): The teacher's timesteps, descending, `teacher_steps` for each
            step of the student, in place of ones at even distances.
        backward (`bool`, defaults to `False`): Backward distillation (arXiv 2405.05224, section 3.1): learn at what the
            student itself makes of the noisiest timestep, not at noised training images. So it learns from the teacher
            how its own errors are mended.

    Attributes:
        scheduler ([`GLIDEDDIMScheduler`]): The student's.

    Raises:
        ValueError: if the teacher lacks a part, or the steps do not fit each other or the teacher.
    """

    def __init__(
        self,
        teacher: Stage,
        tokenizer: PreTrainedTokenizerBase,
        timesteps: int | Sequence[int] = 4,
        teacher_steps: int = 2,
        guidance_scale: float = 1.0,
        prediction_type: str | None = None,
        low_res_consistency: bool = False,
        teacher_timesteps: Sequence[int] | None = None,
        backward: bool = False,
    ) -> None:
        if teacher.text_encoder is None or teacher.scheduler is None:
            raise ValueError("`teacher` must have a text encoder and a scheduler.")
        if teacher_steps < 1:
            raise ValueError(f"`teacher_steps` must be at least 1, got {teacher_steps}.")
        if teacher.name != "base" and guidance_scale != 1:
            raise ValueError(f"`guidance_scale` must be 1: upsamplers are not guided. Got {guidance_scale}.")
        self.teacher = Stage(
            teacher.name, teacher.text_encoder, narrow_for_text_to_image(teacher.unet), teacher.scheduler
        )
        self.teacher_steps, self.guidance_scale = teacher_steps, guidance_scale
        self.low_res_consistency, self.backward = low_res_consistency, backward
        self._empty = tokenize_prompts(tokenizer, [""])
        given: Any = teacher.scheduler
        teacher_scheduler = GLIDEDDIMScheduler.from_config(given.config)
        plain = {"trained_timesteps": None, "default_timesteps": None}
        schedule = GLIDEDDIMScheduler.from_config(given.config, **plain, timestep_spacing="trailing")
        noisiest = int((schedule.train_process.sigmas <= MAX_SIGMA).sum()) - 1
        if isinstance(timesteps, int):
            schedule.set_timesteps(timesteps)
            steps = [min(timestep, noisiest) for timestep in schedule.timesteps.tolist()]
        else:
            schedule.set_timesteps(timesteps=timesteps)
            steps = schedule.timesteps.tolist()
            if steps[0] > noisiest:
                raise ValueError(
                    f"`timesteps` must begin at {noisiest} or below on this noise schedule: x_t says nothing of the "
                    f"image above it. Got {steps[0]}."
                )
        changes: dict[str, Any] = plain | {"trained_timesteps": steps}
        if prediction_type is not None:
            changes["prediction_type"] = prediction_type
        self.scheduler = GLIDEDDIMScheduler.from_config(given.config, **changes)
        self.scheduler.set_timesteps(len(steps))
        if teacher_steps > min(above - below for above, below in pairwise([*steps, -1])):
            raise ValueError(f"`teacher_steps` {teacher_steps} do not fit between the timesteps {steps}.")
        trained = teacher_scheduler.config.trained_timesteps
        self._chosen = None if teacher_timesteps is None else list(teacher_timesteps)
        if self._chosen is not None and trained is not None:
            raise ValueError("`teacher_timesteps` are no choice where `teacher` is itself a student.")
        own = self._chosen if trained is None else list(trained)
        if own is None:
            # -1 is the clean image.
            own = [
                round(above + (below - above) * part / teacher_steps)
                for above, below in pairwise([*steps, -1])
                for part in range(teacher_steps)
            ]
        elif own[::teacher_steps] != steps or len(own) != len(steps) * teacher_steps:
            raise ValueError(
                f"`teacher_timesteps` must be {teacher_steps} (`teacher_steps`) for each of the timesteps {steps}, "
                f"which come first among them, got {own}."
                if trained is None
                else f"`teacher` is itself a student, of the timesteps {own}: `timesteps` must be every n-th of them, "
                f"with `teacher_steps` n, got {steps} and {teacher_steps}."
            )
        self._run = SchedulerRun(teacher_scheduler, timesteps=own)

    def new_student(self) -> Stage:
        """A copy of the teacher, to be trained, with the scheduler of the student."""
        student = copy.deepcopy(self.teacher)
        teacher: Any = self.teacher.scheduler
        if self.scheduler.config.prediction_type != teacher.config.prediction_type:
            # What the last layer says is of another kind: begin with nothing of it.
            for parameter in student.unet.conv_out.parameters():
                nn.init.zeros_(parameter)
        student.scheduler = self.scheduler
        return student

    @property
    def num_steps(self) -> int:
        """Steps of the student."""
        return len(self.scheduler.process)

    # A run may go on with more steps of the teacher, or at the student's own samples: the student is the same.
    changeable = ("teacher_steps", "teacher_timesteps", "backward_distillation")

    @property
    def settings(self) -> dict[str, Any]:
        """What must be the same when a run is resumed, but for what is `changeable`."""
        return {
            "teacher": fingerprint((self.teacher.text_encoder, self.teacher.unet, self.teacher.scheduler)),
            "timesteps": self.scheduler.timesteps.tolist(),
            "teacher_steps": self.teacher_steps,
            "guidance_scale": self.guidance_scale,
            "prediction_type": self.scheduler.config.prediction_type,
            "low_res_consistency": self.low_res_consistency,
            "teacher_timesteps": self._chosen,
            "backward_distillation": self.backward,
        }

    def loss(self, accelerator: Accelerator) -> LossFunction:
        """The loss of a student, as [`train`] takes it: the mean squared error of v, which is 1 + SNR times that of x_0
        (arXiv 2202.00512, section 4), or of the noise with the same weights, as far as they can be learned with.

        In the batches, `timesteps` are steps of the student: 0 is the last one before the clean image, as in
        `scheduler.process`.

        Args:
            accelerator (`Accelerator`): Where the teacher is to run, and in which precision.
        """
        self.teacher.to(accelerator.device).requires_grad_(False).eval()
        process, predicts_noise = self.scheduler.process, self.scheduler.config.prediction_type == "epsilon"
        weights = (1 / process.alphas_cumprod).clamp(max=MAX_NOISE_WEIGHT)

        def compute_loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, Any]]:
            conditions = dict(batch)
            x_start, noise, step = (conditions.pop(name) for name in ("pixel_values", "noise", "timesteps"))
            if self.backward:
                noisiest = torch.full_like(step, self.num_steps - 1)
                x_t = self.samples(model, process.q_sample(x_start, noise, noisiest), step, **conditions)
            else:
                x_t = process.q_sample(x_start, noise, step)
            with accelerator.autocast():
                x_start = self.target(x_t, step, **conditions)
            target = (process.predict_noise if predicts_noise else process.velocity)(x_t, x_start, step)
            prediction, _ = model(x_t, process.timesteps.to(step.device)[step], **conditions).float().chunk(2, dim=1)
            mse = (prediction - target).square().flatten(1).mean(1)
            return mse * process.at(weights, step, mse) if predicts_noise else mse, {"mse": mse}

        return compute_loss

    @torch.no_grad()
    def samples(
        self, model: nn.Module, x_t: torch.Tensor, step: torch.Tensor, **conditions: torch.Tensor
    ) -> torch.Tensor:
        """What the student makes of noise by the time that its steps begin.

        Args:
            model (`nn.Module`): The student.
            x_t (`torch.Tensor` of shape `[B, 3, H, W]`): Noised images at the first of its timesteps.
            step (`torch.Tensor` of shape `[B]`): Before which step each row stops, see [`~Distillation.loss`].
            conditions (`torch.Tensor`): What the student takes besides: `input_ids`, `attention_mask`, `low_res`.

        Returns:
            `torch.Tensor` of shape `[B, 3, H, W]`: x_t of the row's own step.
        """
        x_t = x_t.clone()
        for each in range(self.num_steps - 1, 0, -1):
            rows = (step < each).nonzero().flatten()
            # All processes call the model equally often, as a sharded one needs it.
            some = rows if len(rows) else step.new_zeros(1)
            timestep = self.scheduler.process.timesteps[each].to(x_t.device)
            here = {name: value[some] for name, value in conditions.items()}
            with torch.compiler.set_stance("force_eager"):  # else compiled for each number of rows
                prediction = model(x_t[some], timestep.expand(len(some)), **here).float()
            if len(rows):
                keep = keep_low_res(here["low_res"]) if self.low_res_consistency else None
                x_t[rows] = self.scheduler.step(prediction, timestep, x_t[rows], denoised_fn=keep).prev_sample
        return x_t

    @torch.no_grad()
    def target(
        self,
        x_t: torch.Tensor,
        step: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        **conditions: torch.Tensor,
    ) -> torch.Tensor:
        """The x_0 with which one DDIM step of the student ends where the teacher ends.

        Args:
            x_t (`torch.Tensor` of shape `[B, 3, H, W]`): Where the student's step begins.
            step (`torch.Tensor` of shape `[B]`): Which step that is, see [`~Distillation.loss`].
            input_ids, attention_mask (`torch.Tensor` of shape `[B, L]`): The prompts.
            conditions (`torch.Tensor`): What the UNet takes besides: `low_res`.

        Returns:
            `torch.Tensor` of shape `[B, 3, H, W]`: A weighted mean of the teacher's estimates of x_0.
        """
        prompt_embeds, negative_prompt_embeds, guider = self.teacher.encode(input_ids, attention_mask), None, None
        if self.guidance_scale != 1:
            guider = classifier_free_guidance(self.guidance_scale)
            negative_prompt_embeds = self.teacher.encode(**self._empty.to(x_t.device)).expand_as(prompt_embeds)
        x_start = torch.empty_like(x_t)
        for each in step.unique().tolist():  # the sampler takes a batch at one timestep
            rows = step == each
            low_res = conditions["low_res"][rows] if self.low_res_consistency else None
            denoiser = Denoiser(
                self.teacher.unet,
                self._run,
                prompt_embeds[rows],
                None if negative_prompt_embeds is None else negative_prompt_embeds[rows],
                guider,
                {name: value[rows] for name, value in conditions.items()},
                None if low_res is None else keep_low_res(low_res),
            )
            sample, first = x_t[rows], (self.num_steps - 1 - each) * self.teacher_steps
            for index in range(first, first + self.teacher_steps):
                sample = self._run.step(index, denoiser(sample, index), sample, sample)
            x_start[rows] = self.scheduler.process.ddim_x_start(sample, x_t[rows], each)
        return x_start
