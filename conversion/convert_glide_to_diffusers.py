"""Convert OpenAI's GLIDE checkpoints to a folder that diffusers opens: one direction of `glide convert` as a script."""

import sys

from glide_cli.convert import to_diffusers as main


if __name__ == "__main__":
    sys.exit(main())
