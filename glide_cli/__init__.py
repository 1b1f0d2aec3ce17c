"""The `glide` command.

It is a package beside the library, because importing the library loads torch, which takes seconds: `glide --help`,
`--version` and a mistyped option answer at once. Each command is a module that imports the library only when it runs:

    add_arguments(parser)    adds its options
    check_arguments(args)    raises a UserError where they do not fit together (may be missing)
    run(args)                does the work
    ERRORS                   exceptions that are mistakes of the user's there (may be missing)

What the user must change is told by a UserError, in every module; the docstrings do not repeat it.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from types import ModuleType

from .errors import UserError, exit_code, script
from .options import Parser, did_you_mean


COMMANDS = {
    "draw": "generate and edit images, as glide does without a command",
    "app": "the same in a browser",
    "convert": "OpenAI's released checkpoints to folders of diffusers, and back",
    "prepare-data": "images and captions of your own, checked and written as shards",
    "train": "text-to-image, inpaint, distill, text-encoder or noised-clip",
    "evaluate": "FID, Inception score, precision and recall, CLIP score over guidance scales",
    "evaluate-shapes": "how often a model of the shapes world is right",
    "benchmark": "what an image costs in time and memory",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Words that begin with no command's name are what `draw` takes.

    Args:
        argv (`Sequence[str]`, *optional*): The arguments; those of the process by default.

    Returns:
        `int`: the exit code: 0, 2 after a mistake of the user's, 130 after Ctrl-C.
    """
    return run_command(*find_command(sys.argv[1:] if argv is None else argv))


def find_command(argv: Sequence[str]) -> tuple[str, list[str]]:
    """The command that the words of a command line name, and the words that are left for it."""
    words = ["--help"] if list(argv) == ["help"] else list(argv)
    return (words.pop(0) if words and words[0] in COMMANDS else "draw"), words


def run_command(command: str, argv: Sequence[str] | None = None, program: str | None = None) -> int:
    """Run one command, for `glide` and for the scripts that are doors to it.

    Args:
        command (`str`): One of `COMMANDS`.
        argv (`Sequence[str]`, *optional*): Its arguments; those of the process by default.
        program (`str`, *optional*): The name for help and errors; by default as `glide` calls it.

    Returns:
        `int`: the exit code, as [`main`] does.
    """
    program = program or ("glide" if command == "draw" else f"glide {command}")
    module = _module(command)
    errors = getattr(module, "ERRORS", ())
    return exit_code(program, lambda: module.run(read_arguments(command, argv, program)), errors)


def read_arguments(command: str, argv: Sequence[str] | None, program: str = "glide") -> argparse.Namespace:
    """Read and check the arguments of a command, given as [`run_command`] takes them."""
    try:
        args = command_parser(command, program).parse_args(argv)
        getattr(_module(command), "check_arguments", lambda args: None)(args)
    except UserError as error:
        # A mistyped command is a prompt, and what follows it is then seldom what `draw` takes.
        hint = did_you_mean(argv[0], COMMANDS, "glide ") if command == "draw" and argv else ""
        raise UserError(f"{error}{hint}") from error
    return args


def command_parser(command: str, program: str = "glide") -> Parser:
    """The parser of a command."""
    module = _module(command)
    width = max(map(len, COMMANDS))
    others = "\n".join(f"  glide {name:{width}}  {text}" for name, text in COMMANDS.items() if name != command)
    settings = module.parser_settings(others) if hasattr(module, "parser_settings") else {}
    parser = Parser(prog=program, description=module.__doc__, **settings)
    module.add_arguments(parser)
    return parser


def _module(command: str) -> ModuleType:
    return importlib.import_module(f".{command.replace('-', '_')}", __name__)


__all__ = [
    "COMMANDS",
    "Parser",
    "UserError",
    "command_parser",
    "exit_code",
    "find_command",
    "main",
    "read_arguments",
    "run_command",
    "script",
]
