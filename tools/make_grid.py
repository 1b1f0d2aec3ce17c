"""Make a grid of the README: images, each with its caption.

    python tools/make_grid.py --output docs/images/shapes_grid.png
    python tools/make_grid.py --model emoji "a taxi" "a slice of pizza" --output grid.png

Without captions they are of scenes whose combinations were never trained on, the first ones of the shapes world that
are short enough to be read under an image; none was chosen.
"""

from __future__ import annotations

import itertools
import sys

from glide_cli import Parser, script
from glide_cli.loading import find_model
from glide_cli.options import image_file, seed
from glide_cli.output import add_captions, make_grid, save_image
from glide_pipelines import GLIDEPipeline
from glide_pipelines.evaluation import generators
from glide_pipelines.shapes import ShapesWorld


NUM_IMAGES = 16
COLUMNS = 4
MAX_LETTERS = 70


@script(ValueError, OSError)
def main(argv: list[str] | None) -> None:
    """Generate the images and write the grid."""
    parser = Parser(description=__doc__)
    parser.add_argument("captions", nargs="*", help="default: of the shapes world")
    parser.add_argument("--output", type=image_file, required=True, help="image file")
    parser.add_argument("--model", help="folder, Hub id, or name of one that ships (default: shapes)")
    parser.add_argument("--seed", type=seed, default=0, help="of captions and noise (default: %(default)s)")
    args = parser.parse_args(argv)

    world = ShapesWorld(args.seed, held_out=True)
    short = (text for text in map(str, map(world.caption, itertools.count())) if len(text) <= MAX_LETTERS)
    captions = args.captions or list(itertools.islice(short, NUM_IMAGES))
    pipe = GLIDEPipeline.from_pretrained(find_model(args.model))
    images = pipe(captions, generator=generators(args.seed, len(captions))).images
    save_image(make_grid(add_captions(images, captions), COLUMNS), args.output)


if __name__ == "__main__":
    sys.exit(main())
