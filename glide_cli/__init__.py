"""The `glide` command.

It is a package beside the library, because importing the library loads torch, which takes seconds: `glide --help`,
`--version` and a mistyped option answer at once. Each command is a module with `add_arguments(parser)` and `run(args)`,
which imports the library when it runs. Its `ERRORS` are the exceptions that are mistakes of the user's there.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from .errors import UserError, exit_code
from .options import (  # noqa: F401  the scripts of examples/ take them from here until they are moved
    SCHEDULERS,
    Parser,
    add_model_options,
    add_sampling_options,
    checked,
    finite,
    input_file,
    output_file,
    positive_int,
    seed,
    share,
    steps,
    strength,
    timestep,
)


COMMANDS = {
    "draw": "generate and edit images, as glide does without a command",
    "app": "the same in a browser",
    "convert": "OpenAI's released checkpoints to folders of diffusers, and back",
    "train": "text-to-image, inpaint or noised-clip",
    "evaluate": "FID, Inception score, precision and recall, CLIP score over guidance scales",
    "evaluate-shapes": "how often a model of the shapes world is right",
    "benchmark": "what an image costs in time and memory",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the words of the command line that begin with no command are a prompt to draw.

    Args:
        argv (`Sequence[str]`, *optional*): The arguments; those of the process by default.

    Returns:
        `int`: the exit code: 0, 2 after a mistake of the user's, 130 after Ctrl-C.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in COMMANDS:
        command = words.pop(0)
        return run_command(command, words, "glide" if command == "draw" else f"glide {command}")
    return run_command("draw", words, "glide")


def run_command(command: str, argv: Sequence[str] | None = None, program: str | None = None) -> int:
    """Run one command, for `glide` and for the scripts that are doors to it.

    Args:
        command (`str`): One of `COMMANDS`.
        argv (`Sequence[str]`, *optional*): Its arguments; those of the process by default.
        program (`str`, *optional*): The name for help and errors; by default that of the process's script.

    Returns:
        `int`: the exit code, as [`main`] does.
    """
    module = importlib.import_module(f".{command.replace('-', '_')}", __name__)
    parser = command_parser(command, program)

    def run() -> None:
        module.run(parser.parse_args(argv))

    return exit_code(parser.prog, run, getattr(module, "ERRORS", ()))


def command_parser(command: str, program: str | None = None) -> Parser:
    """The parser of a command, with the arguments of [`run_command`]."""
    module = importlib.import_module(f".{command.replace('-', '_')}", __name__)
    width = max(map(len, COMMANDS))
    others = "\n".join(f"  glide {name:{width}}  {text}" for name, text in COMMANDS.items() if name != command)
    settings = module.parser_settings(others) if hasattr(module, "parser_settings") else {}
    parser = Parser(prog=program, description=module.__doc__, **settings)
    module.add_arguments(parser)
    return parser


__all__ = ["COMMANDS", "Parser", "UserError", "command_parser", "exit_code", "main", "run_command"]
