"""The trainings of the command line, run in this process: mistakes are raised."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from glide_cli import Parser
from glide_cli.train import TRAININGS, check_arguments


def parse(training: str, argv: Sequence[str]) -> argparse.Namespace:
    """The options of one of `TRAININGS`."""
    parser = Parser()
    TRAININGS[training].add_options(parser)
    return parser.parse_args(argv)


def run_training(training: str, argv: Sequence[str]) -> None:
    """Run one of `TRAININGS`."""
    args = parse(training, argv)
    check_arguments(args)
    TRAININGS[training].run(args)
