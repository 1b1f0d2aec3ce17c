"""Measure a model over guidance scales: `glide evaluate` as a script."""

from __future__ import annotations

import sys

import glide_cli


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code."""
    return glide_cli.run_command("evaluate", argv, "evaluate.py")


if __name__ == "__main__":
    sys.exit(main())
