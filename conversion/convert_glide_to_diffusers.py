"""Convert OpenAI's GLIDE checkpoints to a folder that diffusers opens: `glide convert` as a script."""

import sys
from functools import partial

from glide_cli import run_command


main = partial(run_command, "convert", program="convert_glide_to_diffusers.py")


if __name__ == "__main__":
    sys.exit(main())
