"""What images depend on: written beside them, so that images of different settings are never mixed."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from diffusers import DiffusionPipeline, SchedulerMixin

from ..files import write_json
from ..version import __version__


PACKAGES = ("torch", "diffusers", "transformers", "numpy", "pillow")


def sampling_settings(
    pipe: DiffusionPipeline,
    *,
    model: str,
    seed: int,
    batch_size: int,
    dtype: str,
    steps: int | str | None = None,
    super_res_steps: int | str | None = None,
) -> dict[str, Any]:
    """What images depend on besides captions and guidance; None is what a pipeline of another kind decides itself.

    Args:
        pipe (`DiffusionPipeline`): What generates them.
        model (`str`): Its name: a folder or a Hub id.
        seed (`int`): Of the first image.
        batch_size (`int`): Images at a time.
        dtype (`str`): Name of the dtype of the networks.
        steps, super_res_steps (`int` or `str`, *optional*): Steps of both stages, or spacings; by default the
            pipeline's own.
    """
    is_glide = hasattr(pipe, "default_size")
    upsampled = is_glide and pipe.super_res_unet is not None
    own = {name: pipe.default_steps(name) for name in pipe.stages} if is_glide else {}
    return {
        "model": model,
        "seed": seed,
        "batch_size": batch_size,
        "size": pipe.default_size[0] if is_glide else None,
        "steps": steps or own.get("base"),
        "scheduler": _scheduler_name(getattr(pipe, "scheduler", None)),
        "super_res_steps": (super_res_steps or own["super_res"]) if upsampled else None,
        "super_res_scheduler": _scheduler_name(pipe.super_res_scheduler) if upsampled else None,
        "device": pipe.device.type,
        "dtype": dtype,
    }


def _scheduler_name(scheduler: SchedulerMixin | None) -> str | None:
    """The class of a scheduler, and for one that solves both the ODE and the SDE, whether it solves the SDE."""
    if scheduler is None:
        return None
    algorithm = scheduler.config.get("algorithm_type", "")
    return f"{type(scheduler).__name__}{f' ({algorithm})' if algorithm.startswith('sde-') else ''}"


def weights_digest(pipe: DiffusionPipeline) -> str:
    """A short digest of a pipeline's weights: a model that was trained further under the same name is another one.

    Of every byte, unlike the fingerprint in an image: a single new token is another model, too.
    """
    digest = hashlib.sha256()
    for name, component in sorted(pipe.components.items()):
        if isinstance(component, torch.nn.Module):
            for key, tensor in component.state_dict().items():
                digest.update(f"{name}.{key}".encode())
                digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def package_versions() -> dict[str, str]:
    """The version of this package, and of those that its figures depend on."""
    return {"glide-pipelines": __version__, **{package: version(package) for package in PACKAGES}}


def differences(earlier: dict[str, Any], settings: dict[str, Any]) -> str:
    """Where earlier settings differ, for an error: `"seed 1 and not 0"`; empty if they are the same."""
    return ", ".join(
        f"{name} {earlier.get(name)!r} and not {value!r}"
        for name, value in settings.items()
        if earlier.get(name) != value
    )


def check_and_write_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Write the settings into a folder of images.

    Raises:
        ValueError: if the folder cannot be written to, or holds images of other settings.
    """
    path = folder / "settings.json"
    if path.is_file():
        try:
            others = differences(json.loads(path.read_text(encoding="utf-8")), settings)
        except (ValueError, AttributeError) as error:
            raise ValueError(f"`output`: {path} holds no settings of images.") from error
        if others:
            raise ValueError(f"`output`: the images in {folder} were made with {others}.")
    if PartialState().is_main_process:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(settings, path)
        except OSError as error:
            raise ValueError(f"`output`: {folder} cannot be written to: {error.strerror}.") from error
