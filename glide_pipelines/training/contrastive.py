"""Training a noised CLIP: the contrastive loss over the global batch (arXiv 2112.10741, section 2.3)."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from diffusers import SchedulerMixin
from torch import nn
from torch.distributed.nn.functional import all_gather

from ..models.noised_clip import MAX_LOGIT_SCALE, contrastive_loss
from .trainer import LossFunction


def noised_clip_loss(accelerator: Accelerator, scheduler: SchedulerMixin) -> LossFunction:
    """The loss function of a [`NoisedCLIPModel`] on batches of a [`TextToImageDataset`].

    Every picture is compared with every caption of the global batch, over all processes; captions with the same
    tokens count as right for each other's pictures. Gradients are those of one process with the whole batch. Logged
    beside it: `accuracy`, how often the most similar caption of the global batch is a right one.

    Args:
        accelerator (`Accelerator`): Knows the processes.
        scheduler ([`GLIDEDDPMScheduler`] or [`GLIDEDDIMScheduler`]): The noise schedule of the model to be guided.
    """

    def compute_loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        logit_scale = accelerator.unwrap_model(model).logit_scale
        with torch.no_grad():
            logit_scale.clamp_(max=MAX_LOGIT_SCALE)
        timesteps = batch["timesteps"]
        x_t = scheduler.add_noise(batch["pixel_values"], batch["noise"], timesteps)
        output = model(batch["input_ids"], x_t, timesteps, attention_mask=batch["attention_mask"])
        image_embeds, text_embeds = (_gather(accelerator, part) for part in (output.image_embeds, output.text_embeds))
        # Padding has a token of its own, so equal tokens are equal captions.
        captions = accelerator.gather(batch["input_ids"])
        positives = (captions[:, None] == captions).all(dim=-1)
        loss = contrastive_loss(image_embeds, text_embeds, logit_scale, positives)

        own = slice(accelerator.process_index * len(x_t), (accelerator.process_index + 1) * len(x_t))
        chosen = (output.image_embeds @ text_embeds.T).argmax(dim=1)
        right = positives[own][torch.arange(len(x_t), device=chosen.device), chosen]
        return loss.expand(len(x_t)), {"accuracy": right.float()}

    return compute_loss


def _gather(accelerator: Accelerator, embeds: torch.Tensor) -> torch.Tensor:
    """All processes' rows. The gradient goes back to each: it is the sum over the processes, and their number cancels
    against the mean that data-parallel training takes of the gradients."""
    if accelerator.num_processes == 1:
        return embeds
    return torch.cat(all_gather(embeds.contiguous()))
