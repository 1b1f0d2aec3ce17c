"""Measures a model of the shapes world: accuracy by attribute, diversity of what is unsaid, the upsampler alone."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from tqdm.auto import tqdm

from ..markdown import markdown_table
from .captions import Caption
from .dataset import Example
from .detect import MIN_SIZE
from .judge import judge
from .render import render, render_sizes
from .scene import BACKGROUNDS, COLOURS, SHAPES, SIZES


ATTRIBUTES: tuple[str, ...] = (
    "background",
    "colour",
    "shape",
    "size",
    "place",
    "relation",
    "place and relation",
    "count",
)
WHOLE: tuple[str, ...] = (
    "whole caption",
    "whole caption, one object",
    "whole caption, two objects",
    "whole caption, three objects",
)
# What a caption may leave unsaid (the quarter of the picture is where an object lies), and its number of values.
UNSAID: dict[str, int] = {
    "background": len(BACKGROUNDS),
    "colour": len(COLOURS),
    "shape": len(SHAPES),
    "size": len(SIZES),
    "quarter": 4,
}

_Item = TypeVar("_Item")


class Tally:
    """The judge's answers, gathered picture by picture."""

    def __init__(self) -> None:
        self.answers: dict[str, list[bool]] = defaultdict(list)
        self.unsaid: dict[str, Counter[str]] = defaultdict(Counter)

    def add(self, picture: Image.Image | np.ndarray, caption: Caption) -> None:
        """
        Judges one more picture.

        Args:
            picture (`PIL.Image.Image` or `np.ndarray`): As `judge` takes it.
            caption (`Caption`): What it should show.
        """
        verdict = judge(picture, caption)
        for name, answers in verdict.attributes().items():
            self.answers[name] += answers
            if name in ("place", "relation"):
                self.answers["place and relation"] += answers
        for name in (WHOLE[0], WHOLE[len(caption.objects)]):
            self.answers[name].append(verdict.correct)

        if caption.background is None:
            self._count("background", verdict.detection.background)
        for said, answer in zip(caption.objects, verdict.objects, strict=True):
            if answer.found is None:
                continue
            for name in ("colour", "shape", "size"):
                if getattr(said, name) is None:
                    self._count(name, getattr(answer.found, name))
            if said.place is None and caption.relation is None:
                sides = "bottom" if answer.found.y > 0.5 else "top", "right" if answer.found.x > 0.5 else "left"
                self._count("quarter", " ".join(sides))

    def _count(self, name: str, value: str | None) -> None:
        if value is not None:  # the judge could not tell
            self.unsaid[name][value] += 1

    def figures(self) -> dict[str, dict[str, dict[str, float]]]:
        """
        Returns:
            `dict`: `"accuracy"`: a row of `ATTRIBUTES` and `WHOLE` to `right` and `cases` (numbers of answers), their
            `share` and its 95 % interval, `low` and `high`, all three 0 to 1. `"diversity"`: a row of `UNSAID` to the
            entropy in `bits` and the `cases`. Rows without a case are left out.
        """
        accuracy = {}
        for name in (*ATTRIBUTES, *WHOLE):
            if answers := self.answers.get(name):
                accuracy[name] = rate(answers)
        diversity = {
            name: {"bits": entropy(self.unsaid[name].values()), "cases": self.unsaid[name].total()}
            for name in UNSAID
            if name in self.unsaid
        }
        return {"accuracy": accuracy, "diversity": diversity}


def rate(answers: Sequence[bool]) -> dict[str, float]:
    """
    How many answers are right, as the figures hold it.

    Args:
        answers (`Sequence[bool]`): One or more.

    Returns:
        `dict`: numbers of answers `right` and in all (`cases`), their `share` and its 95 % interval, `low` and `high`,
            all three 0 to 1.
    """
    right, cases = sum(answers), len(answers)
    low, high = wilson_interval(right, cases)
    return {"right": right, "cases": cases, "share": right / cases, "low": low, "high": high}


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean of one value or more, and its standard error; 0 where one value tells nothing of it."""
    deviation = np.std(values, ddof=1) if len(values) > 1 else 0.0
    return float(np.mean(values)), float(deviation / math.sqrt(len(values)))


def wilson_interval(right: int, cases: int) -> tuple[float, float]:
    """
    The 95 % interval of a share by Wilson's score method, which holds for shares near 0 and 1 too.

    Args:
        right (`int`): 0 to `cases`.
        cases (`int`): 1 or more.

    Returns:
        `tuple[float, float]`: the interval's ends, 0 to 1.
    """
    z = 1.959964
    share = right / cases
    middle = share + z * z / (2 * cases)
    reach = z * math.sqrt(share * (1 - share) / cases + (z / (2 * cases)) ** 2)
    scale = 1 + z * z / cases
    return max(0.0, (middle - reach) / scale), min(1.0, (middle + reach) / scale)


def entropy(counts: Sequence[int]) -> float:
    """The entropy, in bits, of a distribution given by positive counts."""
    total = sum(counts)
    return sum(count / total * math.log2(total / count) for count in counts)


def judge_renders(examples: Sequence[Example], size: int) -> dict[str, dict[str, dict[str, float]]]:
    """
    The figures of a perfect model: the scenes themselves, drawn `size` pixels wide.

    Returns:
        `dict`: as [`Tally.figures`] gives it.
    """
    tally = Tally()
    for scene, caption in examples:
        tally.add(render(scene, size), caption)
    return tally.figures()


def judge_pipeline(
    pipe: DiffusionPipeline, examples: Sequence[Example], seed: int, batch_size: int, **call: Any
) -> dict[str, Any]:
    """
    The figures of a text to image pipeline. Each picture has a generator of its own, so that every setting of the
    sampler starts from the same noise. Where there is an upsampler, what it was given is judged too, if large enough.

    Args:
        pipe ([`GLIDEPipeline`]): Called with captions; its pictures are square, 32 pixels wide or more.
        examples (`Sequence[Example]`): What to draw.
        seed (`int`): Of the first picture; each picture takes the next one.
        batch_size (`int`): Pictures drawn at a time.
        call: Further arguments of the pipeline's call, such as `guidance_scale`.

    Returns:
        `dict`: as [`Tally.figures`] gives it; with an upsampler also `base`, the same of the base model's pictures.
    """
    tally, base_tally = Tally(), Tally()
    judges_base = pipe.scale_factor > 1 and pipe.default_size[0] // pipe.scale_factor >= MIN_SIZE
    base: dict[str, torch.Tensor] = {}

    def keep_base(pipe: DiffusionPipeline, step: int, timestep: int, tensors: dict[str, torch.Tensor]) -> dict:
        if pipe.stage == "base":
            base.update(tensors)
        return {}

    if judges_base:
        call["callback_on_step_end"] = keep_base
    for start, batch in in_batches(examples, batch_size):
        pictures = pipe(_captions(batch), generator=generators(seed + start, len(batch)), **call).images
        for picture, example in zip(pictures, batch, strict=True):
            tally.add(picture, example.caption)
        if judges_base:
            pictures = pipe.image_processor.postprocess(base["latents"], "pil")
            for picture, example in zip(pictures, batch, strict=True):
                base_tally.add(picture, example.caption)
    return {**tally.figures(), "base": base_tally.figures()} if judges_base else tally.figures()


def upsampler_difference(
    pipe: DiffusionPipeline, examples: Sequence[Example], seed: int, batch_size: int, **call: Any
) -> dict[str, float]:
    """
    How far the upsampler's picture of a true small one is from the true large one.

    Args:
        pipe (`GLIDESuperResolutionPipeline`): Called with captions and small pictures.
        examples (`Sequence[Example]`): What to draw.
        seed (`int`): Of the first picture; each picture takes the next one.
        batch_size (`int`): Pictures drawn at a time.
        call: Further arguments of the pipeline's call, such as `super_res_num_inference_steps`.

    Returns:
        `dict`: `mean_absolute_difference` over all pixels and channels, 0 to 1; its `standard_error` over the pictures;
        and the number of `pictures`.
    """
    sizes = pipe.default_size[0] // pipe.scale_factor, pipe.default_size[0]
    differences: list[float] = []
    for start, batch in in_batches(examples, batch_size):
        small, large = zip(*(render_sizes(example.scene, sizes) for example in batch), strict=True)
        seeded = generators(seed + start, len(batch))
        pictures = pipe(_captions(batch), image=list(small), generator=seeded, output_type="np", **call).images
        differences += np.abs(pictures - np.stack(large) / 255).mean(axis=(1, 2, 3)).tolist()
    difference, error = mean_and_error(differences)
    return {"mean_absolute_difference": difference, "standard_error": error, "pictures": len(differences)}


def in_batches(items: Sequence[_Item], batch_size: int) -> Iterator[tuple[int, Sequence[_Item]]]:
    """The items in groups, each with the index of its first, under a progress bar that counts items."""
    with tqdm(total=len(items), unit="picture", leave=False) as bar:
        for start in range(0, len(items), batch_size):
            batch = items[start : start + batch_size]
            yield start, batch
            bar.update(len(batch))


def _captions(examples: Sequence[Example]) -> list[str]:
    return [str(example.caption) for example in examples]


def generators(first_seed: int, count: int) -> list[torch.Generator]:
    """One for each of `count` pictures, seeded with consecutive numbers."""
    return [torch.Generator().manual_seed(first_seed + index) for index in range(count)]


def per_cent(rate: dict[str, float]) -> str:
    """A rate with its 95 % interval, in per cent, as the tables show it."""
    return f"{100 * rate['share']:.1f} ({100 * rate['low']:.1f} to {100 * rate['high']:.1f})"


def guidance_table(results: dict[str, Any]) -> str:
    """
    Results as Markdown: accuracy in per cent with its 95 % interval, diversity in bits, and the upsampler alone.

    Args:
        results (`dict`): `renders` (of [`judge_renders`]), `guidance` (a list of [`judge_pipeline`]'s figures, each
            with its `guidance_scale`; `base` has a column of its own) and, if it was measured, `upsampler` (of
            [`upsampler_difference`]).
    """
    columns = {"true pictures": results["renders"]}
    for figures in results["guidance"]:
        title = f"guidance {figures['guidance_scale']:g}"
        if "base" in figures:
            columns[f"{title}, before the upsampler"] = figures["base"]
        columns[title] = figures

    def section(kind: str, title: str, labels: dict[str, str], cell: Callable[[dict], str]) -> str:
        rows = []
        for name, label in labels.items():
            found = [figures[kind].get(name) for figures in columns.values()]
            if found[0]:
                rows.append([label, found[0]["cases"], *(cell(figure) if figure else "" for figure in found)])
        return markdown_table([title, "cases", *columns], rows)

    accuracy = {name: name for name in (*ATTRIBUTES, *WHOLE)}
    diversity = {name: f"{name} (at most {math.log2(count):.2f})" for name, count in UNSAID.items()}
    sections = [
        section("accuracy", "right, per cent", accuracy, per_cent),
        section("diversity", "spread of the unsaid, bits", diversity, lambda spread: f"{spread['bits']:.2f}"),
    ]
    if upsampler := results.get("upsampler"):
        sections.append(
            f"The upsampler alone, from the true small picture: mean absolute difference to the true large one "
            f"{upsampler['mean_absolute_difference']:.4f} (standard error {upsampler['standard_error']:.4f}, "
            f"{upsampler['pictures']} pictures)."
        )
    return "\n\n".join(sections)


def judged_table(rows: Mapping[str, dict[str, dict[str, dict[str, float]]]]) -> str:
    """
    Many settings' figures as Markdown, a row for each: accuracy in per cent, then the spread of the unsaid in bits.

    Args:
        rows (`Mapping`): A setting's name to its figures, as [`Tally.figures`] gives them; one or more.
    """

    def section(kind: str, title: str, names: Sequence[str], cell: Callable[[dict], str]) -> str:
        cells = (
            [setting, *(cell(figures[kind][name]) if name in figures[kind] else "" for name in names)]
            for setting, figures in rows.items()
        )
        return markdown_table([title, *names], cells)

    accuracy = section("accuracy", "right, per cent", (*ATTRIBUTES, *WHOLE), lambda rate: f"{100 * rate['share']:.1f}")
    spread = section("diversity", "spread of the unsaid, bits", tuple(UNSAID), lambda spread: f"{spread['bits']:.2f}")
    return f"{accuracy}\n\n{spread}"
