"""The points of a sweep: what is varied from one set of generated images to the next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from diffusers.guiders import ClassifierFreeGuidance


CLASSIFIER_FREE, CLIP, BOTH = "classifier-free guidance", "CLIP guidance", "both guidances"


class Point(Protocol):
    """One point of a sweep."""

    @property
    def kind(self) -> str:
        """Which of the pipelines generates its images."""

    @property
    def name(self) -> str:
        """For people and folders."""

    @property
    def settings(self) -> dict[str, Any]:
        """What tells its images from those of other points, as JSON can hold it."""

    @property
    def call(self) -> dict[str, Any]:
        """The arguments of the pipeline."""


@dataclass(frozen=True)
class Guidance:
    """A [`Point`] of a sweep over guidance scales.

    Args:
        kind (`str`): `CLASSIFIER_FREE`, `CLIP` or `BOTH`.
        scale (`float`): Of this guidance; of both, CLIP's.
        guidance_scale (`float`, defaults to 1.0): Of both, that of classifier-free guidance; 1 is off.
    """

    kind: str
    scale: float
    guidance_scale: float = 1.0

    @property
    def name(self) -> str:
        """For people and folders: `"guidance-3"`, `"clip-guidance-3"` or `"guidance-2-clip-guidance-3"`."""
        classifier_free = f"guidance-{self.guidance_scale:g}-" if self.kind == BOTH else ""
        return f"{classifier_free}{'' if self.kind == CLASSIFIER_FREE else 'clip-'}guidance-{self.scale:g}"

    @property
    def settings(self) -> dict[str, Any]:
        """The guidance, its scale, and the arguments of the pipeline."""
        return {"guidance": self.kind, "scale": self.scale, **self.call}

    @property
    def call(self) -> dict[str, Any]:
        """The arguments of the pipeline."""
        if self.kind == CLASSIFIER_FREE:
            return {"guidance_scale": self.scale}
        return {"guidance_scale": self.guidance_scale, "clip_guidance_scale": self.scale}


@dataclass(frozen=True)
class Sampling:
    """A [`Point`] of a sweep over samplers.

    Args:
        kind (`str`): The sampler.
        steps (`int`): Of the base stage.
        guidance_scale (`float`): Of classifier-free guidance.
        interval (`tuple[float, float]`, *optional*): The part of the steps that is guided, from the noisiest at 0 to
            the last at 1; all of them by default.
    """

    kind: str
    steps: int
    guidance_scale: float
    interval: tuple[float, float] | None = None

    @property
    def name(self) -> str:
        """For people and folders: `"ddim-20"` or `"ddim-20-guided-0.2-0.8"`."""
        guided = "" if self.interval is None else "-guided-{:g}-{:g}".format(*self.interval)
        return f"{self.kind}-{self.steps}{guided}"

    @property
    def settings(self) -> dict[str, Any]:
        """The fields."""
        return {
            "sampler": self.kind,
            "steps": self.steps,
            "guidance_scale": self.guidance_scale,
            "interval": None if self.interval is None else list(self.interval),
        }

    @property
    def call(self) -> dict[str, Any]:
        """The arguments of the pipeline."""
        call: dict[str, Any] = {"num_inference_steps": self.steps}
        if self.interval is None:
            return {**call, "guidance_scale": self.guidance_scale}
        start, stop = self.interval
        return {**call, "guider": ClassifierFreeGuidance(self.guidance_scale, start=start, stop=stop)}
