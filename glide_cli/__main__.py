"""`python -m glide_cli` is the `glide` command."""

import sys

from . import main


sys.exit(main())
