"""Plug a gradient of your own into the sampling: a classifier of noised images chooses the background.

    python examples/classifier_guidance.py --output classifier_guidance.png

A small convolutional network learns, on images of the shapes world with the base model's noise, which background they
have. The prompt says nothing of it; the gradient of log p(background | x_t) does (classifier guidance, Dhariwal and
Nichol, arXiv 2105.05233). Each scale gives one row of images, and it is counted how many have the background that was
asked for, and how many show what the prompt says.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from torch import nn

from glide_cli import Parser, script
from glide_cli.options import finite, image_file, positive_int, seed
from glide_cli.output import make_grid, save_image
from glide_pipelines import GLIDEDDPMScheduler, GLIDEPipeline, shapes_checkpoint
from glide_pipelines.images import to_tensor
from glide_pipelines.markdown import markdown_table
from glide_pipelines.shapes import BACKGROUNDS, ShapesWorld, detect, judge, render


PROMPT = "a red circle"
NUM_TRAINING_IMAGES = 1500
BATCH_SIZE = 64
WIDTH = 32


class NoisyClassifier(nn.Module):
    """Which background x_t has, at any timestep: `[B, 3, h, w]` and `[B]` to logits `[B, backgrounds]`."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Sequential(Timesteps(WIDTH, True, 0), TimestepEmbedding(WIDTH, WIDTH))
        self.first = nn.Conv2d(3, WIDTH, 3, stride=2, padding=1)
        self.body = nn.Sequential(
            nn.SiLU(),
            nn.Conv2d(WIDTH, WIDTH, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
            nn.SiLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(WIDTH, len(BACKGROUNDS)),
        )

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return self.body(self.first(sample) + self.time(timestep)[..., None, None])


def train_classifier(scheduler: GLIDEDDPMScheduler, size: int, steps: int, seed: int = 0) -> NoisyClassifier:
    """Train on images of `size` pixels with the scheduler's noise, at uniform timesteps."""
    torch.manual_seed(seed)
    world = ShapesWorld(seed)
    scenes = [world.scene(index) for index in range(NUM_TRAINING_IMAGES)]
    images = to_tensor([render(scene, size) for scene in scenes], (size, size))
    labels = torch.tensor([list(BACKGROUNDS).index(scene.background) for scene in scenes])
    classifier = NoisyClassifier()
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        chosen = torch.randint(len(labels), (BATCH_SIZE,))
        timesteps = torch.randint(scheduler.config.num_train_timesteps, (BATCH_SIZE,))
        x_t = scheduler.add_noise(images[chosen], torch.randn_like(images[chosen]), timesteps)
        loss = F.cross_entropy(classifier(x_t, timesteps), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return classifier.eval().requires_grad_(False)


def towards(
    classifier: NoisyClassifier, background: str, scale: float
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The `cond_fn` of a background: scale times the gradient of log p(background | x_t) with respect to x_t."""
    label = list(BACKGROUNDS).index(background)

    def cond_fn(x_t: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():  # a pipeline runs without gradients
            x_t = x_t.detach().requires_grad_()
            log_p = classifier(x_t, timestep).log_softmax(dim=1)[:, label]
            (gradient,) = torch.autograd.grad(log_p.sum(), x_t)
        return scale * gradient

    return cond_fn


@script(ValueError, OSError)
def main(argv: list[str] | None) -> None:
    """Train the classifier, sample with its gradient, count."""
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--output", type=image_file, required=True, help="image file; one row for each scale")
    add("--background", choices=list(BACKGROUNDS), default="black", help="what to guide to (default: %(default)s)")
    add(
        "--scales",
        type=finite,
        nargs="+",
        default=[0.0, 1.0, 3.0, 10.0],
        help="of the gradient (default: %(default)s)",
    )
    add(
        "--num-images",
        type=positive_int,
        default=12,
        help="images for each scale (default: %(default)s)",
    )
    add("--steps", type=positive_int, default=50, help="of sampling (default: %(default)s)")
    add("--train-steps", type=positive_int, default=1000, help="of the classifier (default: %(default)s)")
    add("--seed", type=seed, default=0, help="of training and noise (default: %(default)s)")
    args = parser.parse_args(argv)

    pipe = GLIDEPipeline.from_pretrained(shapes_checkpoint(), super_res_unet=None)
    classifier = train_classifier(pipe.scheduler, pipe.unet.config.sample_size, args.train_steps, args.seed)
    rows, counts = [], []
    for scale in args.scales:
        images = pipe(
            PROMPT,
            num_images_per_prompt=args.num_images,
            num_inference_steps=args.steps,
            cond_fn=towards(classifier, args.background, scale),
            generator=torch.Generator().manual_seed(args.seed),
        ).images
        found = sum(detect(image).background == args.background for image in images)
        right = sum(judge(image, PROMPT).correct for image in images)
        counts.append([f"{scale:g}", found, right])
        rows += images
    print(markdown_table(["scale", f"{args.background} background, of {args.num_images}", PROMPT], counts))
    save_image(make_grid(rows, args.num_images), args.output)


if __name__ == "__main__":
    sys.exit(main())
