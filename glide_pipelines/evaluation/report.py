"""What a measurement leaves behind: its settings, a table, JSON, and the plots of the paper's figure 6."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from diffusers import DiffusionPipeline, SchedulerMixin

from ..files import whole_file, write_json, write_whole
from ..markdown import markdown_table
from ..pipelines.pipeline_utils import DEFAULT_SUPER_RES_TIMESTEPS, DEFAULT_TIMESTEPS, GLIDEPipelineBase
from ..shapes.evaluation import judged_table
from ..version import __version__


if TYPE_CHECKING:  # matplotlib is an extra
    from matplotlib.axes import Axes


PACKAGES = ("torch", "diffusers", "transformers", "numpy", "pillow")
# Columns of the table: the figure's name, its heading, and how it is written.
COLUMNS: dict[str, tuple[str, str]] = {
    "fid": ("FID", "{:.2f}"),
    "inception_score": ("Inception score", "{:.2f}"),
    "precision": ("precision", "{:.3f}"),
    "recall": ("recall", "{:.3f}"),
    "clip_score": ("CLIP score", "{:.2f}"),
    "whole_caption": ("whole caption right, per cent", "{:.1f}"),
}
# Figure 6, and the exact answer in place of its proxies: the file, and the figures on its axes.
PLOTS: dict[str, tuple[str, str]] = {
    "precision_recall.png": ("recall", "precision"),
    "inception_score_fid.png": ("fid", "inception_score"),
    "clip_score_fid.png": ("fid", "clip_score"),
    "accuracy_recall.png": ("recall", "whole_caption"),
}


def sampling_settings(args: argparse.Namespace, pipe: DiffusionPipeline) -> dict[str, Any]:
    """What pictures depend on, but for the captions and the guidance; None is what a pipeline not of GLIDE decides.

    Args:
        args (`argparse.Namespace`): With the options of `glide_cli.add_sampling_options` and `add_model_options`,
            `seed` and `batch_size`.
        pipe (`DiffusionPipeline`): What these options load.
    """
    is_glide = isinstance(pipe, GLIDEPipelineBase)
    upsampled = is_glide and pipe.super_res_unet is not None
    return {
        "model": args.model or "shapes_checkpoint()",
        "seed": args.seed,
        "batch_size": args.batch_size,
        "size": pipe.default_size[0] if is_glide else None,
        "steps": args.steps or (DEFAULT_TIMESTEPS if is_glide else None),
        "scheduler": _scheduler_name(getattr(pipe, "scheduler", None)),
        "super_res_steps": (args.super_res_steps or DEFAULT_SUPER_RES_TIMESTEPS) if upsampled else None,
        "super_res_scheduler": _scheduler_name(pipe.super_res_scheduler) if upsampled else None,
        "device": pipe.device.type,
        "dtype": args.dtype,
    }


def _scheduler_name(scheduler: SchedulerMixin | None) -> str | None:
    """Its class, and whether it is the stochastic one of a class that has both."""
    if scheduler is None:
        return None
    algorithm = scheduler.config.get("algorithm_type", "")
    return f"{type(scheduler).__name__}{f' ({algorithm})' if algorithm.startswith('sde-') else ''}"


def fingerprint(pipe: DiffusionPipeline) -> str:
    """A short digest of a pipeline's weights: a model that was trained on under the same name is another one."""
    digest = hashlib.sha256()
    for name, component in sorted(pipe.components.items()):
        if isinstance(component, torch.nn.Module):
            for key, tensor in component.state_dict().items():
                digest.update(f"{name}.{key}".encode())
                digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def package_versions() -> dict[str, str]:
    """The version of this package, and of those that its figures depend on."""
    return {"glide-pipelines": __version__, **{package: version(package) for package in PACKAGES}}


def differences(earlier: dict[str, Any], settings: dict[str, Any]) -> str:
    """Where earlier settings are others, for an error: "seed 1 and not 0"; empty if they are the same."""
    return ", ".join(
        f"{name} {earlier.get(name)!r} and not {value!r}"
        for name, value in settings.items()
        if earlier.get(name) != value
    )


def claim_folder(folder: Path, settings: dict[str, Any]) -> None:
    """Note the settings in a folder of pictures, so that those of others are never mixed with these.

    Raises:
        ValueError: if it cannot be written to, or holds pictures of other settings.
    """
    path = folder / "settings.json"
    if path.is_file():
        try:
            others = differences(json.loads(path.read_text(encoding="utf-8")), settings)
        except (ValueError, AttributeError) as error:
            raise ValueError(f"`output`: {path} holds no settings of pictures.") from error
        if others:
            raise ValueError(f"`output`: the pictures in {folder} were made with {others}.")
    if PartialState().is_main_process:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(settings, path)
        except OSError as error:
            raise ValueError(f"`output`: {folder} cannot be written to: {error.strerror}.") from error


def write_report(
    results: dict[str, Any],
    folder: Path,
    plot: Callable[[list[dict[str, Any]], Path], list[Path]],
    summary: Callable[[list[dict[str, Any]]], str] | None = None,
) -> str:
    """Write `results.json`, `results.md` and the plots.

    Args:
        results (`dict`): Of [`run_sweep`], and what else the JSON is to hold.
        folder (`Path`): Where to.
        plot (`Callable`): [`plot_guidance`] or [`plot_steps`], whichever the sweep was over.
        summary (`Callable`, *optional*): Makes a table of the sweep that stands first, such as [`steps_table`].

    Returns:
        `str`: what `results.md` holds.
    """
    rows = [results["real"], *results["sweep"]]
    text = table(rows)
    if judged := {row["name"]: row["judge"] for row in rows if "judge" in row}:
        text += "\n\n" + judged_table(judged)
    if summary is not None:
        text = summary(results["sweep"]) + "\n\n" + text
    if results["unreadable"]:
        count, names = len(results["unreadable"]), ", ".join(map(str, results["unreadable"]))
        text += f"\n\nReal pictures that could not be read and are left out: {count} ({names})."
    write_json(results, folder / "results.json")
    write_whole(text + "\n", folder / "results.md")
    plot(results["sweep"], folder)
    return text


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table.

    Args:
        rows (`list[dict]`): Each with its `name`, and any of the figures of `COLUMNS`. Columns that no row has are left
            out.
    """
    columns = {name: column for name, column in COLUMNS.items() if any(name in row for row in rows)}
    cells = (
        [row["name"], *(form.format(row[name]) if name in row else "" for name, (_, form) in columns.items())]
        for row in rows
    )
    return markdown_table(["pictures", *(title for title, _ in columns.values())], cells)


def steps_table(rows: list[dict[str, Any]]) -> str:
    """Whole captions right, in per cent, as Markdown: a row for each sampler and interval, a column for each number of
    steps.

    Args:
        rows (`list[dict]`): The sweep of [`run_sweep`] over [`Sampling`], of the shapes world.
    """
    steps = sorted({row["steps"] for row in rows})
    cells = []
    for name, curve in _curves_by_steps(rows).items():
        found = {row["steps"]: f"{row['whole_caption']:.1f}" for row in curve}
        cells.append([name, *(found.get(number, "") for number in steps)])
    return markdown_table(["whole caption right, per cent, by number of steps", *map(str, steps)], cells)


def plot_guidance(rows: list[dict[str, Any]], folder: Path) -> list[Path]:
    """The plots of the paper's figure 6: a curve for each kind of guidance, a point for each scale, marked with it, and
    a star for the unguided model, where CLIP's curve begins.

    Args:
        rows (`list[dict]`): The sweep of [`run_sweep`] over [`Guidance`], with figures of `COLUMNS`.
        folder (`Path`): Where the files go.

    Returns:
        `list[Path]`: The files, without those whose figures were not measured.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    written = []
    for file, (x, y) in PLOTS.items():
        if not rows or not all(x in row and y in row for row in rows):
            continue
        with _axes(folder / file, COLUMNS[x][0], COLUMNS[y][0]) as axes:
            for guidance in dict.fromkeys(row["guidance"] for row in rows):
                curve = _curve(rows, guidance)
                axes.plot([row[x] for row in curve], [row[y] for row in curve], marker="o", label=guidance)
            unguided = [row for row in rows if row["guidance_scale"] == 1 and not row.get("clip_guidance_scale")]
            if unguided:  # in the legend, since a word beside the outermost point has no room
                place = [row[x] for row in unguided], [row[y] for row in unguided]
                axes.plot(*place, "k*", markersize=12, zorder=3, label="unguided")
            for row in (row for row in rows if row not in unguided):
                place = row[x], row[y]
                axes.annotate(f"{row['scale']:g}", place, xytext=(4, 4), textcoords="offset points", fontsize=8)
        written.append(folder / file)
    return written


def plot_steps(rows: list[dict[str, Any]], folder: Path) -> list[Path]:
    """How often a whole caption is right by the number of steps: a curve for each sampler, dashed where guidance is
    limited to an interval.

    Args:
        rows (`list[dict]`): The sweep of [`run_sweep`] over [`Sampling`], of the shapes world.
        folder (`Path`): Where the file goes.

    Returns:
        `list[Path]`: The file.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    path = folder / "accuracy_steps.png"
    with _axes(path, "steps", COLUMNS["whole_caption"][0]) as axes:
        samplers = list(dict.fromkeys(row["sampler"] for row in rows))
        for name, curve in _curves_by_steps(rows).items():
            axes.plot(
                [row["steps"] for row in curve],
                [row["whole_caption"] for row in curve],
                color=f"C{samplers.index(curve[0]['sampler'])}",
                linestyle="-" if curve[0]["interval"] is None else "--",
                marker="o",
                label=name,
            )
        axes.set_xscale("log")
        steps = sorted({row["steps"] for row in rows})
        axes.set_xticks(steps, labels=map(str, steps))
        axes.minorticks_off()
    return [path]


def _curves_by_steps(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The rows of each sampler and interval, by the number of steps."""
    curves: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        guided = "" if row["interval"] is None else ", guided from {:g} to {:g}".format(*row["interval"])
        curves.setdefault(row["sampler"] + guided, []).append(row)
    return {name: sorted(curve, key=lambda row: row["steps"]) for name, curve in curves.items()}


@contextmanager
def _axes(path: Path, x: str, y: str) -> Iterator[Axes]:
    """Axes with these titles, to draw on; the plot is then written."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Plots need the extra `eval` (in a clone: `pip install -e '.[eval]'`).") from error

    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.add_subplot(xlabel=x, ylabel=y)
    yield axes
    axes.grid(alpha=0.3)
    axes.legend()
    with whole_file(path) as aside:
        figure.savefig(aside, dpi=150)


def _curve(rows: list[dict[str, Any]], guidance: str) -> list[dict[str, Any]]:
    """The rows of one guidance, by its scale. Where CLIP guides, the row without it is that of scale 0."""
    curve = [row for row in rows if row["guidance"] == guidance]
    if all(row.get("clip_guidance_scale") for row in curve):
        beside = curve[0]["guidance_scale"]
        without = [row for row in rows if "clip_guidance_scale" not in row and row["guidance_scale"] == beside]
        curve += [row | {"scale": 0.0} for row in without]
    return sorted(curve, key=lambda row: row["scale"])
