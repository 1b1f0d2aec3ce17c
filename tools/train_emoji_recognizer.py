"""Train the small classifier that names the emoji in an image: it judges what models of the emoji world generate.

    python tools/train_emoji_recognizer.py --output runs/emoji-recognizer

The one that ships was made by this command. It sees the true renderings only, never generated images.
"""

from __future__ import annotations

import sys
from pathlib import Path

from glide_cli import Parser, script
from glide_cli.options import positive_int, seed
from glide_cli.output import training_bar
from glide_pipelines.emoji import fetch_package, open_package
from glide_pipelines.emoji.recognizer import accuracy, read_renderings, train_recognizer
from glide_pipelines.emoji.sources import NAMES, PICTURES


@script(ValueError, OSError)
def main(argv: list[str] | None) -> None:
    """Train, save, and print how good it is."""
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--output", type=Path, required=True, help="folder of the classifier, in half precision")
    add("--pictures", help=f".tgz or folder of {PICTURES}; by default fetched with npm")
    add("--names", help=f".tgz or folder of {NAMES}; by default fetched with npm")
    add("--steps", type=positive_int, default=3000, help="default: %(default)s")
    add("--batch-size", type=positive_int, default=128, help="default: %(default)s")
    add("--seed", type=seed, default=0, help="of weights and augmentation (default: %(default)s)")
    args = parser.parse_args(argv)
    names, renderings = read_renderings(
        open_package("pictures", args.pictures) if args.pictures else fetch_package("pictures", PICTURES),
        open_package("names", args.names) if args.names else fetch_package("names", NAMES),
    )
    with training_bar(args.steps) as report:
        model, processor = train_recognizer(names, renderings, args.steps, args.batch_size, args.seed, report)
    top1, top5 = accuracy(model, renderings, args.seed + 1)
    model.half().save_pretrained(args.output)
    processor.save_pretrained(args.output)
    print(f"Of {len(names)} renderings, newly placed, coloured and spoiled: {100 * top1:.1f} % right, ", end="")
    print(f"{100 * top5:.1f} % among the first five.")


if __name__ == "__main__":
    sys.exit(main())
