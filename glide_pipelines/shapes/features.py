"""A small classifier of the shapes world, in place of Inception: it knows what a scene consists of."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn
from transformers import get_cosine_schedule_with_warmup

from ..checkpoints import shapes_checkpoint
from ..evaluation.features import Features
from ..images import scale_pixels
from .dataset import ShapesWorld
from .render import render
from .scene import BACKGROUNDS, COLOURS, SHAPES, SIZES, Scene


MAX_OBJECTS = 3
BINS = 4  # of an object's place, on each axis
# What is predicted, and of how many values. Objects are counted from the left.
LABELS: dict[str, int] = {"background": len(BACKGROUNDS), "count": MAX_OBJECTS} | {
    f"{name} {index}": values
    for index in range(MAX_OBJECTS)
    for name, values in (
        ("colour", len(COLOURS)),
        ("shape", len(SHAPES)),
        ("size", len(SIZES)),
        ("x", BINS),
        ("y", BINS),
    )
}
ABSENT = -100  # the label of what an object that is not there would have; cross entropy leaves it out


class ShapesFeatures(ModelMixin, ConfigMixin):
    """Predicts the attributes of a scene from its image: a few convolutions, one layer of features, linear heads.

    The heads are those of `LABELS`: background, number of objects, and of each object, from the left, its colour,
    shape, size, and place in a grid of four by four.

    Args:
        channels (`tuple[int, ...]`, defaults to `(32, 48, 64, 64, 64)`): Of each convolution; the first, third and
            fifth halve the image.
        num_features (`int`, defaults to 64): Width of the penultimate layer, which gives the features.
        sample_size (`int`, defaults to 32): Width and height that images are reduced to; a multiple of 8.
    """

    @register_to_config
    def __init__(
        self, channels: tuple[int, ...] = (32, 48, 64, 64, 64), num_features: int = 64, sample_size: int = 32
    ) -> None:
        super().__init__()
        self.sample_size = sample_size
        layers: list[nn.Module] = []
        side, before = sample_size, 3
        for index, width in enumerate(channels):
            stride = 1 + (index % 2 == 0)
            kernel = 5 if index == 0 else 3
            layers += [nn.Conv2d(before, width, kernel, stride, kernel // 2), nn.GroupNorm(8, width), nn.SiLU()]
            side, before = -(-side // stride), width
        self.convolutions = nn.Sequential(*layers)
        self.projection = nn.Linear(before * side * side, num_features)
        self.heads = nn.Linear(num_features, sum(LABELS.values()))

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """The penultimate layer.

        Args:
            images (`torch.Tensor` of shape `[B, 3, H, W]`): From 0 to 255, of any size.

        Returns:
            `torch.Tensor` of shape `[B, num_features]`.
        """
        pixels = F.interpolate(images.to(self.dtype), size=2 * (self.sample_size,), mode="area")
        return F.silu(self.projection(self.convolutions(scale_pixels(pixels)).flatten(1)))

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """The logits of each attribute.

        Args:
            images (`torch.Tensor` of shape `[B, 3, H, W]`): From 0 to 255, of any size.

        Returns:
            `dict[str, torch.Tensor]`: by name of `LABELS`, each of shape `[B, number of values]`.
        """
        return self.attributes(self.features(images))

    def attributes(self, features: torch.Tensor) -> dict[str, torch.Tensor]:
        """The logits of each attribute, from the features `[B, num_features]`."""
        logits = self.heads(features).split(list(LABELS.values()), dim=1)
        return dict(zip(LABELS, logits, strict=True))


def scene_labels(scene: Scene) -> list[int]:
    """The values of `LABELS` for a scene, by number; `ABSENT` for objects that are not there."""
    labels = [list(BACKGROUNDS).index(scene.background), len(scene.objects) - 1]
    for item in sorted(scene.objects, key=lambda item: item.x):
        place = [min(int(BINS * value), BINS - 1) for value in (item.x, item.y)]
        labels += [list(COLOURS).index(item.colour), SHAPES.index(item.shape), list(SIZES).index(item.size), *place]
    return labels + [ABSENT] * (len(LABELS) - len(labels))


def scene_batch(scenes: Sequence[Scene], size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images `[B, 3, size, size]`, from 0 to 255, and labels `[B, number of attributes]` of scenes."""
    images = np.stack([np.asarray(render(scene, size)) for scene in scenes])
    return torch.from_numpy(images).permute(0, 3, 1, 2), torch.tensor([scene_labels(scene) for scene in scenes])


def train_shapes_features(
    steps: int, batch_size: int = 64, seed: int = 0, report: Callable[[int, float], None] = lambda step, loss: None
) -> ShapesFeatures:
    """Train the classifier on scenes of all combinations, including those that generators are never trained on.

    Args:
        steps (`int`): Of AdamW, each on scenes that were not seen before.
        batch_size (`int`): Scenes per step.
        seed (`int`): Of scenes and weights.
        report (`Callable[[int, float], None]`): Called after each step with its number, from 1, and its loss.

    Returns:
        `ShapesFeatures`: in float32.
    """
    world = ShapesWorld(seed, held_out=None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ShapesFeatures()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, min(100, steps // 10), steps)
    for step in range(steps):
        scenes = [world.scene(step * batch_size + index) for index in range(batch_size)]
        images, labels = scene_batch(scenes, model.sample_size)
        logits = model(images)
        losses = [F.cross_entropy(logits[name], labels[:, index]) for index, name in enumerate(LABELS)]
        loss = torch.stack(losses).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        report(step + 1, loss.item())
    return model.eval()


@torch.no_grad()
def accuracy(model: ShapesFeatures, scenes: Sequence[Scene], batch_size: int = 64) -> dict[str, float]:
    """How often each attribute of scenes is right, 0 to 1, over the objects that are there."""
    right: dict[str, list[bool]] = {name: [] for name in LABELS}
    for start in range(0, len(scenes), batch_size):
        images, labels = scene_batch(scenes[start : start + batch_size], model.sample_size)
        for index, (name, logits) in enumerate(model(images).items()):
            known = labels[:, index] != ABSENT
            right[name] += (logits.argmax(dim=1) == labels[:, index])[known].tolist()
    return {name: sum(answers) / len(answers) for name, answers in right.items() if answers}


class ShapesNetwork(nn.Module):
    """The classifier that ships, as a feature network for [`run_sweep`].

    Its classes are the pairs of colour and shape of the leftmost object.
    """

    def __init__(self) -> None:
        super().__init__()
        self.model = ShapesFeatures.from_pretrained(shapes_checkpoint("features")).eval()

    def forward(self, images: torch.Tensor) -> Features:
        """The features `[B, 64]` and the logarithms of 48 probabilities `[B, 48]` of uint8 images `[B, 3, H, W]`."""
        features = self.model.features(images)
        logits = self.model.attributes(features)
        colours, shapes = (logits[f"{name} 0"].log_softmax(dim=1) for name in ("colour", "shape"))
        return Features(features, (colours[:, :, None] + shapes[:, None, :]).flatten(1))
