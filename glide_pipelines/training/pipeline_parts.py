"""A pipeline whose stage is trained: load it, give it its size, and put the stage back beside the other one."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import diffusers
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ..files import updated_folder
from ..models import GLIDETextEncoder, GLIDEUNet2DConditionModel
from ..sampling import Stage, scale_factor
from ..schedulers import GLIDEDDPMScheduler


OTHER = {"base": "super_res", "super_res": "base"}

# In pixels; 16 times that of the released upsampler. A mistyped size would take all memory before it failed.
MAX_RESOLUTION = 4096


@dataclass
class PipelineParts:
    """The stage that is trained, and what else makes up its pipeline.

    Attributes:
        pipeline_class (`type[DiffusionPipeline]`): What the stage becomes a part of.
        tokenizer (`PreTrainedTokenizerBase`): The tokenizer of both stages.
        stage ([`Stage`]): The stage that is trained.
        other ([`Stage`], *optional*): The other stage, if there is one.
        low_res_consistency (`bool`, defaults to `False`): As the pipeline was saved, see [`GLIDEPipeline`].
        default_guidance_scale (`float`, *optional*): As the pipeline was saved, see [`GLIDEPipeline`].
        settings (`dict[str, Any]`): Further settings of the pipeline, such as its `prompt_domain`; they replace the
            saved ones.
    """

    pipeline_class: type[DiffusionPipeline]
    tokenizer: PreTrainedTokenizerBase
    stage: Stage
    other: Stage | None = None
    low_res_consistency: bool = False
    default_guidance_scale: float | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_pretrained(cls, pipeline_class: type[DiffusionPipeline], path: str | Path, name: str) -> PipelineParts:
        """Load a pipeline to train one of its stages, in float32.

        Args:
            pipeline_class (`type[DiffusionPipeline]`): What opens it.
            path (`str` or `Path`): A folder or a Hub id.
            name (`str`): The stage, `"base"` or `"super_res"`.

        Raises:
            ValueError: if the pipeline does not have the stage.
        """
        pipeline: Any = pipeline_class.from_pretrained(path, dtype=torch.float32)
        stage, other = (_complete(Stage.of(pipeline, key)) for key in (name, OTHER[name]))
        if stage is None:
            raise ValueError(f"`pretrained_model_name_or_path` has no {name} model: {path}")
        return cls(
            pipeline_class,
            pipeline.tokenizer,
            stage,
            other,
            pipeline.config.low_res_consistency,
            pipeline.config.default_guidance_scale,
            {"prompt_domain": pipeline.config.get("prompt_domain")},
        )

    @property
    def resolution(self) -> int:
        """Width and height of the images that the stage is trained on, in pixels."""
        return self.stage.sample_size[0]

    @property
    def other_resolution(self) -> int | None:
        """Width and height of the other stage's images, if there is one."""
        return None if self.other is None else self.other.sample_size[0]

    def set_resolution(self, size: int) -> None:
        """Make a size in pixels that of the trained stage; the pipeline will generate it.

        Raises:
            ValueError: if the stage cannot generate images of that size, or does not fit the other stage then.
        """
        unet = self.stage.unet
        if size < 1 or size % unet.size_multiple or size > MAX_RESOLUTION:
            raise ValueError(
                f"`resolution` must be a positive multiple of {unet.size_multiple} for this model and at most "
                f"{MAX_RESOLUTION}, got {size}."
            )
        if self.other_resolution is not None:
            is_base = self.stage.name == "base"
            base, large = (size, self.other_resolution) if is_base else (self.other_resolution, size)
            try:
                scale_factor(large, base)
            except ValueError as error:
                advice = " Start from a pipeline without an upsampler, and train one afterwards." if is_base else ""
                raise ValueError(f"{error}{advice}") from error
        unet.register_to_config(sample_size=size)

    @property
    def recommends_steps(self) -> bool:
        """Whether the stage recommends few steps, for the images that it knows."""
        scheduler: Any = self.stage.scheduler
        return scheduler.config.get("default_timesteps") is not None

    def forget_recommended_steps(self) -> bool:
        """Drop the few steps that the stage recommends, and of a base the guidance with them: what does for the images
        that it knew need not do for others. Returns whether there were any."""
        scheduler: Any = self.stage.scheduler
        if not self.recommends_steps:
            return False
        scheduler.register_to_config(default_timesteps=None)
        if self.stage.name == "base":
            self.settings["default_guidance_scale"] = None
        return True

    def join(self, folder: str | Path) -> None:
        """Take the other stage and the saved settings from the folder that the trained stage will be saved into, as far
        as they are there. They replace those of the pipeline that was loaded.

        Raises:
            ValueError: if the stages cannot share a tokenizer.
        """
        folder = Path(folder)
        paths = [folder / name for name in Stage.component_names(OTHER[self.stage.name])]
        if all(path.is_dir() for path in paths):
            self.other = _load_stage(OTHER[self.stage.name], *paths)
            self._check_tokenizer(folder)
        if (folder / self.pipeline_class.config_name).is_file():
            saved: Any = self.pipeline_class.load_config(folder)
            self.low_res_consistency = saved.get("low_res_consistency") or False
            self.default_guidance_scale = saved.get("default_guidance_scale")

    def _check_tokenizer(self, folder: Path) -> None:
        """A pipeline has one tokenizer, of one text context, for both stages."""
        stage, other = self.stage, cast(Stage, self.other)
        own, context = (cast(Any, each.text_encoder).config.max_position_embeddings for each in (stage, other))
        if own != context:
            raise ValueError(
                f"The {other.name} in {folder} has a text context of {context} tokens, the {stage.name} one of {own}: "
                "take a `model_config` with the same, or another `pipeline_dir`."
            )
        saved = folder / "tokenizer"
        if saved.is_dir() and AutoTokenizer.from_pretrained(saved).get_vocab() != self.tokenizer.get_vocab():
            raise ValueError(
                f"The {other.name} in {folder} was trained with another tokenizer than the {stage.name}: take "
                f"{saved}, or another `pipeline_dir`."
            )

    def pipeline(self) -> DiffusionPipeline:
        """The pipeline of both stages, or of the base alone.

        Raises:
            ValueError: if there is no base.
        """
        if self.stage.name != "base" and self.other is None:
            raise ValueError("A pipeline needs a base model, and there is only the upsampler.")
        saved = {"low_res_consistency": self.low_res_consistency, "default_guidance_scale": self.default_guidance_scale}
        return self.pipeline_class(**self._components(), **saved | self.settings)

    def save(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Save the pipeline, with the other stage that is in the folder by now, or else the one that was loaded.

        An upsampler whose base is still to come is saved as components, which the base joins later.

        Args:
            folder (`str` or `Path`): Components in it are replaced once all new ones are written.
            dtype (`torch.dtype`, defaults to `torch.float32`): Number format of the saved weights. The networks are
                converted to it.
        """
        self.join(folder)  # another run may have saved the other stage meanwhile
        for stage in (self.stage, self.other):
            if stage is not None:
                stage.to(dtype)
        with updated_folder(Path(folder)) as temporary:
            if self.stage.name == "base" or self.other is not None:
                self.pipeline().save_pretrained(temporary)
            else:
                for name, component in self._components().items():
                    component.save_pretrained(temporary / name)

    def _components(self) -> dict[str, Any]:
        other = {} if self.other is None else self.other.components()
        return {"tokenizer": self.tokenizer, **self.stage.components(), **other}


def _complete(stage: Stage | None) -> Stage | None:
    """The stage; None if a component is missing."""
    return None if stage is None or None in stage.components().values() else stage


def _load_stage(name: str, text_encoder: Path, unet: Path, scheduler: Path) -> Stage:
    """A stage that another run saved, in float32."""
    config: Any = GLIDEDDPMScheduler.load_config(scheduler)
    scheduler_class = getattr(diffusers, config["_class_name"])
    loaded_unet: Any = GLIDEUNet2DConditionModel.from_pretrained(unet, dtype=torch.float32)
    return Stage(
        name,
        GLIDETextEncoder.from_pretrained(text_encoder, dtype=torch.float32),
        loaded_unet,
        scheduler_class.from_pretrained(scheduler),
    )
