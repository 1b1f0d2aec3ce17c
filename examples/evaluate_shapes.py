"""Measure a model of the shapes world: `glide evaluate-shapes` as a script."""

import sys
from functools import partial

from glide_cli import run_command


main = partial(run_command, "evaluate-shapes", program="evaluate_shapes.py")


if __name__ == "__main__":
    sys.exit(main())
