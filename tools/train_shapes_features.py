"""Train the small classifier whose features and probabilities measure models of the shapes world.

    python tools/train_shapes_features.py --output runs/shapes-features

The one that ships was made by this command. See docs/evaluation.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

from glide_cli import Parser, script
from glide_cli.options import positive_int, seed
from glide_cli.output import training_bar
from glide_pipelines.shapes import ShapesWorld
from glide_pipelines.shapes.features import accuracy, train_shapes_features


NUM_TEST_SCENES = 2000


@script(ValueError, OSError)
def main(argv: list[str] | None) -> None:
    """Train, save, and print how good it is."""
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--output", type=Path, required=True, help="folder of the classifier, in half precision")
    add("--steps", type=positive_int, default=6000, help="default: %(default)s")
    add("--batch-size", type=positive_int, default=64, help="default: %(default)s")
    add("--seed", type=seed, default=0, help="of scenes and weights (default: %(default)s)")
    args = parser.parse_args(argv)
    with training_bar(args.steps) as report:
        model = train_shapes_features(args.steps, args.batch_size, args.seed, report)
    model.half().save_pretrained(args.output)
    world = ShapesWorld(args.seed + 1, held_out=True)
    scenes = [world.scene(index) for index in range(NUM_TEST_SCENES)]
    print(f"Right of {NUM_TEST_SCENES} scenes that were not trained on, per cent:")
    for name, share in accuracy(model.float(), scenes).items():
        print(f"{name:12} {100 * share:.1f}")


if __name__ == "__main__":
    sys.exit(main())
