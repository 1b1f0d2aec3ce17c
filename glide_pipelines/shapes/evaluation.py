"""Measures a model of the shapes world: accuracy by attribute, diversity of what is unstated, the upsampler alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ..evaluation.generation import generators, in_batches
from ..evaluation.statistics import mean_and_error, per_cent
from ..markdown import markdown_table
from ..pipelines import GLIDEPipeline, GLIDESuperResolutionPipeline
from .dataset import Example
from .detect import MIN_SIZE
from .render import render, render_sizes
from .tally import ATTRIBUTES, UNSTATED, WHOLE, Figures, Tally


def judge_renders(examples: Sequence[Example], size: int) -> Figures:
    """The figures of a perfect model: the scenes themselves, rendered `size` pixels wide.

    Returns:
        `dict`: as [`Tally.figures`] gives it.
    """
    tally = Tally()
    for scene, caption in examples:
        tally.add(render(scene, size), caption)
    return tally.figures()


def judge_pipeline(
    pipe: GLIDEPipeline, examples: Sequence[Example], seed: int, batch_size: int, **call: Any
) -> dict[str, Any]:
    """The figures of a text-to-image pipeline. Each image has a generator of its own, so that every setting of the
    sampler starts from the same noise. Where there is an upsampler, the base model's images are judged too, if large
    enough.

    Args:
        pipe ([`GLIDEPipeline`]): Called with captions; its images are square, 32 pixels wide or more.
        examples (`Sequence[Example]`): What to generate.
        seed (`int`): Of the first image; each image takes the next one.
        batch_size (`int`): Images at a time.
        call: Further arguments of the pipeline's call, such as `guidance_scale`.

    Returns:
        `dict`: as [`Tally.figures`] gives it; with an upsampler also `base`, the same of the base model's images.
    """
    tally, base_tally = Tally(), Tally()
    judges_base = pipe.scale_factor > 1 and pipe.default_size[0] // pipe.scale_factor >= MIN_SIZE
    base: dict[str, torch.Tensor] = {}

    def keep_base(pipe: GLIDEPipeline, step: int, timestep: int, tensors: dict[str, torch.Tensor]) -> dict:
        if pipe.stage == "base":
            base.update(tensors)
        return {}

    if judges_base:
        call["callback_on_step_end"] = keep_base
    for start, batch in in_batches(examples, batch_size):
        images = pipe(_captions(batch), generator=generators(seed + start, len(batch)), **call).images
        for image, example in zip(images, batch, strict=True):
            tally.add(image, example.caption)
        if judges_base:
            images = pipe.image_processor.postprocess(base["latents"], "pil")
            for image, example in zip(images, batch, strict=True):
                base_tally.add(image, example.caption)
    return {**tally.figures(), "base": base_tally.figures()} if judges_base else tally.figures()


def upsampler_difference(
    pipe: GLIDESuperResolutionPipeline, examples: Sequence[Example], seed: int, batch_size: int, **call: Any
) -> dict[str, float]:
    """How far the upsampler's result for a true small image is from the true large image.

    Args:
        pipe ([`GLIDESuperResolutionPipeline`]): Called with captions and small images.
        examples (`Sequence[Example]`): What to generate.
        seed (`int`): Of the first image; each image takes the next one.
        batch_size (`int`): Images at a time.
        call: Further arguments of the pipeline's call, such as `super_res_num_inference_steps`.

    Returns:
        `dict`: `mean_absolute_difference` over all pixels and channels, 0 to 1; its `standard_error` over the images;
        and the number of `images`.
    """
    sizes = pipe.default_size[0] // pipe.scale_factor, pipe.default_size[0]
    differences: list[float] = []
    for start, batch in in_batches(examples, batch_size):
        small, large = zip(*(render_sizes(example.scene, sizes) for example in batch), strict=True)
        seeded = generators(seed + start, len(batch))
        images = pipe(_captions(batch), image=list(small), generator=seeded, output_type="np", **call).images
        differences += np.abs(images - np.stack(large) / 255).mean(axis=(1, 2, 3)).tolist()
    difference, error = mean_and_error(differences)
    return {"mean_absolute_difference": difference, "standard_error": error, "images": len(differences)}


def _captions(examples: Sequence[Example]) -> list[str]:
    return [str(example.caption) for example in examples]


def guidance_table(results: dict[str, Any]) -> str:
    """Results as Markdown: accuracy in per cent with its 95 % interval, diversity in bits, and the upsampler alone.

    Args:
        results (`dict`): `renders` (of [`judge_renders`]), `guidance` (a list of [`judge_pipeline`]'s figures, each
            with its `guidance_scale`; `base` has a column of its own) and, if it was measured, `upsampler` (of
            [`upsampler_difference`]).
    """
    columns = {"true images": results["renders"]}
    for figures in results["guidance"]:
        title = f"guidance {figures['guidance_scale']:g}"
        if "base" in figures:
            columns[f"{title}, before the upsampler"] = figures["base"]
        columns[title] = figures

    def section(kind: str, title: str, labels: dict[str, str], cell: Callable[[dict[str, Any]], str]) -> str:
        rows = []
        for name, label in labels.items():
            found = [figures[kind].get(name) for figures in columns.values()]
            if found[0]:
                rows.append([label, found[0]["cases"], *(cell(figure) if figure else "" for figure in found)])
        return markdown_table([title, "cases", *columns], rows)

    accuracy = {name: name for name in (*ATTRIBUTES, *WHOLE)}
    diversity = {name: f"{name} (at most {math.log2(count):.2f})" for name, count in UNSTATED.items()}
    sections = [
        section("accuracy", "right, per cent", accuracy, per_cent),
        section("diversity", "spread of unstated attributes, bits", diversity, lambda spread: f"{spread['bits']:.2f}"),
    ]
    if upsampler := results.get("upsampler"):
        sections.append(
            f"The upsampler alone, from the true small image: mean absolute difference to the true large one "
            f"{upsampler['mean_absolute_difference']:.4f} (standard error {upsampler['standard_error']:.4f}, "
            f"{upsampler['images']} images)."
        )
    return "\n\n".join(sections)
