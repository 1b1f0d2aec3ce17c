"""GLIDE (arXiv 2112.10741) as diffusers pipelines: text to image by diffusion in pixel space.

Importing this package makes its classes known to diffusers, so that `DiffusionPipeline.from_pretrained` opens GLIDE's
folders and Hub repositories too.
"""

import importlib
import sys
from typing import Any

import diffusers
import diffusers.loaders.peft
from transformers import AutoConfig, AutoModel
from transformers.utils import logging as transformers_logging

from .checkpoints import pretrained_checkpoint, shapes_checkpoint
from .conversion import load_network, load_pipeline
from .models import (
    GLIDETextConfig,
    GLIDETextEncoder,
    GLIDEUNet2DConditionModel,
    NoisedCLIPConfig,
    NoisedCLIPModel,
)
from .pipelines import (
    CLIPGuidedPipeline,
    GLIDEImg2ImgPipeline,
    GLIDEInpaintPipeline,
    GLIDEPipeline,
    GLIDEPipelineOutput,
    GLIDESuperResolutionPipeline,
)
from .pipelines.prompted import PROMPT_DOMAINS
from .sampling import CLIPGuidance
from .schedulers import GLIDEDDIMScheduler, GLIDEDDPMScheduler
from .single_file import register_loaders
from .version import __version__


__all__ = [
    "CLIPGuidance",
    "CLIPGuidedPipeline",
    "GLIDEDDIMScheduler",
    "GLIDEDDPMScheduler",
    "GLIDEImg2ImgPipeline",
    "GLIDEInpaintPipeline",
    "GLIDEPipeline",
    "GLIDEPipelineOutput",
    "GLIDESuperResolutionPipeline",
    "GLIDETextConfig",
    "GLIDETextEncoder",
    "GLIDEUNet2DConditionModel",
    "NoisedCLIPConfig",
    "NoisedCLIPModel",
    "__version__",
    "pretrained_checkpoint",
    "shapes_checkpoint",
]


def _register_with_diffusers() -> None:
    """Make diffusers save and load our classes as `["glide_pipelines", "ClassName"]`.

    A saved pipeline names the module of each component. Naming the package instead of the file inside it keeps
    checkpoints readable when a file moves; being an attribute of `diffusers.pipelines` lets diffusers find that name
    for repositories on the Hub; and being an attribute of `diffusers` lets `DiffusionPipeline` find the pipelines.
    """
    diffusers.pipelines.glide_pipelines = sys.modules[__name__]
    for name in __all__:
        member = globals()[name]
        if isinstance(member, type):
            member.__module__ = __name__
            if issubclass(member, diffusers.DiffusionPipeline | diffusers.ModelMixin | diffusers.SchedulerMixin):
                setattr(diffusers, name, member)


def _register_with_auto_pipelines() -> None:
    """Let `AutoPipelineForText2Image`, `...ForImage2Image` and `...ForInpainting` choose among our pipelines."""
    # This imports every pipeline of diffusers, and transformers warns of packages that only others need.
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        auto: Any = importlib.import_module("diffusers.pipelines.auto_pipeline")
    finally:
        transformers_logging.set_verbosity(verbosity)
    auto.AUTO_TEXT2IMAGE_PIPELINES_MAPPING |= {"glide": GLIDEPipeline, "glide-clip": CLIPGuidedPipeline}
    auto.AUTO_IMAGE2IMAGE_PIPELINES_MAPPING |= {
        "glide": GLIDEImg2ImgPipeline,
        "glide-clip": GLIDEImg2ImgPipeline,
        "glide-super-resolution": GLIDESuperResolutionPipeline,
    }
    auto.AUTO_INPAINT_PIPELINES_MAPPING |= {"glide": GLIDEInpaintPipeline, "glide-clip": CLIPGuidedPipeline}


def _register_with_lora() -> None:
    """Let `set_adapters` scale the adapters of our UNet block by block, as it does those of diffusers' own class."""
    scale_functions = diffusers.loaders.peft._SET_ADAPTER_SCALE_FN_MAPPING
    scale_functions[GLIDEUNet2DConditionModel.__name__] = scale_functions[diffusers.UNet2DConditionModel.__name__]


def _register_with_transformers() -> None:
    """Let `AutoModel` open our transformers models, and `AutoTokenizer` the tokenizers that lie beside them."""
    for config, model in ((GLIDETextConfig, GLIDETextEncoder), (NoisedCLIPConfig, NoisedCLIPModel)):
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModel.register(config, model, exist_ok=True)


_register_with_diffusers()
_register_with_auto_pipelines()
_register_with_lora()
_register_with_transformers()
register_loaders(load_pipeline, load_network)
PROMPT_DOMAINS.update({world: f"{__name__}.{world}:prompt_warning" for world in ("shapes", "emoji")})
