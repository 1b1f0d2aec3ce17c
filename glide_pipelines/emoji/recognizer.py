"""A small classifier that names the emoji in an image: trained on true renderings alone, it judges generated ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessor, get_cosine_schedule_with_warmup

from .build import choose
from .captions import captions
from .colours import BACKGROUNDS
from .sources import Package, picture_names, read_emoji, read_picture


SIZE = 64  # width and height of what the classifier sees
_SMALLEST, _LARGEST = 0.75, 1.05  # how far a rendering is scaled
_SMOOTH = Image.Resampling.BICUBIC
_COARSE = 32  # width and height of a base model's images


def read_renderings(pictures: Package, names: Package) -> tuple[list[str], torch.Tensor]:
    """The true renderings of all emoji of the set, those that are held out too.

    Args:
        pictures ([`Package`]): The 3D images.
        names ([`Package`]): The emoji data.

    Returns:
        `tuple[list[str], torch.Tensor]`: the names, the `name` of the set's `metadata.jsonl`; and uint8 images
        `[N, 4, 64, 64]` with transparency, whose colours are multiplied by it.

    Raises:
        ValueError: if a package is damaged.
    """
    files = picture_names(pictures)
    chosen = [emoji for emoji, _ in choose(read_emoji(names)) if emoji.codepoint in files]
    renderings = [
        # Pillow scales with the colours multiplied by the transparency, as "RGBa" has them.
        np.asarray(read_picture(pictures, files[emoji.codepoint]).convert("RGBa").resize((SIZE, SIZE), _SMOOTH))
        for emoji in chosen
    ]
    return [captions(emoji)[0] for emoji in chosen], torch.from_numpy(np.stack(renderings)).permute(0, 3, 1, 2)


def augment(renderings: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Move, scale and colour renderings, put them on backgrounds, and spoil some as a generator would.

    Args:
        renderings (`torch.Tensor` of shape `[B, 4, 64, 64]`): From 0 to 255, colours multiplied by the transparency.
        generator (`torch.Generator`): Of all that is random.

    Returns:
        `torch.Tensor` of shape `[B, 3, 64, 64]`: from -1 to 1, about.
    """
    count = len(renderings)

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    scale = uniform(_SMALLEST, _LARGEST)
    room = (1 - scale).abs() + 0.05
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = 1 / scale
    theta[:, :, 2] = uniform(-1, 1, 2) * (room / scale)[:, None]
    grid = F.affine_grid(theta, [count, 4, SIZE, SIZE], align_corners=False)
    placed = F.grid_sample(renderings.float() / 255, grid, align_corners=False)

    colours = torch.tensor([(255, 255, 255), *BACKGROUNDS.values()]) / 255
    # White, as most of the set is, for half of them.
    which = torch.randint(-len(colours), len(colours), (count,), generator=generator).clamp(min=0)
    images = placed[:, :3] + (1 - placed[:, 3:]) * colours[which][:, :, None, None]

    coarse = F.interpolate(images, size=(_COARSE, _COARSE), mode="area")
    coarse = F.interpolate(coarse, size=(SIZE, SIZE), mode="bicubic", align_corners=False)
    images = torch.where(uniform(0, 1, 1, 1, 1) < 0.4, coarse, images)
    images = (images - 0.5) * uniform(0.85, 1.15, 1, 1, 1) + 0.5 + uniform(-0.08, 0.08, 3, 1, 1)
    noise = torch.randn(images.shape, generator=generator)
    return 2 * (images + uniform(0, 0.05, 1, 1, 1) * noise) - 1


def train_recognizer(
    names: list[str],
    renderings: torch.Tensor,
    steps: int,
    batch_size: int = 128,
    seed: int = 0,
    report: Callable[[int, float], None] = lambda step, loss: None,
) -> tuple[ResNetForImageClassification, ViTImageProcessor]:
    """Train the classifier.

    Args:
        names (`list[str]`), renderings (`torch.Tensor`): Of [`read_renderings`].
        steps (`int`): Of AdamW.
        batch_size (`int`): Images per step.
        seed (`int`): Of weights and augmentation.
        report (`Callable[[int, float], None]`): Called after each step with its number, from 1, and its loss.

    Returns:
        `tuple`: the classifier in float32, whose classes are the names, and its image processor.
    """
    config = ResNetConfig(
        embedding_size=24,
        hidden_sizes=[32, 64, 128, 192],
        depths=[1, 2, 2, 1],
        layer_type="basic",
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ResNetForImageClassification(config).train()
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = get_cosine_schedule_with_warmup(optimizer, min(100, steps // 10), steps)
    order = torch.empty(0, dtype=torch.long)
    for step in range(steps):
        while len(order) < batch_size:
            order = torch.cat([order, torch.randperm(len(names), generator=generator)])
        batch, order = order[:batch_size], order[batch_size:]
        logits = model(augment(renderings[batch], generator)).logits
        loss = F.cross_entropy(logits, batch, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        report(step + 1, loss.item())
    size = {"height": SIZE, "width": SIZE}
    half = [0.5, 0.5, 0.5]
    return model.eval(), ViTImageProcessor(size=size, resample=_SMOOTH, image_mean=half, image_std=half)


@torch.no_grad()
def accuracy(
    model: ResNetForImageClassification, renderings: torch.Tensor, seed: int, batch_size: int = 128
) -> tuple[float, float]:
    """How often the right name of an augmented rendering comes first, and among the first five; 0 to 1 each."""
    generator = torch.Generator().manual_seed(seed)
    ranks = []
    for batch in torch.arange(len(renderings)).split(batch_size):
        logits = model(augment(renderings[batch], generator)).logits
        ranks.append((logits > logits.gather(1, batch[:, None])).sum(dim=1))
    rank = torch.cat(ranks)
    return (rank < 1).double().mean().item(), (rank < 5).double().mean().item()
