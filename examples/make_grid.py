"""Draw the grid of the README: captions of scenes whose combinations were never trained on, each under its
picture.

    python examples/make_grid.py --output docs/images/shapes_grid.png

The captions are the first ones of the world that are short enough to be read under a picture; none was chosen.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont

import glide_cli
from glide_pipelines import GLIDEPipeline, shapes_checkpoint
from glide_pipelines.cli import make_grid, save_whole
from glide_pipelines.shapes import ShapesWorld


NUM_PICTURES = 16
COLUMNS = 4
MAX_LETTERS = 70
FONT = ImageFont.load_default(12)
LINE_HEIGHT = 15  # pixels


def wrap(text: str, width: int) -> list[str]:
    """The text in lines of at most `width` pixels, broken between words."""
    lines = [""]
    for word in text.split():
        line = f"{lines[-1]} {word}".strip()
        if lines[-1] and FONT.getlength(line) > width:
            lines.append(word)
        else:
            lines[-1] = line
    return lines


def add_captions(pictures: Sequence[Image.Image], captions: Sequence[str]) -> list[Image.Image]:
    """Each picture with its caption below it, all of one height."""
    width, height = pictures[0].size
    texts = [wrap(caption, width - 4) for caption in captions]
    strip = LINE_HEIGHT * max(map(len, texts)) + 6
    captioned = []
    for picture, lines in zip(pictures, texts, strict=True):
        sheet = Image.new("RGB", (width, height + strip), "white")
        sheet.paste(picture)
        draw = ImageDraw.Draw(sheet)
        for index, line in enumerate(lines):
            draw.text((width / 2, height + 2 + index * LINE_HEIGHT), line, "black", FONT, anchor="ma")
        draw.rectangle((0, 0, width - 1, height - 1), outline="lightgray")
        captioned.append(sheet)
    return captioned


def draw(argv: list[str] | None) -> None:
    """Draw the grid."""
    parser = glide_cli.Parser(description=__doc__)
    parser.add_argument("--output", type=glide_cli.picture_file, required=True, help="picture file")
    parser.add_argument("--model", help="folder or Hub id of a pipeline (default: the checkpoint that ships)")
    parser.add_argument("--seed", type=glide_cli.seed, default=0, help="of captions and noise (default: %(default)s)")
    args = parser.parse_args(argv)

    world = ShapesWorld(args.seed, held_out=True)
    short = (text for text in map(str, map(world.caption, itertools.count())) if len(text) <= MAX_LETTERS)
    captions = list(itertools.islice(short, NUM_PICTURES))
    pipe = GLIDEPipeline.from_pretrained(args.model or shapes_checkpoint())
    generators = [torch.Generator().manual_seed(args.seed + index) for index in range(len(captions))]
    pictures = pipe(captions, generator=generators).images
    save_whole(make_grid(add_captions(pictures, captions), COLUMNS), args.output)


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code, as `glide_cli.exit_code` does."""
    return glide_cli.exit_code("make_grid.py", lambda: draw(argv), (ValueError, OSError))


if __name__ == "__main__":
    sys.exit(main())
