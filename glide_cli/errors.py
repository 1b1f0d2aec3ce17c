"""Mistakes of the user's: one line on stderr and exit code 2, without a traceback."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


class UserError(Exception):
    """A mistake of the user's; its text says what to change."""


def exit_code(program: str, run: Callable[[], None], errors: tuple[type[Exception], ...] = ()) -> int:
    """Run a program and report a mistake of the user's in one line on stderr.

    Args:
        program (`str`): The name that begins the line.
        run (`Callable[[], None]`): What the program does.
        errors (`tuple[type[Exception], ...]`): Exceptions that are mistakes of the user's here, besides [`UserError`].

    Returns:
        `int`: 0; 2 after a mistake of the user's; 130 after Ctrl-C; 141 where nobody reads stdout, as in `| true`.
    """
    expected: tuple[type[Exception], ...] = (UserError, *errors)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # names of files may hold what the terminal cannot show
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            run()
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # Python itself would complain at the end
    except expected as error:
        print(f"{program}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return 0


def script(*errors: type[Exception]) -> Callable[[Callable[[list[str] | None], None]], Callable[..., int]]:
    """Makes the `main` of a script, which returns the exit code; its mistakes are told under the name of its file.

    Args:
        errors (`type[Exception]`): Exceptions that are mistakes of the user's there, besides [`UserError`].

    Returns:
        `Callable`: a decorator of what the script does with its arguments, which are None for those of the process.
    """

    def decorate(run: Callable[[list[str] | None], None]) -> Callable[..., int]:
        @functools.wraps(run)
        def main(argv: list[str] | None = None) -> int:
            return exit_code(Path(run.__code__.co_filename).name, lambda: run(argv), errors)

        return main

    return decorate
