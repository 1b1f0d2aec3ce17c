"""Make a folder of captioned images of Microsoft's Fluent emoji (MIT licence), to train on.

    python examples/make_emoji_set.py runs/emoji

The images and their names come from two npm packages, which are fetched with npm unless they are given.
"""

from __future__ import annotations

import sys

from tqdm.auto import tqdm

from glide_cli import Parser, script
from glide_cli.options import positive_int, seed
from glide_pipelines.emoji import build
from glide_pipelines.emoji.build import SKIN_TONE_CHOICES, SYMBOL_CHOICES
from glide_pipelines.emoji.sources import NAMES, PICTURES, fetch_package, open_package


@script(ValueError, OSError)
def main(argv: list[str] | None) -> None:
    """Make the folder and say what it holds."""
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("output", help="folder to make")
    add("--pictures", help=f".tgz or folder of {PICTURES}; by default fetched with npm")
    add("--names", help=f".tgz or folder of {NAMES}; by default fetched with npm")
    add("--size", type=positive_int, default=128, help="width and height, a divisor of 256 (default: %(default)s)")
    add(
        "--copies",
        type=positive_int,
        default=4,
        help="training images of each emoji: moved, and one on a coloured background (default: %(default)s)",
    )
    add(
        "--smallest_scale",
        type=float,
        default=0.8,
        metavar="X",
        help="how far these are scaled down; 1 leaves all where they are (default: %(default)s)",
    )
    add("--skin_tones", choices=SKIN_TONE_CHOICES, default="default", help="the yellow ones only, or all")
    add("--symbols", choices=SYMBOL_CHOICES, default="out", help="letters and signs: left out, a folder, or trained on")
    add("--seed", type=seed, default=0, help="of places, scales and backgrounds (default: %(default)s)")
    args = parser.parse_args(argv)

    done = build(
        args.output,
        open_package("pictures", args.pictures) if args.pictures else fetch_package("pictures", PICTURES),
        open_package("names", args.names) if args.names else fetch_package("names", NAMES),
        size=args.size,
        copies=args.copies,
        smallest_scale=args.smallest_scale,
        skin_tones=args.skin_tones,
        symbols=args.symbols,
        seed=args.seed,
        progress=lambda emoji: tqdm(emoji, unit="emoji"),
    )
    for folder, count in done.pictures.items():
        print(f"{args.output}/{folder}: {count} images")
    if done.missing:
        print(f"{len(done.missing)} emoji that are newer than the images were left out")


if __name__ == "__main__":
    sys.exit(main())
