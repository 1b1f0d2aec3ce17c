"""Write the model cards of the checkpoints that ship, from the figures of `glide evaluate-shapes`, and of
`glide evaluate` for the emoji.

    python tools/write_model_cards.py --text-to-image figures.json --inpaint inpaint.json --noised-clip clip.json
    python tools/write_model_cards.py --emoji runs/emoji-trained/results.json runs/emoji-held-out/results.json \\
        --emoji-noised-clip runs/emoji-clip/results.json

Each is the README.md of its checkpoint's folder, and shows samples.webp if that lies there. What is not given stays as
it is.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from glide_cli import Parser, script
from glide_cli.options import input_file
from glide_pipelines.checkpoints import ROOT
from glide_pipelines.conversion.model_card import model_card
from glide_pipelines.emoji import HELD_OUT, NOTICE
from glide_pipelines.evaluation import table
from glide_pipelines.shapes.edit_evaluation import edit_table
from glide_pipelines.shapes.evaluation import guidance_table
from glide_pipelines.shapes.retrieval import retrieval_table


LICENCE = "Apache-2.0, as the package that it ships with."
EMOJI_LICENCE = f"{LICENCE} The images that it learned from are under the MIT licence: NOTICE.md."
DATA = """\
Images of the shapes world, rendered while it trained and never twice: one to three objects of six shapes, eight colours
and two sizes on three backgrounds, with a caption that leaves some of this unstated. One combination of objects and
background in ten was kept back; the figures below are on those."""
SAMPLES = {"Samples": "![Images that it generated](samples.webp)"}
INSTALL = "```bash\npip install glide-pipelines\n```\n\n"
COMMAND = "How it was trained, command by command: `docs/shapes_training.md` of glide-pipelines."


def text_to_image(results: dict[str, Any]) -> dict[str, str]:
    """The sections of the card of the text-to-image pair."""
    return {
        "": "GLIDE at the size of a laptop: a base model that generates 32 x 32 pixels from a caption and an upsampler "
        "to 128 x 128, trained from scratch on a world of coloured shapes. Made to learn and to measure on: it knows "
        "nothing but these shapes.",
        "Use": f"{INSTALL}```python\nfrom glide_pipelines import GLIDEPipeline, shapes_checkpoint\n\n"
        "pipe = GLIDEPipeline.from_pretrained(shapes_checkpoint())\n"
        'pipe("a red circle above a blue square").images[0].save("image.png")\n```',
        "What it was trained on": f"{DATA} {COMMAND}",
        "What it can do": f"{_settings(results)}\n\n{guidance_table(results)}",
        "What it cannot do": "It understands the words of its captions and no others; `glide` warns of a prompt "
        "outside them. Where the table shows less than 100, an image may differ from its caption, and nothing warns "
        "of it. The upsampler was trained on small images of this world only.",
    }


def inpaint(results: dict[str, Any]) -> dict[str, str]:
    """The sections of the card of the inpainting pair."""
    columns = {"true images": results["renders"], **results["columns"]}
    return {
        "": "GLIDE's inpainting models at the size of a laptop: the text-to-image pair of the shapes world, "
        "trained on to fill a masked region of an image so that it fits a caption of the whole.",
        "Use": f"{INSTALL}```python\nfrom diffusers.utils import load_image\n\n"
        "from glide_pipelines import GLIDEInpaintPipeline, shapes_checkpoint\n\n"
        'image, mask = load_image("image.png"), load_image("mask.png")  # white in the mask is repainted\n'
        'pipe = GLIDEInpaintPipeline.from_pretrained(shapes_checkpoint("inpaint"))\n'
        'pipe("a green star below a blue square", image=image, mask_image=mask).images[0].save("edited.png")\n```',
        "What it was trained on": f"{DATA} Masks are rectangles, strokes, everything and nothing. {COMMAND}",
        "What it can do": f"{_settings(results)} One object of a scene is masked and another asked for; beside this "
        f"model (fine-tuned) stands the text-to-image one, which only gets the known pixels put back (implicit).\n\n"
        f"{edit_table(columns)}",
        "What it cannot do": "Anything but these shapes; and it takes the caption to be about the whole image.",
    }


def noised_clip(results: dict[str, Any]) -> dict[str, str]:
    """The sections of the card of the noised CLIP."""
    return {
        "": "A CLIP that was trained on noised images of the shapes world: it says how well x_t fits a caption, and "
        "its gradient guides the text-to-image checkpoint beside it.",
        "Use": _clip_use("shapes", "a red circle above a blue square", 3.0),
        "What it was trained on": f"{DATA} The images are noised by the base model's linear schedule. {COMMAND}",
        "What it can do": "Which caption it finds nearest to a noised image, on held-out scenes. A full caption says "
        "shape, colour and size of every object and the background; the ideal observer picks among these by Bayes' "
        "rule, knowing how the world renders: no network is right more often. The other captions state less, "
        f"so that several may be true of an image.\n\n{retrieval_table(results['timesteps'])}",
        "What it cannot do": "Captions in other words than the world's own, and images of anything else.",
    }


def emoji(trained: dict[str, Any], held_out: dict[str, Any]) -> dict[str, str]:
    """The sections of the card of the text-to-image pair of emoji."""
    return {
        "": "GLIDE at the size of a laptop, trained from scratch on Microsoft's Fluent emoji: a base model that "
        "generates 32 x 32 pixels from a caption and an upsampler to 128 x 128. Both predict v in place of noise "
        "(arXiv 2202.00512). Both inpaint, too: they take the known image and the mask.",
        "Use": f"{INSTALL}```python\nfrom glide_pipelines import GLIDEPipeline, pretrained_checkpoint\n\n"
        'pipe = GLIDEPipeline.from_pretrained(pretrained_checkpoint("emoji"))\n'
        'pipe("a slice of pizza").images[0].save("image.png")\n```\n\n'
        "Editing: `GLIDEInpaintPipeline.from_pipe(pipe)`, `GLIDEImg2ImgPipeline` and "
        "`GLIDESuperResolutionPipeline` the same.",
        "What it was trained on": "1,333 emoji on plain backgrounds, with captions made from their names. "
        f"{len(HELD_OUT)} others, combinations of parts that these show apart, were kept back. How it was trained, "
        "command by command: `docs/emoji.md` of glide-pipelines.",
        "What it can do": "A classifier that was trained on the true images alone says which of 1,377 emoji an image "
        f"shows. How often that is the one that was asked for, of those that were trained ({_sampling(trained)}):\n\n"
        f"{table([trained['real'], *trained['sweep']])}\n\n"
        f"and of those that were kept back:\n\n{table([held_out['real'], *held_out['sweep']])}",
        "What it cannot do": "It has seen one image of each emoji, and what it generates for a name that it knows is "
        "that image again, more or less. A new combination comes out right far less often, as the second table shows. "
        "It knows the words of its captions and no others, no scenes, and no letters.",
    }


def _clip_use(world: str, prompt: str, scale: float) -> str:
    """How the noised CLIP of a world is used."""
    return (
        f"{INSTALL}```python\nfrom glide_pipelines import CLIPGuidedPipeline, GLIDEPipeline, NoisedCLIPModel, "
        "pretrained_checkpoint\nfrom transformers import GPT2Tokenizer\n\n"
        f'folder = pretrained_checkpoint("{world}", "noised-clip")\n'
        "clip = {\n"
        '    "clip_model": NoisedCLIPModel.from_pretrained(folder),\n'
        '    "clip_tokenizer": GPT2Tokenizer.from_pretrained(folder),\n'
        "}\n"
        f'base = GLIDEPipeline.from_pretrained(pretrained_checkpoint("{world}"))\n'
        "pipe = CLIPGuidedPipeline.from_pipe(base, **clip)\n"
        f'pipe("{prompt}", clip_guidance_scale={scale}).images[0].save("guided.png")\n```'
    )


def emoji_noised_clip(results: dict[str, Any]) -> dict[str, str]:
    """The sections of the card of the noised CLIP of emoji."""
    return {
        "": "A small CLIP that was trained on noised images of Microsoft's Fluent emoji: it says how well x_t fits a "
        "caption, and its gradient guides the checkpoint beside it.",
        "Use": _clip_use("emoji", "a slice of pizza", 4.0),
        "What it was trained on": "The images and captions of the checkpoint that it guides, under noise. How it was "
        "trained, command by command: `docs/emoji.md` of glide-pipelines.",
        "What it can do": "A classifier that was trained on the true images alone says which of 1,377 emoji an image "
        "shows: how often that is the one that was asked for, without guidance (guidance-1), with classifier-free "
        f"guidance, and with this CLIP's ({_sampling(results)}, base model alone):\n\n"
        f"{table([results['real'], *results['sweep']])}",
        "What it cannot do": "It has seen one image of each emoji. It knows the words of its captions and no others.",
    }


class Card(NamedTuple):
    """What a card says beside its sections, which are made from figures."""

    title: str
    task: str
    sections: Callable[..., dict[str, str]]
    folder: str
    tag: str = "shapes"
    licence: str = LICENCE
    notice: str | None = None


CARDS = {
    "text-to-image": Card("GLIDE (shapes)", "text-to-image", text_to_image, "text-to-image"),
    "inpaint": Card("GLIDE (shapes), inpainting", "image-to-image", inpaint, "inpaint"),
    "noised-clip": Card("Noised CLIP (shapes)", "zero-shot-image-classification", noised_clip, "noised-clip"),
    "emoji": Card(
        "GLIDE (emoji)",
        "text-to-image",
        emoji,
        "emoji/text-to-image",
        "emoji",
        EMOJI_LICENCE,
        NOTICE,
    ),
    "emoji-noised-clip": Card(
        "Noised CLIP (emoji)",
        "zero-shot-image-classification",
        emoji_noised_clip,
        "emoji/noised-clip",
        "emoji",
        EMOJI_LICENCE,
        NOTICE,
    ),
}


def _settings(results: dict[str, Any]) -> str:
    settings = results["settings"]
    upsampled = settings["super_res_steps"]
    steps = (
        f"{settings['steps']} steps of the base model {f'and {upsampled} of the upsampler' if upsampled else 'alone'}"
    )
    return (
        f"Judged by the shapes world's own judge on {settings['num_captions']} held-out captions, {steps}, "
        f"{settings['scheduler']}, {settings['dtype']}."
    )


def _sampling(results: dict[str, Any]) -> str:
    settings = results["settings"]
    steps = "the default steps" if settings["steps"] is None else f"{settings['steps']} steps"
    return f"{settings['num_captions']} of them, {steps}, {settings['dtype']}"


@script(ValueError, OSError)
def main(argv: list[str] | None) -> None:
    """Write the cards whose figures are given."""
    parser = Parser(description=__doc__)
    for name in CARDS:
        count = 2 if name == "emoji" else 1
        parser.add_argument(f"--{name}", type=input_file, nargs=count, metavar="JSON", help="its figures")
    parser.add_argument(
        "--output", type=Path, default=ROOT, help="folder of the checkpoints (default: the package's own)"
    )
    args = parser.parse_args(argv)
    for name, card in CARDS.items():
        files = getattr(args, name.replace("-", "_"))
        if files is None:
            continue
        written = card.sections(*(json.loads(file.read_text(encoding="utf-8")) for file in files))
        folder = args.output / card.folder
        samples = SAMPLES if (folder / "samples.webp").is_file() else {}
        sections = {**written, **samples, "Licence": card.licence}
        model_card(card.title, sections, "apache-2.0", [card.tag], card.task).save(folder / "README.md")
        if card.notice is not None:
            (folder / "NOTICE.md").write_text(card.notice, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
