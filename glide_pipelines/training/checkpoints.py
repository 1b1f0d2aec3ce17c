"""The folder of a run: one run at a time, and checkpoints that are whole or not there."""

from __future__ import annotations

import logging
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from filelock import FileLock, Timeout

from ..files import atomic_folder
from .run_state import RunState, check_files, random_state, read_state


logger = logging.getLogger(__name__)
_NAME = re.compile(r"checkpoint-([0-9]+)")
# The loader's processes inherit the lock, and outlive a run that is killed by up to five seconds.
_LOCK_SECONDS = 10.0
_LEFT_OVER = re.compile(r"checkpoint-[0-9]+\.(partial|old)")


@contextmanager
def locked(output_dir: str | Path) -> Iterator[None]:
    """Keep other runs out of a folder. The lock is the system's: it ends with the process, however that ends.

    What runs that were killed left behind in the folder is deleted.

    Raises:
        ValueError: if another run holds the folder, naming its process.
    """
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    holder = folder / ".lock.holder"
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=_LOCK_SECONDS)
    except Timeout:
        who = holder.read_text(encoding="utf-8") if holder.exists() else "another process"
        raise ValueError(
            f"`output_dir` {output_dir} belongs to a run that is under way ({who}): stop it, or take another folder."
        ) from None
    try:
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        for path in folder.iterdir():
            if _LEFT_OVER.fullmatch(path.name):
                shutil.rmtree(path, ignore_errors=True)
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def list_checkpoints(output_dir: str | Path) -> list[Path]:
    """What a folder holds under the name of a checkpoint, whole or not, oldest first."""
    paths = Path(output_dir).glob("checkpoint-*")
    return sorted((path for path in paths if _NAME.fullmatch(path.name)), key=_step)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("checkpoint-"))


def _problem(path: Path, contents: bool = True) -> str | None:
    """What is wrong with a checkpoint; None if it is whole. One of an earlier version counts as whole here."""
    if not path.is_dir():
        return f"{path.name} is no folder."
    if not (path / "state.json").exists() and any(path.glob("*.pkl")):
        return None
    try:
        check_files(path, contents)
        step = read_state(path)["progress"]["step"]
    except (ValueError, OSError) as error:
        return str(error)
    return None if step == _step(path) else f"{path.name} is of step {step}."


def find_checkpoint(output_dir: str | Path, name: str) -> Path | None:
    """The checkpoint to resume from.

    Args:
        output_dir (`str` or `Path`): The folder of the run.
        name (`str`): A checkpoint's folder, its name within `output_dir`, or `"latest"`: the newest that is whole, with
            a warning that names damaged ones after it.

    Returns:
        `Path`, *optional*: `None` for `"latest"` in a folder that holds none.

    Raises:
        ValueError: if there is no such checkpoint, it is damaged, or none is whole.
    """
    if name != "latest":
        for path in (Path(name), Path(output_dir) / name):
            if path.is_dir():
                check_files(path)
                return path
        raise ValueError(
            f"`resume_from_checkpoint` must be 'latest' or a checkpoint, got {name!r}; "
            f"there are {', '.join(path.name for path in list_checkpoints(output_dir)) or 'none'}."
        )
    problems: list[str] = []
    for path in reversed(list_checkpoints(output_dir)):
        problem = _problem(path)
        if problem is None:
            for damage in problems:
                logger.warning(f"{damage} The run goes on from {path.name}.")
            return path
        problems.append(problem)
    if problems:
        raise ValueError(
            f"`output_dir` {output_dir} holds no whole checkpoint: {' '.join(problems)} Delete what is damaged to "
            "start again."
        )
    return None


def check_none_later(output_dir: str | Path, step: int) -> None:
    """Refuse to continue from a step (0: from the start) in a folder that holds whole checkpoints of later steps: the
    next `"latest"` would return to these, and `total_limit` would delete the new ones as the oldest.

    Raises:
        ValueError: if there are any.
    """
    later = [path.name for path in list_checkpoints(output_dir) if _step(path) > step and _problem(path) is None]
    if later:
        going_on = f" later than step {step}" if step else ""
        raise ValueError(
            f"`output_dir` {output_dir} holds {', '.join(later)}{going_on}: go on with `--resume_from_checkpoint "
            "latest`, move these away, or take another folder."
        )


def save_checkpoint(
    accelerator: Accelerator,
    output_dir: str | Path,
    state: RunState,
    progress: dict[str, Any],
    total_limit: int | None,
    random: dict[str, Any] | None = None,
) -> Path:
    """Save a run as `checkpoint-<step>`, and delete the oldest checkpoints over the limit, though never this one: the
    folder may hold later ones of another run. Every process must call it.

    Args:
        accelerator, output_dir, state: Of the run.
        progress (`dict[str, Any]`): The position in the run; its `step` names the checkpoint.
        total_limit (`int`, *optional*): How many checkpoints are kept.
        random (`dict[str, Any]`, *optional*): This process's random state; by default the present one.

    Raises:
        OSError: if it cannot be written; nothing of it is left behind.
    """
    final = Path(output_dir) / f"checkpoint-{progress['step']}"
    random_states = list(gather_object([random or random_state(accelerator.device)]))
    files = state.gather()
    problem = None
    if accelerator.is_main_process:
        try:
            with atomic_folder(final) as partial:
                state.save(partial, files, progress, random_states)
                if final.is_symlink() or final.is_file():  # what is no folder cannot be replaced by one
                    final.unlink()
        except OSError as error:
            problem = error
        if problem is None and total_limit is not None:
            whole = [path for path in list_checkpoints(output_dir) if _problem(path, contents=False) is None]
            for old in whole[:-total_limit]:
                if old != final:
                    shutil.rmtree(old)
    if accelerator.num_processes > 1:
        [failed] = any_process(accelerator, problem is not None)
        if failed and problem is None:
            problem = OSError("the main process could not write it")
    if problem is not None:
        raise OSError(f"{final.name} could not be saved: {problem}") from problem
    return final


def any_process(accelerator: Accelerator, *flags: bool) -> list[bool]:
    """Each flag, true if it is true in any process."""
    if accelerator.num_processes == 1:
        return list(flags)
    counts = accelerator.reduce(torch.tensor(flags, dtype=torch.float32, device=accelerator.device), "sum")
    return (counts > 0).tolist()
