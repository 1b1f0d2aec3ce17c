"""The folder of a run: its checkpoints, each of which is whole or not there."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from accelerate import Accelerator

from ..files import partial_path, replace_folder


_NAME = re.compile(r"checkpoint-(\d+)")


def list_checkpoints(output_dir: str | Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    paths = Path(output_dir).glob("checkpoint-*")
    return sorted((path for path in paths if _NAME.fullmatch(path.name)), key=_step)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("checkpoint-"))


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
    """Refuse to continue from a step (0: from the start) in a folder that holds checkpoints of later steps: the next
    `"latest"` would return to these, and `total_limit` would delete the new ones as the oldest.

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
    """Save everything that accelerate holds as `checkpoint-<step>`, and delete the oldest checkpoints over the limit,
    though never this one: the folder may hold later ones of another run. Every process must call it.

    Args:
        accelerator (`Accelerator`): Holds models, optimizers and what was registered for checkpointing.
        output_dir (`str` or `Path`): The folder of the run.
        step (`int`): Steps done.
        total_limit (`int`, *optional*): How many checkpoints are kept.

    Returns:
        `Path`: The checkpoint.
    """
    final = Path(output_dir) / f"checkpoint-{step}"
    # Not `atomic_folder`: all processes write into it.
    partial = partial_path(final)
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        replace_folder(partial, final)
        if total_limit is not None:
            for old in list_checkpoints(output_dir)[:-total_limit]:
                if old != final:
                    shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return final
