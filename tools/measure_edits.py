"""How well a model edits captioned images, as a classifier of true images sees it.

    python examples/make_emoji_set.py emoji-true --copies 1
    python tools/measure_edits.py --model emoji --data-dir emoji-true/train --features emoji --label-column name

gives it the caption of a true image and a part of what that image shows:

- repaint: the image without its lower half, which the inpainting pipeline fills in;
- sketch: the image reduced to 4 x 4 pixels, which image-to-image turns into an image;
- enlarge: the image reduced to the size of the base model, which the upsampler enlarges.

Each row has what the classifier finds in what was given, and in the result; and how far both are from the true image.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from glide_cli import Parser, exit_code
from glide_cli.loading import load_pipeline, model_values, silence_libraries, step_values
from glide_cli.options import add_model_options, add_sampling_options, finite, positive_int, seed
from glide_cli.run_evaluate import load_network
from glide_pipelines import GLIDEImg2ImgPipeline, GLIDEInpaintPipeline, GLIDEPipeline, GLIDESuperResolutionPipeline
from glide_pipelines.evaluation import DatasetImages, class_numbers, figures, generators, measure
from glide_pipelines.markdown import markdown_table


SCRIBBLE_SIZE = 4


class Shown(NamedTuple):
    """Captioned images in memory."""

    captions: list[str]
    images: Sequence[Image.Image]

    def image(self, index: int, size: int) -> Image.Image:
        """The image of a caption."""
        return self.images[index]


class Edit(NamedTuple):
    """A pipeline, the images that it is given, and what else it takes."""

    pipe: Any
    given: list[Image.Image]
    call: dict[str, Any]


def edits(pipe: GLIDEPipeline, images: Sequence[Image.Image], strength: float) -> dict[str, Edit]:
    """What is asked for, by name."""
    size = pipe.default_size[0]
    mask = Image.new("L", (size, size))
    mask.paste(255, (0, size // 2, size, size))
    hidden = [Image.composite(Image.new("RGB", image.size, image.getpixel((0, 0))), image, mask) for image in images]
    scribbles = [_reduced(image, SCRIBBLE_SIZE).resize(image.size, Image.Resampling.NEAREST) for image in images]
    small = [_reduced(image, size // pipe.scale_factor) for image in images]
    return {
        "repaint": Edit(GLIDEInpaintPipeline.from_pipe(pipe), hidden, {"mask_image": mask}),
        "sketch": Edit(GLIDEImg2ImgPipeline.from_pipe(pipe), scribbles, {"strength": strength}),
        "enlarge": Edit(GLIDESuperResolutionPipeline.from_pipe(pipe), small, {}),
    }


def _reduced(image: Image.Image, size: int) -> Image.Image:
    return image.resize((size, size), Image.Resampling.BOX)


def measure_edits(argv: list[str] | None) -> None:
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
    add_sampling_options(parser.add_argument_group("how to sample"))
    add_model_options(parser.add_argument_group("which model, and where it runs"))
    args = parser.parse_args(argv)
    silence_libraries()

    pipe = load_pipeline(**model_values(args))
    steps = step_values(args.steps, args.super_res_steps)
    size = pipe.default_size[0]
    true = DatasetImages(
        args.num_captions, data_dir=args.data_dir, label_column=args.label_column, shuffle_seed=args.seed
    )
    images = [image for index in range(len(true.captions)) if (image := true.image(index, size)) is not None]
    if len(images) < len(true.captions):
        raise ValueError("--data-dir: an image cannot be read (see above).")
    network = load_network(args.features).to(pipe.device)
    labels = class_numbers(true, network)

    def judged(shown: Sequence[Image.Image]) -> tuple[str, str]:
        whole = [image.resize((size, size), Image.Resampling.BICUBIC) for image in shown]
        found = figures(None, measure(Shown(true.captions, whole), size, network, None, 64, "judge"), labels=labels)
        differences = [np.abs(np.subtract(a, b, dtype=float)).mean() / 255 for a, b in zip(whole, images, strict=True)]
        return f"{found['top1']:.1f} ({found['top5']:.1f})", f"{np.mean(differences):.4f}"

    rows = []
    for name, edit in edits(pipe, images, args.strength).items():
        guidance = {} if name == "enlarge" else {"guidance_scale": args.guidance_scale}
        taken = {key: value for key, value in steps.items() if name != "enlarge" or key.startswith("super_res_")}
        edit.pipe.set_progress_bar_config(disable=True)
        results: list[Image.Image] = []
        for start in range(0, len(images), args.batch_size):
            part = slice(start, start + args.batch_size)
            noise = generators(args.seed + start, len(images[part]))
            call = edit.call | guidance | taken
            results += edit.pipe(true.captions[part], image=edit.given[part], generator=noise, **call).images
        rows.append([name, *judged(edit.given), *judged(results)])
    found, distance = "right (among five), per cent", "mean absolute difference"
    print(markdown_table(["task", f"given: {found}", distance, f"result: {found}", distance], rows))


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code, as `glide_cli.exit_code` does."""
    return exit_code("measure_edits.py", lambda: measure_edits(argv), (ValueError, OSError, ImportError))


if __name__ == "__main__":
    sys.exit(main())
