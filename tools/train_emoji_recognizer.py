"""Train the small classifier that names the emoji in an image: it judges what models of the emoji world generate.

    python tools/train_emoji_recognizer.py --output runs/emoji-recognizer

The one that ships was made by this command. It sees the true renderings only, never generated images.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tqdm.auto import tqdm

from glide_cli import Parser, exit_code
from glide_cli.options import positive_int, seed
from glide_pipelines.emoji import fetch_package, open_package
from glide_pipelines.emoji.recognizer import accuracy, read_renderings, train_recognizer
from glide_pipelines.emoji.sources import NAMES, PICTURES


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--output", type=Path, required=True, help="folder of the classifier, in half precision")
    add("--pictures", help=f".tgz or folder of {PICTURES}; by default fetched with npm")
    add("--names", help=f".tgz or folder of {NAMES}; by default fetched with npm")
    add("--steps", type=positive_int, default=3000, help="default: %(default)s")
    add("--batch-size", type=positive_int, default=128, help="default: %(default)s")
    add("--seed", type=seed, default=0, help="of weights and augmentation (default: %(default)s)")
    return parser.parse_args(argv)


def train(args: argparse.Namespace) -> None:
    """Train, save, and print how good it is."""
    names, renderings = read_renderings(
        open_package("pictures", args.pictures) if args.pictures else fetch_package("pictures", PICTURES),
        open_package("names", args.names) if args.names else fetch_package("names", NAMES),
    )
    with tqdm(total=args.steps, mininterval=5) as bar:

        def report(step: int, loss: float) -> None:
            bar.update()
            if step % 50 == 0:
                bar.set_postfix(loss=f"{loss:.3f}", refresh=False)

        model, processor = train_recognizer(names, renderings, args.steps, args.batch_size, args.seed, report)
    top1, top5 = accuracy(model, renderings, args.seed + 1)
    model.half().save_pretrained(args.output)
    processor.save_pretrained(args.output)
    print(f"Of {len(names)} renderings, newly placed, coloured and spoiled: {100 * top1:.1f} % right, ", end="")
    print(f"{100 * top5:.1f} % among the first five.")


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code, as `glide_cli.exit_code` does."""
    return exit_code("train_emoji_recognizer.py", lambda: train(parse_args(argv)), (ValueError, OSError))


if __name__ == "__main__":
    sys.exit(main())
