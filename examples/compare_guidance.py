"""The paper's comparison of its two guidances, measured exactly, on the checkpoints that ship.

    python examples/compare_guidance.py --output runs/comparison

draws 512 captions of the shapes world unguided, with classifier-free guidance, with CLIP guidance and with both, each
over its scales, and plots how often a whole caption is right against the recall, beside the plots of figure 6. It is
examples/evaluate.py with these choices made; further options of that script may be added, and replace them.
"""

from __future__ import annotations

import sys

import evaluate


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code of evaluate.py."""
    choices = ["--base-only"]  # CLIP guides the base stage
    choices += ["--guidance-scale", "1", "1.5", "2", "3", "4", "6", "8"]
    choices += ["--clip-guidance-scale", "0.5", "1", "2", "4", "8", "16", "--clip-beside", "2"]
    choices += ["--clip", "shapes"]
    return evaluate.main([*choices, *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
