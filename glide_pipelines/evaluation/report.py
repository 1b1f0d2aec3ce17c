"""What a sweep leaves behind: tables, JSON, and plots."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..files import write_json, write_text
from ..markdown import markdown_table
from .plots import COLUMNS, curves_by_steps


Rows = list[dict[str, Any]]


def write_report(
    results: dict[str, Any],
    folder: Path,
    plot: Callable[[Rows, Path], list[Path]],
    summary: Callable[[Rows], str] | None = None,
    judged_table: Callable[[Mapping[str, Any]], str] | None = None,
) -> str:
    """Write `results.json`, `results.md` and the plots.

    Args:
        results (`dict`): Of [`run_sweep`], and what else the JSON is to hold.
        folder (`Path`): Where to.
        plot (`Callable`): [`plot_guidance`] or [`plot_steps`], whichever the sweep was over.
        summary (`Callable`, *optional*): Makes a table of the sweep that stands first, such as [`steps_table`].
        judged_table (`Callable`, *optional*): Makes a table of what the judge of [`JudgedImages`] found, from a dict of
            the rows' names to it.

    Returns:
        `str`: what `results.md` holds.
    """
    rows = [results["real"], *results["sweep"]]
    parts = [table(rows)]
    if summary is not None:
        parts.insert(0, summary(results["sweep"]))
    judged = {row["name"]: row["judge"] for row in rows if "judge" in row}
    if judged and judged_table is not None:
        parts.append(judged_table(judged))
    if results["unreadable"]:
        count, names = len(results["unreadable"]), ", ".join(map(str, results["unreadable"]))
        parts.append(f"Real images that could not be read and are left out: {count} ({names}).")
    text = "\n\n".join(parts)
    write_json(results, folder / "results.json")
    write_text(text + "\n", folder / "results.md")
    plot(results["sweep"], folder)
    return text


def table(rows: Rows) -> str:
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
    return markdown_table(["images", *(title for title, _ in columns.values())], cells)


def steps_table(rows: Rows) -> str:
    """Whole captions right, in per cent, as Markdown: a row for each sampler and interval, a column for each number of
    steps.

    Args:
        rows (`list[dict]`): The sweep of [`run_sweep`] over [`Sampling`], of [`JudgedImages`].
    """
    steps = sorted({row["steps"] for row in rows})
    cells = []
    for name, curve in curves_by_steps(rows).items():
        found = {row["steps"]: f"{row['whole_caption']:.1f}" for row in curve}
        cells.append([name, *(found.get(number, "") for number in steps)])
    return markdown_table(["whole caption right, per cent, by number of steps", *map(str, steps)], cells)
