"""The paper's comparison of its two guidances, measured exactly, on the checkpoints that ship.

    python examples/compare_guidance.py --output runs/comparison

draws 512 captions of the shapes world unguided, with classifier-free guidance, with CLIP guidance and with both, each
over its scales, and plots how often a whole caption is right against the recall, beside the plots of figure 6. It is
examples/evaluate.py with other defaults.
"""

from __future__ import annotations

import sys

import evaluate


CHOICES = {
    "base_only": True,  # CLIP guides the base stage
    "guidance_scale": [1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0],
    "clip_guidance_scale": [0.5, 1.0, 2.0, 4.0, 8.0, 16.0],
    "clip_beside": 2.0,
    "clip": "shapes",
}


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code of evaluate.py."""
    return evaluate.main(argv, "compare_guidance.py", __doc__, **CHOICES)


if __name__ == "__main__":
    sys.exit(main())
