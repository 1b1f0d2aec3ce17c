"""Convert a GLIDE pipeline's folder back to files that OpenAI's code loads: `glide convert` as a script."""

import sys
from functools import partial

from glide_cli import run_command


main = partial(run_command, "convert", program="convert_diffusers_to_glide.py")


if __name__ == "__main__":
    sys.exit(main())
