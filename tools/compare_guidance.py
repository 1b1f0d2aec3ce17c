"""The paper's comparison of its two guidances, measured exactly, on the checkpoints that ship.

    python tools/compare_guidance.py --output runs/comparison

generates images of 512 captions of the shapes world unguided, with classifier-free guidance, with CLIP guidance and
with both, each over its scales, and plots how often a whole caption is right against the recall, beside the plots of
figure 6. It is `glide evaluate` with the options of `CHOICES`, which those of the command line replace.
"""

from __future__ import annotations

import sys

import glide_cli


CHOICES = """
--base-only
--guidance-scale 1 1.5 2 3 4 6 8
--clip-guidance-scale 0.5 1 2 4 8 16
--clip-beside 2
--clip shapes
"""


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code."""
    given = sys.argv[1:] if argv is None else argv
    return glide_cli.run_command("evaluate", [*CHOICES.split(), *given], "compare_guidance.py")


if __name__ == "__main__":
    sys.exit(main())
