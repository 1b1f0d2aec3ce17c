"""Generate and edit images in a browser: `glide app` as a script."""

import sys
from functools import partial

from glide_cli import run_command


main = partial(run_command, "app", program="app.py")


if __name__ == "__main__":
    sys.exit(main())
