"""Time the parts of an image: `glide benchmark` as a script."""

import sys
from functools import partial

from glide_cli import run_command


main = partial(run_command, "benchmark", program="benchmark.py")


if __name__ == "__main__":
    sys.exit(main())
