"""GLIDE (arXiv 2112.10741) as diffusers pipelines."""

from .models import GLIDETextConfig, GLIDETextEncoder, GLIDEUNet2DConditionModel
from .schedulers import GLIDEDDIMScheduler, GLIDEDDPMScheduler
