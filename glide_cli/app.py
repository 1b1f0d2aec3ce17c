"""Generate and edit images in a browser.

    glide app

serves a page to this computer until Ctrl-C; --host 0.0.0.0 serves it to the whole network, say to a classroom, whose
requests take their steps in turn. It sends no usage statistics.
"""

from __future__ import annotations

import argparse

from .errors import UserError
from .options import add_model_options, add_sampling_options, port


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `glide app`."""
    add_model_options(parser, default="emoji and shapes, two small ones that ship")
    shipped = "the one that ships with the model, else the model itself"
    parser.add_argument("--inpaint-model", metavar="MODEL", help=f"for the tab that edits (default: {shipped})")
    parser.add_argument(
        "--other-models", nargs="+", default=[], metavar="MODEL", help="more text-to-image models to choose from"
    )
    add_sampling_options(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to serve (default: %(default)s)")
    parser.add_argument("--port", type=port, help="default: the first free one from 7860 on")


def check_arguments(args: argparse.Namespace) -> None:
    """The page can change the steps, so they must be a number."""
    if isinstance(args.steps, str):
        raise UserError(f"--steps: must be a number, which the page can change, got {args.steps}")


def run(args: argparse.Namespace) -> None:
    """Load the models and serve the page."""
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise UserError('The app needs the extra `app` (in a clone: `pip install ".[app]"`).') from error

    from .page import serve

    serve(args)
