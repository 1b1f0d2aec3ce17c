"""The plots of the paper's figure 6, and the accuracy of samplers by their number of steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import atomic_file


if TYPE_CHECKING:  # matplotlib is an extra
    from matplotlib.axes import Axes


# Columns of the table: the figure's name, its heading, and how it is written.
COLUMNS: dict[str, tuple[str, str]] = {
    "fid": ("FID", "{:.2f}"),
    "inception_score": ("Inception score", "{:.2f}"),
    "precision": ("precision", "{:.3f}"),
    "recall": ("recall", "{:.3f}"),
    "clip_score": ("CLIP score", "{:.2f}"),
    "whole_caption": ("whole caption right, per cent", "{:.1f}"),
    "top1": ("recognised, per cent", "{:.1f}"),
    "top5": ("among the first five, per cent", "{:.1f}"),
}
# Figure 6, and the exact answer in place of its proxies: the file, and the figures on its axes.
PLOTS: dict[str, tuple[str, str]] = {
    "precision_recall.png": ("recall", "precision"),
    "inception_score_fid.png": ("fid", "inception_score"),
    "clip_score_fid.png": ("fid", "clip_score"),
    "accuracy_recall.png": ("recall", "whole_caption"),
}


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
                curve = _guidance_curve(rows, guidance)
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
        rows (`list[dict]`): The sweep of [`run_sweep`] over [`Sampling`], of [`JudgedImages`].
        folder (`Path`): Where the file goes.

    Returns:
        `list[Path]`: The file.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    path = folder / "accuracy_steps.png"
    with _axes(path, "steps", COLUMNS["whole_caption"][0]) as axes:
        samplers = list(dict.fromkeys(row["sampler"] for row in rows))
        for name, curve in curves_by_steps(rows).items():
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


def curves_by_steps(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
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
        raise ImportError('Plots need the extra `eval` (in a clone: `pip install ".[eval]"`).') from error

    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.add_subplot(xlabel=x, ylabel=y)
    yield axes
    axes.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=2)  # where no point can be below it
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=150)


def _guidance_curve(rows: list[dict[str, Any]], guidance: str) -> list[dict[str, Any]]:
    """The rows of one guidance, by its scale. Where CLIP guides, the row without it is that of scale 0."""
    curve = [row for row in rows if row["guidance"] == guidance]
    if all(row.get("clip_guidance_scale") for row in curve):
        beside = curve[0]["guidance_scale"]
        without = [row for row in rows if "clip_guidance_scale" not in row and row["guidance_scale"] == beside]
        curve += [row | {"scale": 0.0} for row in without]
    return sorted(curve, key=lambda row: row["scale"])
