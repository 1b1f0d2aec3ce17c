"""Measures how well a model edits scenes of the shapes world: inpainting, and SDEdit over its strength."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..evaluation.generation import generators, in_batches
from ..evaluation.statistics import mean_and_error, per_cent, rate
from ..markdown import markdown_table
from ..pipelines import GLIDEImg2ImgPipeline, GLIDEInpaintPipeline
from .edits import Edit, EditVerdict, framed, judge_edit
from .render import render
from .scene import BACKGROUNDS


# Rows of the table, each with the answers that it takes from a verdict.
ROWS: dict[str, Callable[[EditVerdict], Sequence[bool]]] = {
    "new object: colour": lambda verdict: [verdict.colour],
    "new object: shape": lambda verdict: [verdict.shape],
    "new object: both, and alone": lambda verdict: [verdict.new_object],
    "whole caption": lambda verdict: [verdict.caption],
    "other objects as before": lambda verdict: verdict.others,
    "every pixel outside the mask as before": lambda verdict: [verdict.untouched],
}


def edit_figures(verdicts: Iterable[EditVerdict]) -> dict[str, dict]:
    """Verdicts gathered.

    Args:
        verdicts (`Iterable[EditVerdict]`): One or more.

    Returns:
        `dict`: `"right"`: a row of `ROWS` to what [`rate`] gives; rows without a case are left out. `"difference"`:
            the `mean` absolute difference of the pixels outside the mask, 0 to 1, and its `standard_error`.
    """
    verdicts = list(verdicts)
    answers = {row: [answer for verdict in verdicts for answer in take(verdict)] for row, take in ROWS.items()}
    difference, error = mean_and_error([verdict.difference for verdict in verdicts])
    return {
        "right": {row: rate(given) for row, given in answers.items() if given},
        "difference": {"mean": difference, "standard_error": error},
    }


def judge_true_edits(edits: Sequence[Edit], size: int) -> dict[str, dict]:
    """The figures of a perfect model: the scenes with the new object, rendered `size` pixels wide.

    Returns:
        `dict`: as [`edit_figures`] gives it.
    """
    return edit_figures(judge_edit(edit, render(edit.scene, size), render(edit.after, size)) for edit in edits)


def judge_edits(
    pipe: GLIDEInpaintPipeline | GLIDEImg2ImgPipeline,
    edits: Sequence[Edit],
    seed: int,
    batch_size: int,
    masked: bool,
    size: tuple[int, int] | None = None,
    **call: Any,
) -> dict[str, dict]:
    """The figures of an editing pipeline. Each image has a generator of its own, so that every model and setting starts
    from the same noise.

    Args:
        pipe ([`GLIDEInpaintPipeline`] or [`GLIDEImg2ImgPipeline`]): Called with captions and images.
        edits (`Sequence[Edit]`): What to ask for.
        seed (`int`): Of the first image; each image takes the next one.
        batch_size (`int`): Images at a time.
        masked (`bool`): Whether the pipeline takes a mask.
        size (`tuple[int, int]`, *optional*): Height and width of the images, by default the pipeline's own: the scene
            in the middle, as large as it fits, with its background around it.
        call: Further arguments of the pipeline's call, such as `strength`.

    Returns:
        `dict`: as [`edit_figures`] gives it.
    """
    height, width = pipe.default_size if size is None else size
    side = min(height, width)
    verdicts: list[EditVerdict] = []
    for start, batch in in_batches(edits, batch_size):
        before = [framed(render(edit.scene, side), width, height, BACKGROUNDS[edit.scene.background]) for edit in batch]
        masks: dict[str, Any] = (
            {"mask_image": [framed(edit.mask(side), width, height, 0) for edit in batch]} if masked else {}
        )
        prompts = [str(edit.caption) for edit in batch]
        after = pipe(prompts, image=before, generator=generators(seed + start, len(batch)), **masks, **call).images
        verdicts += map(judge_edit, batch, before, after)
    return edit_figures(verdicts)


def edit_table(columns: dict[str, dict[str, dict]]) -> str:
    """Figures as Markdown, in per cent with their 95 % intervals.

    Args:
        columns (`dict`): A column's title to what [`edit_figures`] gave; one or more.
    """
    first = next(iter(columns.values()))
    rows = [
        [row, true["cases"], *(per_cent(figures["right"][row]) for figures in columns.values())]
        for row, true in first["right"].items()
    ]
    means = [f"{figures['difference']['mean']:.4f}" for figures in columns.values()]
    cases = first["right"]["whole caption"]["cases"]
    rows.append(["mean difference outside the mask, of 1", cases, *means])
    return markdown_table(["right, per cent", "cases", *columns], rows)
