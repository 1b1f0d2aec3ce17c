"""What `glide app` does for its visitors: it checks what they send, shares the machine among them step by step, and
shows the estimate of the image while it is sampled. Nothing here knows of the page."""

from __future__ import annotations

import argparse
import itertools
import logging
import math
import queue
import secrets
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from diffusers import DiffusionPipeline
from PIL import Image, ImageOps

from glide_pipelines import GLIDEImg2ImgPipeline, GLIDEInpaintPipeline, GLIDEPipeline, GLIDESuperResolutionPipeline
from glide_pipelines.arguments import check_number
from glide_pipelines.images import load_images
from glide_pipelines.metadata import text_chunks

from . import options
from .draw import OF_THE_BASE_MODEL
from .errors import UserError
from .loading import (
    fast_values,
    model_values,
    open_pipeline,
    other_scheduler,
    set_schedulers,
    shipped,
    step_values,
)
from .output import colour_space
from .records import about_images, make_record


TASKS: dict[str, type[DiffusionPipeline]] = {
    "Draw": GLIDEPipeline,
    "Edit": GLIDEInpaintPipeline,
    "Sketch": GLIDEImg2ImgPipeline,
    "Enlarge": GLIDESuperResolutionPipeline,
}
# What a request may ask for.
MAX_PROMPT = 1000  # characters
MAX_IMAGES = 4
MAX_STEPS = 250
MAX_GUIDANCE = 30
# What a file may hold.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
MAX_FILE_SIZE = 25 * 2**20  # bytes
MAX_PIXELS = 25_000_000  # of a photo: the 24 megapixels of a good phone
MAX_SMALL_PIXELS = 256 * 256  # of what is enlarged, which takes sixteen times as many
# Requests that run or wait: of all visitors, and of one address.
MAX_REQUESTS = 16
MAX_REQUESTS_EACH = 4
PREVIEW_INTERVAL = 0.3  # seconds
# In the record of an image, in place of files: `glide --like` says that they are missing, and takes others.
SENT_IMAGE, PAINTED_MASK = "the image sent to glide app", "the mask painted in glide app"
Models = dict[str, dict[str, DiffusionPipeline]]  # a pipeline for each task that a model can do


# -- what visitors send ------------------------------------------------------------------------------------------------


def open_photo(file: str | Path | BytesIO, name: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A visitor's image, upright and in 8 bits. What is too large is refused before it is decoded.

    Args:
        file (`str`, `Path` or `BytesIO`): The file.
        name (`str`): What the visitor calls it.
        max_pixels (`int`): Its height times width may be so much.

    Raises:
        UserError: naming the file, if it is no image, or too large a one.
    """
    try:
        with Image.open(file, formats=FORMATS) as image:  # reads the header alone
            check_size(image, name, max_pixels)
            upright = ImageOps.exif_transpose(image)
            return load_images("image", upright)[0] if upright.mode.startswith(("I", "F")) else upright
    except FileNotFoundError as error:
        raise UserError(f"{name} is no longer here: send it again.") from error
    except Image.DecompressionBombError as error:
        raise UserError(f"{name} has too many pixels; {max_pixels:,} in all are allowed here.") from error
    except UserError:
        raise
    except Exception as error:  # decoders raise what they like
        raise UserError(f"{name} cannot be read as an image (PNG, JPEG, WebP, GIF, BMP or TIFF).") from error


def check_size(image: Image.Image, name: str, max_pixels: int = MAX_PIXELS) -> None:
    """Refuse an image of more pixels."""
    if image.width * image.height > max_pixels:
        raise UserError(f"{name} has {image.width} x {image.height} pixels; {max_pixels:,} in all are allowed here.")


def read_seed(text: Any) -> int:
    """The seed that a text names, or a new one if it is empty."""
    text = check_text("seed", text).strip()
    if not text:
        return secrets.randbelow(2**32)
    try:
        return options.seed(text)
    except argparse.ArgumentTypeError as error:
        raise UserError(f"The seed {error}.") from error


def check_text(name: str, text: Any, required: bool = False) -> str:
    """A text of at most `MAX_PROMPT` characters, which may be required not to be empty."""
    text = "" if text is None else text
    if not isinstance(text, str) or len(text) > MAX_PROMPT:
        raise UserError(f"The {name} must be a text of at most {MAX_PROMPT} characters.")
    if required and not text.strip():
        raise UserError(f"The {name} is empty: say what the image shall show.")
    return text


def check_range(name: str, value: Any, low: float, high: float) -> float:
    """A number between `low` and `high`."""
    try:
        check_number(name, value, low, high)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name} must be a number from {low} to {high}, got {value!r}.") from error
    return value


def check_whole(name: str, value: Any, high: int) -> int:
    """A whole number from 1 to `high`."""
    if check_range(name, value, 1, high) != int(value):
        raise UserError(f"{name} must be a whole number, got {value!r}.")
    return int(value)


# -- whose turn it is --------------------------------------------------------------------------------------------------


class Job:
    """A request that runs or waits.

    Attributes:
        visitor (`str`): Who is served in turn: an address.
        session (`str`): Whose Stop button stops it: a tab of a browser.
        stopped (`bool`): Asked to end after the step that runs.
        notes (`list[str]`): What the library warned of.
    """

    def __init__(self, visitor: str, session: str) -> None:
        self.visitor = visitor
        self.session = session
        self.stopped = False
        self.notes: list[str] = []


class Turns:
    """Whose step is next: the visitors' in turn, and of one visitor's requests the oldest.

    So a long request blocks nobody: whoever comes shares the machine with those who are there.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._jobs: dict[str, list[Job]] = {}  # of each visitor; the first visitor's first has the turn

    def join(self, job: Job) -> None:
        """Line up, unless there are too many."""
        with self._changed:
            if len(self._jobs.get(job.visitor, ())) >= MAX_REQUESTS_EACH:
                raise UserError(f"You have {MAX_REQUESTS_EACH} requests here already: stop one, or wait for it.")
            if sum(map(len, self._jobs.values())) >= MAX_REQUESTS:
                raise UserError(f"{MAX_REQUESTS} requests are here already: try again in a minute.")
            self._jobs.setdefault(job.visitor, []).append(job)

    def wait(self, job: Job) -> None:
        """Return when it is this job's turn, or it was stopped."""
        with self._changed:
            self._changed.wait_for(lambda: job.stopped or next(iter(self._jobs.values()))[0] is job)

    def pass_on(self, job: Job) -> None:
        """Let the other visitors take a step, and wait for the next turn."""
        with self._changed:
            self._jobs[job.visitor] = self._jobs.pop(job.visitor)
            self._changed.notify_all()
        self.wait(job)

    def leave(self, job: Job) -> None:
        """Make room."""
        with self._changed:
            self._jobs[job.visitor].remove(job)
            if not self._jobs[job.visitor]:
                del self._jobs[job.visitor]
            self._changed.notify_all()

    def stop(self, session: str | None = None, job: Job | None = None) -> None:
        """Stop one job, or those of a session."""
        with self._changed:
            for each in itertools.chain.from_iterable(self._jobs.values()):
                each.stopped = each.stopped or each is job or (session is not None and each.session == session)
            self._changed.notify_all()

    def __len__(self) -> int:
        with self._changed:
            return sum(map(len, self._jobs.values()))


# -- sampling ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Progress:
    """How far a request is.

    Attributes:
        text (`str`): In words.
        images (`tuple[PIL.Image.Image, ...]`): The images if it is done, else the estimates of them, at the size that
            the model works at.
        seeds (`tuple[int, ...]`): Of each image; with its own seed an image can be generated again alone.
        share (`float`): Of the steps, from 0 to 1.
        done (`bool`): Nothing follows.
        notes (`tuple[str, ...]`): What the library warned of.
    """

    text: str
    images: tuple[Image.Image, ...] = ()
    seeds: tuple[int, ...] = ()
    share: float = 0.0
    done: bool = False
    notes: tuple[str, ...] = ()


class NotesHandler(logging.Handler):
    """Keeps what the library warns of, such as a prompt that the model does not know, with the job of the thread."""

    jobs = threading.local()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one warning."""
        job = getattr(self.jobs, "current", None)
        if job is not None:
            job.notes.append(record.getMessage())


class Studio:
    """Samples for visitors.

    Args:
        models (`dict[str, dict[str, DiffusionPipeline]]`): By name, their pipelines by task; the first is the default.
        given (`dict`, *optional*): Options of the command: `steps`, `super_res_steps`, `fast`, and, for the images to
            remember, `scheduler` and `super_res_scheduler` of the models, and `inpaint_model` where the first one does
            not edit.
    """

    def __init__(self, models: Models, given: dict[str, Any] | None = None) -> None:
        self.models = models
        self.given = given or {}
        self.turns = Turns()

    def options(self, pipe: DiffusionPipeline) -> dict[str, Any]:
        """The options of the command, and what `--fast` stands for with one of the pipelines."""
        return self.given | fast_values(self.given, pipe)

    def sample(
        self,
        task: str,
        visitor: str,
        session: str,
        *,
        model: str,
        prompt: str,
        seed: str | None = None,
        num_images: int = 1,
        scheduler: str | None = None,
        **given: Any,
    ) -> Iterator[Progress]:
        """Sample, and say how far it is at least once in a second.

        Closing the iterator, as happens when the tab is closed that asked, stops it after the step that runs.

        Args:
            task (`str`): One of `TASKS`.
            visitor, session (`str`): Who asks, see [`Job`].
            model (`str`): One of `models`.
            prompt (`str`): What the image shows.
            seed (`str`): Of the first image, the next ones' follow; a new one if it is empty.
            num_images (`int`): So many, of one prompt.
            scheduler (`str`, *optional*): One of `options.SCHEDULERS`; the model's own by default.
            given: `negative_prompt`, `guidance_scale`, `steps`, `strength`, `image` and `mask_image`, where the task
                takes them.

        Yields:
            [`Progress`]: the last one with the images.

        Raises:
            UserError: if the request is at fault.
        """
        pipe = self._pipeline(task, model, scheduler)
        first = read_seed(seed)
        seeds = tuple(range(first, first + check_whole("The number of images", num_images, MAX_IMAGES)))
        call = {"prompt": check_text("prompt", prompt, required=True), **self._call_values(task, pipe, given)}
        record = self._record(task, model, scheduler, pipe, call)
        job = Job(visitor, session)
        self.turns.join(job)
        updates: queue.SimpleQueue[Progress | Exception] = queue.SimpleQueue()
        threading.Thread(target=self._run, args=(job, pipe, call, seeds, record, updates), daemon=True).start()
        try:
            progress: Progress | Exception = Progress("Waiting for a turn.", seeds=seeds)
            while True:
                if isinstance(progress, Exception):
                    raise progress
                yield progress
                if progress.done:
                    return
                try:
                    progress = updates.get(timeout=1)
                except queue.Empty:  # what is yielded again shows whether somebody still listens
                    continue
        finally:
            self.turns.stop(job=job)

    def _pipeline(self, task: str, model: str, scheduler: str | None) -> DiffusionPipeline:
        if model not in self.models:
            raise UserError(f"The model must be one of {', '.join(self.models)}, got {model!r}.")
        if task not in self.models[model]:
            raise UserError(f"{model} has no upsampler: it cannot enlarge.")
        pipe = self.models[model][task]
        if not scheduler:
            return pipe
        if scheduler not in options.SCHEDULERS:
            raise UserError(f"The scheduler must be one of {', '.join(options.SCHEDULERS)}, got {scheduler!r}.")
        name = "super_res_scheduler" if task == "Enlarge" else "scheduler"
        pipe = type(pipe).from_pipe(pipe, **{name: other_scheduler(getattr(pipe, name), scheduler)})
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def _call_values(self, task: str, pipe: DiffusionPipeline, given: dict[str, Any]) -> dict[str, Any]:
        """What the task's pipeline takes besides the prompt, checked."""
        values = dict(given)
        if "negative_prompt" in values:
            values["negative_prompt"] = check_text("negative prompt", values["negative_prompt"]) or None
        if "guidance_scale" in values:
            check_range("Guidance", values["guidance_scale"], 0, MAX_GUIDANCE)
        if "strength" in values:
            check_range("The strength", values["strength"], 0, 1)
        if task == "Sketch":
            # Nothing of a sketch is kept as it is, so the image gets the size that the model works at.
            values["image"] = ImageOps.contain(values["image"], pipe.default_size[::-1])
        steps = check_whole("The number of steps", values.pop("steps"), MAX_STEPS) if "steps" in values else None
        given = self.options(pipe)
        if task == "Enlarge":
            check_size(values["image"], "The image", MAX_SMALL_PIXELS)
            return values | step_values(super_res_steps=steps or given.get("super_res_steps"))
        return values | step_values(steps or given.get("steps"), given.get("super_res_steps"))

    def _record(
        self, task: str, model: str, scheduler: str | None, pipe: DiffusionPipeline, call: dict[str, Any]
    ) -> dict[str, Any]:
        """What `glide` would remember of such a request."""
        names = ("negative_prompt", "guidance_scale", "strength")
        given = {**self.options(pipe), **{name: call.get(name) for name in names}, "model": model}
        if task == "Edit" and model == next(iter(self.models)):
            given["model"] = self.given.get("inpaint_model") or model
        prefix = "super_res_" if task == "Enlarge" else ""
        given[f"{prefix}steps"] = call.get(f"{prefix}num_inference_steps") or given.get(f"{prefix}steps")
        given[f"{prefix}scheduler"] = scheduler or given.get(f"{prefix}scheduler")
        if task == "Enlarge":
            given |= {**dict.fromkeys(OF_THE_BASE_MODEL), "enlarge": True}
        given["dtype"] = str(pipe.dtype).removeprefix("torch.")
        given["image"] = None if task == "Draw" else SENT_IMAGE
        given["mask"] = PAINTED_MASK if task == "Edit" else None
        return make_record(given, pipe, {})

    def _run(
        self,
        job: Job,
        pipe: DiffusionPipeline,
        call: dict[str, Any],
        seeds: tuple[int, ...],
        record: dict[str, Any],
        updates: queue.SimpleQueue[Progress | Exception],
    ) -> None:
        """Run one job in a thread of its own."""
        NotesHandler.jobs.current = job
        latest = Progress("Stopped before the first step.", seeds=seeds)
        shown = -math.inf

        def on_step(running: DiffusionPipeline, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            nonlocal latest, shown
            total, estimate = running.num_timesteps, tensors["pred_original_sample"]
            doing = "Enlarging" if running.stage == "super_res" else "Sampling"
            latest = replace(latest, text=f"{doing}: step {step + 1} of {total}", share=(step + 1) / total)
            if monotonic() - shown > PREVIEW_INTERVAL:
                images = running.image_processor.postprocess(estimate.float().clamp(-1, 1), "pil")
                updates.put(replace(latest, images=tuple(images), notes=tuple(job.notes)))
                shown = monotonic()
            if not job.stopped:
                self.turns.pass_on(job)
            if not job.stopped:
                return {}
            latest = replace(latest, text=f"Stopped at step {step + 1} of {total}.")
            running._interrupt = True
            return {"latents": estimate}  # the image as far as it is known, in place of one with noise

        result: Progress | Exception
        try:
            self.turns.wait(job)
            images: Sequence[Image.Image] = ()
            if not job.stopped:
                images = pipe(
                    **call,
                    num_images_per_prompt=len(seeds),
                    generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                    callback_on_step_end=on_step,
                    callback_on_step_end_tensor_inputs=["latents", "pred_original_sample"],
                ).images
            for image in images:
                image.info.update(colour_space(call.get("image")))
            if not job.stopped:  # what is not finished cannot be generated again
                for image, seed in zip(images, seeds, strict=True):
                    image.info.update(text_chunks(record | about_images([call["prompt"]], [seed], image.size)))
            text = latest.text if job.stopped else ""
            if images:
                which = f"Seed {seeds[0]}" if len(seeds) == 1 else f"Seeds {seeds[0]} to {seeds[-1]}"
                text = f"{which}. {text}".strip()
            result = replace(latest, text=text, images=tuple(images), done=True, notes=tuple(job.notes))
        except (TypeError, ValueError) as error:
            result = UserError(str(error))
            result.__cause__ = error
        except Exception as error:
            result = error
        finally:
            self.turns.leave(job)
        updates.put(result)


# -- loading ----------------------------------------------------------------------------------------------------------


def load_studio(args: argparse.Namespace) -> Studio:
    """The models that the options name, or else those that ship, each ready for what it can do."""
    values = model_values(args)
    models: Models = {}
    has_named = args.model or args.other_models or args.inpaint_model
    for name in [args.model, *args.other_models] if has_named else ["emoji", "shapes"]:
        pipe = open_pipeline(**values | {"model": name}, option="--other-models" if models else "--model")
        inpaint, option = args.inpaint_model, "--inpaint-model"
        if models or inpaint is None:
            inpaint, option = shipped(name, "inpaint"), "--model"
        edits = pipe if inpaint is None else open_pipeline(**values | {"model": inpaint}, option=option)
        models[name or "shapes"] = pipelines_by_task(pipe, edits)
    names = ("steps", "super_res_steps", "fast", "scheduler", "super_res_scheduler", "inpaint_model")
    studio = Studio(models, {name: getattr(args, name) for name in names})
    for pipes in models.values():
        for pipe in pipes.values():
            set_schedulers(pipe, fast_values(studio.given, pipe))
    return studio


def pipelines_by_task(pipe: DiffusionPipeline, inpaint: DiffusionPipeline) -> dict[str, DiffusionPipeline]:
    """A pipeline for each task that a model can do, around shared components."""
    tasks = [task for task in TASKS if task != "Enlarge" or pipe.super_res_unet is not None]
    pipes = {task: TASKS[task].from_pipe(inpaint if task == "Edit" else pipe) for task in tasks}
    for each in pipes.values():
        each.set_progress_bar_config(disable=True)
    return pipes
