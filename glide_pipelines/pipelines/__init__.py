"""Tasks: prompt in, images out."""

from .pipeline_clip_guided import CLIPGuidedPipeline
from .pipeline_glide import GLIDEPipeline
from .pipeline_glide_img2img import GLIDEImg2ImgPipeline
from .pipeline_glide_inpaint import GLIDEInpaintPipeline
from .pipeline_glide_super_resolution import GLIDESuperResolutionPipeline
from .pipeline_output import GLIDEPipelineOutput


__all__ = [
    "CLIPGuidedPipeline",
    "GLIDEImg2ImgPipeline",
    "GLIDEInpaintPipeline",
    "GLIDEPipeline",
    "GLIDEPipelineOutput",
    "GLIDESuperResolutionPipeline",
]
