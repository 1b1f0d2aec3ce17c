"""`python -m glide_pipelines` is the `glide` command."""

import sys

from glide_cli import main


sys.exit(main())
