"""The original GLIDE, from a clone of openai/glide-text2im, run as its notebook runs it: what ours is timed against."""

from __future__ import annotations

import importlib
import itertools
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch


PACKAGE = "glide_text2im"


class Original:
    """Both models of the original with random weights, and their samplers. In float16 on CUDA, else in float32.

    Args:
        clone (`str` or `Path`): A clone of https://github.com/openai/glide-text2im.
        device (`torch.device`): Where to run.
        batch_size (`int`, defaults to 1): Images at once.
        steps, super_res_steps (`int`, default to 100 and 27): Steps of an image.
        guidance_scale (`float`, defaults to 3.0): Of the base model.

    Raises:
        FileNotFoundError: if the folder is no such clone.
        ImportError: if a package that it needs is missing.
    """

    def __init__(
        self,
        clone: str | Path,
        device: torch.device,
        batch_size: int = 1,
        steps: int = 100,
        super_res_steps: int = 27,
        guidance_scale: float = 3.0,
    ) -> None:
        creation = _model_creation(Path(clone))
        self.device = device
        self.batch_size = batch_size
        self.guidance_scale = guidance_scale
        half = device.type == "cuda"

        def create(options: dict[str, Any], respacing: str) -> tuple[Any, Any]:
            with device:
                model, diffusion = creation.create_model_and_diffusion(
                    **options | {"use_fp16": half, "timestep_respacing": respacing}
                )
            for embedding in (model.positional_embedding, model.padding_embedding):
                torch.nn.init.normal_(embedding, std=0.01)  # made without values
            model.eval()
            if half:
                model.convert_to_fp16()
            return model.to(device), diffusion

        self.base, self.base_diffusion = create(creation.model_and_diffusion_defaults(), str(steps))
        self.super_res, self.super_res_diffusion = create(
            creation.model_and_diffusion_defaults_upsampler(),
            "fast27" if super_res_steps == 27 else str(super_res_steps),
        )

    def num_bytes(self) -> int:
        """Memory of the weights."""
        return sum(p.numel() * p.element_size() for net in (self.base, self.super_res) for p in net.parameters())

    @torch.no_grad()
    def texts(self) -> None:
        """Encode prompt and empty prompt for the base model, and the prompt for the upsampler."""
        self.base.get_text_emb(**self._tokens(self.base, "a corgi", ""))
        self.super_res.get_text_emb(**self._tokens(self.super_res, "a corgi"))

    @torch.no_grad()
    def image(self, steps: int, super_res_steps: int, tick: Callable[[str], None] | None = None) -> torch.Tensor:
        """Take so many steps of each stage, and call `tick` with the stage's name after each.

        Returns:
            `torch.Tensor` of shape `[B, 3, 256, 256]`, in [-1, 1] if the steps are all of an image's.
        """

        def guided(x_t: torch.Tensor, timesteps: torch.Tensor, **kwargs: Any) -> torch.Tensor:
            x_t = x_t[: self.batch_size]
            output = self.base(torch.cat([x_t, x_t]), timesteps, **kwargs)
            prompted, empty = output[:, :3].chunk(2)
            noise = empty + self.guidance_scale * (prompted - empty)
            return torch.cat([torch.cat([noise, noise]), output[:, 3:]], dim=1)

        base_loop = self.base_diffusion.p_sample_loop_progressive(
            guided,
            (2 * self.batch_size, 3, 64, 64),
            device=self.device,
            model_kwargs=self._tokens(self.base, "a corgi", ""),
        )
        small = _last_sample(base_loop, steps, "base", tick)[: self.batch_size]
        shape = (self.batch_size, 3, 256, 256)
        super_res_loop = self.super_res_diffusion.ddim_sample_loop_progressive(
            self.super_res,
            shape,
            noise=torch.randn(shape, device=self.device) * 0.997,
            device=self.device,
            model_kwargs={
                "low_res": ((small + 1) * 127.5).round() / 127.5 - 1,
                **self._tokens(self.super_res, "a corgi"),
            },
        )
        return _last_sample(super_res_loop, super_res_steps, "super_res", tick)

    def _tokens(self, model: Any, *prompts: str) -> dict[str, torch.Tensor]:
        """Tokens and mask of prompts, each for a whole batch."""
        pairs = [model.tokenizer.padded_tokens_and_mask(model.tokenizer.encode(text), 128) for text in prompts]
        tokens, masks = zip(*(pair for pair in pairs for _ in range(self.batch_size)), strict=True)
        return {"tokens": torch.tensor(tokens, device=self.device), "mask": torch.tensor(masks, device=self.device)}


def _last_sample(
    loop: Iterable[dict[str, torch.Tensor]], steps: int, stage: str, tick: Callable[[str], None] | None
) -> torch.Tensor:
    """The sample after so many steps of a loop of the original."""
    samples = []
    for step in itertools.islice(loop, steps):
        samples = [step["sample"]]
        if tick is not None:
            tick(stage)
    return samples[0]


def _model_creation(clone: Path) -> Any:
    if not (clone / PACKAGE / "model_creation.py").is_file():
        raise FileNotFoundError(f"{clone} is no clone of https://github.com/openai/glide-text2im.")
    sys.path.insert(0, str(clone))
    try:
        module = importlib.import_module(f"{PACKAGE}.model_creation")
    except ModuleNotFoundError as error:
        raise ImportError(f"The original needs the package {error.name!r}: `pip install {error.name}`.") from error
    finally:
        sys.path.remove(str(clone))
    if Path(str(module.__file__)).parent.parent.resolve() != clone.resolve():
        raise ImportError(f"{PACKAGE} is installed from elsewhere, {module.__file__}: uninstall that one.")
    return module
