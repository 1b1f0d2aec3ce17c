"""Tasks: prompt in, pictures out."""

from .pipeline_glide import GLIDEPipeline
from .pipeline_output import GLIDEPipelineOutput


__all__ = ["GLIDEPipeline", "GLIDEPipelineOutput"]
