"""`python -m glide_pipelines.emoji OUTPUT`: makes the captioned set of Fluent emoji."""

from __future__ import annotations

import argparse
import sys

from tqdm.auto import tqdm  # type: ignore[import-untyped]

from .build import SKIN_TONE_CHOICES, SYMBOL_CHOICES, build
from .sources import NAMES, PICTURES, fetch_package, open_package


def main(argv: list[str] | None = None) -> None:
    """Make the folder and say what it holds."""
    parser = argparse.ArgumentParser(
        prog="python -m glide_pipelines.emoji",
        description="Make a folder of captioned pictures of Microsoft's Fluent emoji (MIT licence).",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("output", help="folder to make")
    add("--pictures", help=f".tgz or folder of {PICTURES}; by default fetched with npm")
    add("--names", help=f".tgz or folder of {NAMES}; by default fetched with npm")
    add("--size", type=int, default=128, help="width and height of the pictures, a divisor of 256")
    add(
        "--copies", type=int, default=4, help="training pictures of each emoji: moved, and one on a coloured background"
    )
    add("--skin_tones", choices=SKIN_TONE_CHOICES, default="default", help="the yellow ones only, or all")
    add("--symbols", choices=SYMBOL_CHOICES, default="out", help="letters and signs: left out, a folder, or trained on")
    add("--seed", type=int, default=0, help="of places, scales and backgrounds")
    args = parser.parse_args(argv)
    try:
        pictures = open_package("pictures", args.pictures) if args.pictures else fetch_package("pictures", PICTURES)
        names = open_package("names", args.names) if args.names else fetch_package("names", NAMES)
        done = build(
            args.output,
            pictures,
            names,
            size=args.size,
            copies=args.copies,
            skin_tones=args.skin_tones,
            symbols=args.symbols,
            seed=args.seed,
            progress=lambda emoji: tqdm(emoji, unit="emoji"),
        )
    except (ValueError, OSError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        sys.exit(2)
    for folder, count in done.pictures.items():
        print(f"{args.output}/{folder}: {count} pictures")
    if done.missing:
        print(f"{len(done.missing)} emoji that are newer than the pictures were left out")


if __name__ == "__main__":
    main()
