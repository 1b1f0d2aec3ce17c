"""How well a model edits captioned images, as a classifier of true images sees it.

    python examples/make_emoji_set.py emoji-true --copies 1
    python tools/measure_edits.py --model emoji --data-dir emoji-true/train --features emoji --label-column name

gives it the caption of a true image and a part of what that image shows:

- repaint: the image without its lower half, which the inpainting pipeline fills in;
- change: the most similar image of another class, without the box in which the two differ, for the inpainting pipeline;
  of those images of which that box is at most half (a smiling face becomes one with sunglasses);
- sketch: the image reduced to 4 x 4 pixels, which image-to-image turns into an image;
- enlarge: the image reduced to the size of the base model, which the upsampler enlarges.

Each row has what the classifier finds in what was given, and in the result; and how far both are from the true image.
With --implicit an inpainting model is used like one of text to image: it does not see the mask.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from glide_cli import Parser, script
from glide_cli.loading import make_fast, model_values, open_pipeline, silence_libraries, step_values
from glide_cli.options import add_model_options, add_sampling_options, finite, image_file, positive_int, seed
from glide_cli.output import add_captions, make_grid, save_image
from glide_cli.run_evaluate import load_network
from glide_pipelines import (
    GLIDEImg2ImgPipeline,
    GLIDEInpaintPipeline,
    GLIDEPipeline,
    GLIDESuperResolutionPipeline,
)
from glide_pipelines.evaluation import DatasetImages, class_numbers, figures, generators, measure
from glide_pipelines.markdown import markdown_table
from glide_pipelines.training import narrow_for_text_to_image


SCRIBBLE_SIZE = 4
COMPARED_SIZE = 32  # images are compared at this size
VISIBLE = 0.1  # a difference of colour, of 1
SHEET = 16


class Shown(NamedTuple):
    """Captioned images in memory."""

    captions: list[str]
    images: Sequence[Image.Image]

    def image(self, index: int, size: int) -> Image.Image:
        """The image of a caption."""
        return self.images[index]


class Task(NamedTuple):
    """A pipeline, the indices of the images that it is to make, what it is given for each, and what else it takes."""

    pipe: Any
    wanted: list[int]
    given: list[Image.Image]
    masks: list[Image.Image] | None = None
    call: dict[str, Any] = {}


def tasks(
    pipe: GLIDEPipeline, images: Sequence[Image.Image], labels: Sequence[str], number: int, strength: float
) -> dict[str, Task]:
    """What is asked for, by name."""
    size = pipe.default_size[0]
    half = Image.new("L", (size, size))
    half.paste(255, (0, size // 2, size, size))
    first = range(min(number, len(images)))
    hidden = [_without(images[index], half) for index in first]
    scribbles = [
        _reduced(images[index], SCRIBBLE_SIZE).resize((size, size), Image.Resampling.NEAREST) for index in first
    ]
    small = [_reduced(images[index], size // pipe.scale_factor) for index in first]
    changed = list(islice(_counterparts(images, labels), number))
    others = [images[other] for _, other, _ in changed]
    inpaint = GLIDEInpaintPipeline.from_pipe(pipe)
    return {
        "repaint": Task(inpaint, [*first], hidden, [half] * len(first)),
        "change": Task(inpaint, [index for index, _, _ in changed], others, [mask for _, _, mask in changed]),
        "sketch": Task(GLIDEImg2ImgPipeline.from_pipe(pipe), [*first], scribbles, call={"strength": strength}),
        "enlarge": Task(GLIDESuperResolutionPipeline.from_pipe(pipe), [*first], small),
    }


def _counterparts(images: Sequence[Image.Image], labels: Sequence[str]) -> Iterator[tuple[int, int, Image.Image]]:
    """Images, the most similar one of another class for each, and the mask of where they differ, if that is at most
    half of the image."""
    reduced = np.stack([np.asarray(_reduced(image, COMPARED_SIZE), dtype=float) / 255 for image in images])
    for index, image in enumerate(reduced):
        differences = np.abs(reduced - image)
        distances = differences.mean(axis=(1, 2, 3))
        distances[np.array(labels) == labels[index]] = np.inf
        other = int(distances.argmin())
        rows, columns = np.nonzero(differences[other].max(axis=2) > VISIBLE)
        if not len(rows):
            continue
        # One pixel of the reduced images around what differs.
        top, left = max(rows.min() - 1, 0), max(columns.min() - 1, 0)
        lower, right = min(rows.max() + 2, COMPARED_SIZE), min(columns.max() + 2, COMPARED_SIZE)
        if 2 * (lower - top) * (right - left) <= COMPARED_SIZE**2:
            mask = Image.new("L", (COMPARED_SIZE, COMPARED_SIZE))
            mask.paste(255, (left, top, right, lower))
            yield index, other, mask.resize(images[index].size, Image.Resampling.NEAREST)


def _without(image: Image.Image, mask: Image.Image) -> Image.Image:
    """An image that shows its background's colour where a mask is white."""
    return Image.composite(Image.new("RGB", image.size, image.getpixel((0, 0))), image, mask)


def _reduced(image: Image.Image, size: int) -> Image.Image:
    return image.resize((size, size), Image.Resampling.BOX)


@script(ValueError, OSError, ImportError)
def main(argv: list[str] | None) -> None:
    """Edit the images, and print the table."""
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--data-dir", required=True, metavar="FOLDER", help="true images with a metadata.jsonl")
    add("--label-column", required=True, metavar="NAME", help="names the class of each image")
    add("--features", required=True, metavar="NAME", help="the classifier, as of glide evaluate")
    add("--num-captions", type=positive_int, default=64, metavar="N", help="so many (default: %(default)s)")
    add("--strength", type=finite, default=0.8, help="of the sketch (default: %(default)s)")
    add("--guidance-scale", type=finite, help="of base stages (default: what the model recommends)")
    add("--seed", type=seed, default=0, help="of the choice of images and of noise (default: %(default)s)")
    add("--batch-size", type=positive_int, default=16, help="images at a time (default: %(default)s)")
    add("--implicit", action="store_true", help="do not show the known image to an inpainting model")
    add("--sheet", type=image_file, metavar="FILE", help=f"image file of the first {SHEET} changes")
    add_sampling_options(parser.add_argument_group("how to sample"))
    add_model_options(parser.add_argument_group("which model, and where it runs"))
    args = parser.parse_args(argv)
    silence_libraries()

    pipe = open_pipeline(**model_values(args))
    make_fast(args, pipe)
    if args.implicit:
        for name in ("unet", "super_res_unet"):
            pipe.register_modules(**{name: narrow_for_text_to_image(getattr(pipe, name))})
    steps = step_values(args.steps, args.super_res_steps)
    size = pipe.default_size[0]
    true = DatasetImages(sys.maxsize, data_dir=args.data_dir, label_column=args.label_column, shuffle_seed=args.seed)
    images = [image for index in range(len(true.captions)) if (image := true.image(index, size)) is not None]
    if len(images) < len(true.captions):
        raise ValueError("--data-dir: an image cannot be read (see above).")
    network = load_network(args.features).to(pipe.device)
    labels = class_numbers(true, network)
    assert labels is not None and true.labels is not None  # --label-column is required

    def judged(shown: Sequence[Image.Image], wanted: list[int]) -> tuple[str, str]:
        whole = [image.resize((size, size), Image.Resampling.BICUBIC) for image in shown]
        captioned = Shown([true.captions[index] for index in wanted], whole)
        found = figures(None, measure(captioned, size, network, None, 64, "judge"), labels=labels[wanted])
        differences = [
            np.abs(np.subtract(image, images[index], dtype=float)).mean() / 255
            for image, index in zip(whole, wanted, strict=True)
        ]
        return f"{found['top1']:.1f} ({found['top5']:.1f})", f"{np.mean(differences):.4f}"

    rows = []
    for name, task in tasks(pipe, images, true.labels, args.num_captions, args.strength).items():
        guidance = {} if name == "enlarge" else {"guidance_scale": args.guidance_scale}
        taken = {key: value for key, value in steps.items() if name != "enlarge" or key.startswith("super_res_")}
        task.pipe.set_progress_bar_config(disable=True)
        results: list[Image.Image] = []
        for start in range(0, len(task.wanted), args.batch_size):
            part = slice(start, start + args.batch_size)
            captions = [true.captions[index] for index in task.wanted[part]]
            masks = {} if task.masks is None else {"mask_image": task.masks[part]}
            noise = generators(args.seed + start, len(captions))
            call = task.call | masks | guidance | taken
            results += task.pipe(captions, image=task.given[part], generator=noise, **call).images
        rows.append([name, len(results), *judged(task.given, task.wanted), *judged(results, task.wanted)])
        if name == "change" and args.sheet is not None:
            triples = zip(task.given, results, [images[index] for index in task.wanted], strict=True)
            shown = [image for triple in triples for image in triple][: 3 * SHEET]
            captions = [text for index in task.wanted[:SHEET] for text in ("", true.captions[index], "the true image")]
            save_image(make_grid(add_captions(shown, captions), 6), args.sheet)
    found, distance = "right (among five), per cent", "mean absolute difference"
    print(markdown_table(["task", "images", f"given: {found}", distance, f"result: {found}", distance], rows))


if __name__ == "__main__":
    sys.exit(main())
