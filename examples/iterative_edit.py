"""Edit one image again and again, each time under another mask and with another prompt (GLIDE, figure 3).

    python examples/iterative_edit.py --output story.png

The strip shows every image with the prompt that made it and a frame around what was repainted. What no mask touched
is the same in all of them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw

from glide_cli import Parser, script
from glide_cli.options import image_file, seed
from glide_cli.output import add_captions, make_grid, save_image
from glide_pipelines import GLIDEInpaintPipeline, shapes_checkpoint


# A prompt says what the whole image shows afterwards; a box is left, top, right, lower in units of the image.
STORY = (
    ("a red circle on a white background", (0.05, 0.05, 0.5, 0.5)),
    ("a blue square and a red circle on a white background", (0.5, 0.5, 0.95, 0.95)),
    ("a green star, a red circle and a blue square on a white background", (0.55, 0.05, 0.95, 0.45)),
    ("a yellow triangle, a green star and a blue square on a white background", (0.05, 0.05, 0.5, 0.5)),
    ("a purple cross, a yellow triangle and a green star on a white background", (0.5, 0.5, 0.95, 0.95)),
)


def make_masks(size: tuple[int, int]) -> list[Image.Image]:
    """The masks of the story for images of `(width, height)`, white where it repaints."""
    masks = []
    for _, box in STORY:
        mask = Image.new("L", size)
        left, top, right, lower = (round(end * length) for end, length in zip(box, size * 2, strict=True))
        mask.paste(255, (left, top, right, lower))
        masks.append(mask)
    return masks


def tell(pipe: GLIDEInpaintPipeline, masks: Sequence[Image.Image], seed: int) -> list[Image.Image]:
    """The images of the story, the empty one first: each is the one before, edited."""
    images = [Image.new("RGB", masks[0].size, "white")]
    for index, ((prompt, _), mask) in enumerate(zip(STORY, masks, strict=True)):
        generator = torch.Generator().manual_seed(seed + index)
        images += pipe(prompt, image=images[-1], mask_image=mask, generator=generator).images
    return images


def make_strip(images: Sequence[Image.Image], masks: Sequence[Image.Image]) -> Image.Image:
    """The images side by side, each with its prompt below and a frame around what was repainted."""
    framed = [image.copy() for image in images]
    for image, mask in zip(framed[1:], masks, strict=True):
        left, top, right, lower = mask.getbbox() or (0, 0, *mask.size)
        ImageDraw.Draw(image).rectangle((left, top, right - 1, lower - 1), outline="gray")
    return make_grid(add_captions(framed, ["an empty image", *(prompt for prompt, _ in STORY)]), len(framed))


@script(ValueError, OSError)
def main(argv: list[str] | None) -> None:
    """Tell the story, and count what no mask touched."""
    parser = Parser(description=__doc__)
    parser.add_argument("--output", type=image_file, required=True, help="image file")
    parser.add_argument("--model", help="folder or Hub id of a pipeline (default: the checkpoint that ships)")
    parser.add_argument("--seed", type=seed, default=0, help="of the noise (default: %(default)s)")
    args = parser.parse_args(argv)

    pipe = GLIDEInpaintPipeline.from_pretrained(args.model or shapes_checkpoint("inpaint"))
    height, width = pipe.default_size
    masks = make_masks((width, height))
    images = tell(pipe, masks, args.seed)
    save_image(make_strip(images, masks), args.output)
    untouched = ~np.any([np.asarray(mask) > 0 for mask in masks], axis=0)
    same = (np.asarray(images[-1]) == np.asarray(images[0])).all(axis=2)
    print(f"{args.output}: inpainted in {pipe.mode} mode; no mask touched {untouched.sum()} pixels, of which", end=" ")
    print(f"{(same & untouched).sum()} are as in the first image")


if __name__ == "__main__":
    sys.exit(main())
