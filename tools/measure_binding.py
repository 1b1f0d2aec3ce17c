"""Does a model of the shapes world read its captions, or does it only know which words are in them?

    python tools/measure_binding.py

takes scenes of two objects, one above, below, left or right of the other, noises their images, and compares how
well the base model predicts them with the true caption, with one whose colours are swapped, with one whose relation is
turned round, and with none. For a bag of words the first three are the same. See docs/shapes_training.md.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator

import torch

from glide_cli import Parser, script
from glide_cli.loading import silence_libraries
from glide_cli.options import positive_int, seed
from glide_pipelines import GLIDEPipeline, shapes_checkpoint
from glide_pipelines.images import images_to_tensor
from glide_pipelines.markdown import markdown_table
from glide_pipelines.shapes import RELATIONS, Caption, Mention, Object, Scene, ShapesWorld, render
from glide_pipelines.shapes.reading import INVERSE
from glide_pipelines.shapes.scene import is_related


TIMESTEPS = (500, 600, 700, 800, 850)


def related_scenes(seed: int) -> Iterator[tuple[Scene, Object, Object, str]]:
    """Held-out scenes of two objects of different colour and shape, with the relation of the first to the second."""
    world = ShapesWorld(seed, held_out=True)
    for scene in map(world.scene, itertools.count()):
        if len(scene.objects) == 2:
            one, other = scene.objects
            ends = (one.x, one.y), (other.x, other.y)
            relation = next((name for name in RELATIONS if is_related(name, *ends)), None)
            if relation and one.colour != other.colour and one.shape != other.shape:
                yield scene, one, other, relation


def captions(scene: Scene, one: Object, other: Object, relation: str) -> dict[str, str]:
    """The true caption of a scene and those that it is compared with."""

    def caption(first: str, second: str, relation: str) -> str:
        objects = Mention(one.shape, first), Mention(other.shape, second)
        return str(Caption(objects, relation, scene.background))

    return {
        "true caption": caption(one.colour, other.colour, relation),
        "colours swapped": caption(other.colour, one.colour, relation),
        "relation turned round": caption(one.colour, other.colour, INVERSE[relation]),
        "no caption": "",
    }


@torch.no_grad()
def measure(pipe: GLIDEPipeline, num_scenes: int, seed: int, batch_size: int = 64) -> dict[int, dict[str, float]]:
    """By timestep and caption: the mean squared error of the predicted clean image, whose values span -1 to 1."""
    chosen = list(itertools.islice(related_scenes(seed), num_scenes))
    stage = pipe.stages["base"]
    size = stage.sample_size[0]
    x_start = images_to_tensor([render(scene, size) for scene, *_ in chosen])
    noise = torch.randn(x_start.shape, generator=torch.Generator().manual_seed(seed))
    texts = [captions(*item) for item in chosen]
    process = pipe.scheduler.train_process
    errors: dict[int, dict[str, float]] = {}
    for t, name in itertools.product(TIMESTEPS, texts[0]):
        total = 0.0
        for start in range(0, len(chosen), batch_size):
            part = slice(start, start + batch_size)
            at = torch.full((len(x_start[part]),), t)
            x_t = process.q_sample(x_start[part], noise[part], at)
            tokens = pipe.tokenize([text[name] for text in texts[part]])
            noise_pred = stage(x_t, at, **tokens)[:, :3]
            predicted = process.predict_x_start(x_t, noise_pred, at).clamp(-1, 1)
            total += (predicted - x_start[part]).square().mean(dim=(1, 2, 3)).sum().item()
        errors.setdefault(t, {})[name] = total / len(chosen)
    return errors


@script(ValueError, OSError)
def main(argv: list[str] | None) -> None:
    """Measure, and print the table."""
    parser = Parser(description=__doc__)
    parser.add_argument("--model", default=shapes_checkpoint(), help="folder or Hub id (default: the one that ships)")
    parser.add_argument("--num-scenes", type=positive_int, default=256, help="default: %(default)s")
    parser.add_argument("--seed", type=seed, default=0, help="of scenes and noise (default: %(default)s)")
    args = parser.parse_args(argv)
    silence_libraries()
    errors = measure(GLIDEPipeline.from_pretrained(args.model), args.num_scenes, args.seed)
    names = list(next(iter(errors.values())))
    rows = ([t, *(f"{row[name]:.4f}" for name in names)] for t, row in errors.items())
    print(markdown_table(["timestep", *names], rows))


if __name__ == "__main__":
    sys.exit(main())
