"""Measure a model over guidance scales: `glide evaluate` as a script."""

import sys
from functools import partial

from glide_cli import run_command


main = partial(run_command, "evaluate", program="evaluate.py")


if __name__ == "__main__":
    sys.exit(main())
