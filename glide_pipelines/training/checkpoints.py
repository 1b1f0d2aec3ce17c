"""Folders of checkpoints, each written aside and renamed when it is whole."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator


_NAME = re.compile(r"checkpoint-(\d+)")


def list_checkpoints(output_dir: str | Path) -> list[Path]:
    """The whole checkpoints in a folder, oldest first."""
    return sorted((path for path in Path(output_dir).glob("checkpoint-*") if _NAME.fullmatch(path.name)), key=_step)


def _step(path: Path) -> int:
    return int(_NAME.fullmatch(path.name)[1])


def find_checkpoint(output_dir: str | Path, name: str) -> Path | None:
    """The checkpoint to resume from.

    Args:
        output_dir (`str` or `Path`): The folder of the run.
        name (`str`): A checkpoint's folder, its name within `output_dir`, or `"latest"`.

    Returns:
        `Path`, *optional*: `None` for `"latest"` in a folder that holds none.

    Raises:
        ValueError: if there is no such checkpoint.
    """
    if name == "latest":
        return next(reversed(list_checkpoints(output_dir)), None)
    for path in (Path(name), Path(output_dir) / name):
        if path.is_dir():
            return path
    raise ValueError(
        f"`resume_from_checkpoint` must be 'latest' or a checkpoint, got {name!r}; "
        f"there are {', '.join(path.name for path in list_checkpoints(output_dir)) or 'none'}."
    )


def check_none_later(output_dir: str | Path, step: int) -> None:
    """Refuse to train on from a step (0: from the start) where the folder of the run has checkpoints of later ones: the
    next `"latest"` would go back to these, and `total_limit` would delete the new ones as the oldest.

    Raises:
        ValueError: if there are any.
    """
    later = [path.name for path in list_checkpoints(output_dir) if _step(path) > step]
    if later:
        going_on = f" later than step {step}" if step else ""
        raise ValueError(
            f"`output_dir` {output_dir} holds {', '.join(later)}{going_on}: go on with `--resume_from_checkpoint "
            "latest`, move these away, or take another folder."
        )


def save_checkpoint(accelerator: Accelerator, output_dir: str | Path, step: int, total_limit: int | None) -> Path:
    """Write `checkpoint-<step>` with all that accelerate holds, and then delete the oldest ones over the limit, though
    never this one: the folder may hold later ones of another run.

    Every process must call it.
    """
    final = Path(output_dir) / f"checkpoint-{step}"
    partial = final.with_name(final.name + ".partial")
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        if total_limit is not None:
            for old in list_checkpoints(output_dir)[:-total_limit]:
                if old != final:
                    shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return final


@contextmanager
def written_aside(folder: Path) -> Iterator[Path]:
    """A new folder to write into, whose entries replace those of `folder` once all are written; what else stands in
    `folder` stays."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    folder.mkdir(parents=True, exist_ok=True)
    for entry in partial.iterdir():
        target = folder / entry.name
        if target.is_dir():
            shutil.rmtree(target)
        entry.replace(target)
    partial.rmdir()
