"""A page of generated images, each beside the training image most like it and the true one: what a model recalls, and
what is new.

    glide evaluate --output runs/held-out --data-dir emoji/held_out --features emoji --label-column name
    python tools/nearest_images.py runs/held-out/pictures/guidance-3 --data-dir emoji/held_out \\
        --train-data-dir emoji/train --features emoji --output held_out.png

Alike are images whose features point the same way (the cosine between them).
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image

from glide_cli import Parser, script
from glide_cli.loading import silence_libraries
from glide_cli.options import image_file, positive_int
from glide_cli.output import add_captions, make_grid, save_image
from glide_cli.run_evaluate import load_network
from glide_pipelines.evaluation import CaptionedImages, DatasetImages, GeneratedImages, measure


@script(ValueError, OSError, ImportError)
def main(argv: list[str] | None) -> None:
    """Find the most similar training images, print them, and write the page."""
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("images", type=Path, help="folder of images that glide evaluate has generated")
    add("--data-dir", required=True, metavar="FOLDER", help="the true images that they were measured against")
    add("--train-data-dir", required=True, metavar="FOLDER", help="the images that the model was trained on")
    add("--features", required=True, metavar="NAME", help="network of the features, as of glide evaluate")
    add("--num-captions", type=positive_int, default=48, metavar="N", help="so many (default: %(default)s)")
    add("--size", type=positive_int, default=128, metavar="N", help="width of each image (default: %(default)s)")
    add("--columns", type=positive_int, default=2, metavar="N", help="triples side by side (default: %(default)s)")
    add("--output", type=image_file, required=True, help="image file")
    args = parser.parse_args(argv)
    silence_libraries()

    true = DatasetImages(args.num_captions, data_dir=args.data_dir)
    train = DatasetImages(sys.maxsize, data_dir=args.train_data_dir)
    generated = GeneratedImages(args.images, true.captions)
    network = load_network(args.features)

    def directions(images: CaptionedImages, title: str) -> torch.Tensor:
        measured = measure(images, args.size, network, None, 64, title)
        if measured.unreadable:
            raise ValueError(f"{title} number {measured.unreadable[0]} cannot be read.")
        return F.normalize(measured.features, dim=1)

    alike = directions(generated, "generated image") @ directions(train, "training image").T
    shown: list[Image.Image | None] = []
    captions = []
    for index, (cosine, nearest) in enumerate(zip(*alike.max(dim=1), strict=True)):
        caption, other = true.captions[index], train.captions[nearest]
        print(f"{caption}: {other} ({cosine:.2f})")
        shown += [generated.image(index, args.size), train.image(int(nearest), args.size), true.image(index, args.size)]
        captions += [caption, f"in training: {other}", "the true image"]
    images = [image.resize((args.size, args.size)) for image in shown if image is not None]
    save_image(make_grid(add_captions(images, captions), 3 * args.columns), args.output)


if __name__ == "__main__":
    sys.exit(main())
