"""Convert a GLIDE pipeline's folder back to files that OpenAI's code loads: the other direction of `glide convert`."""

import sys

from glide_cli.convert import to_glide as main


if __name__ == "__main__":
    sys.exit(main())
