"""The contrastive loss of a noised CLIP, over the global batch (arXiv 2112.10741, section 2.3)."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import nn

from ..models.noised_clip import MAX_LOGIT_SCALE, contrastive_loss
from ..schedulers import GLIDEScheduler
from .trainer import LossFunction


def noised_clip_loss(accelerator: Accelerator, scheduler: GLIDEScheduler) -> LossFunction:
    """The loss function of a [`NoisedCLIPModel`] on batches of a [`TextToImageDataset`].

    Every image is compared with every caption of the global batch, over all processes; captions with the same tokens
    count as right for each other's images. Gradients are those of one process with the whole batch. The log gets
    `accuracy`, too: how often the most similar caption of the global batch is a right one.

    Args:
        accelerator (`Accelerator`): Gathers the embeddings of all processes.
        scheduler ([`GLIDEDDPMScheduler`] or [`GLIDEDDIMScheduler`]): The noise schedule of the model to be guided.

    Returns:
        `LossFunction`: See [`train`].
    """

    def compute_loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        logit_scale = accelerator.unwrap_model(model).logit_scale
        with torch.no_grad():
            logit_scale.clamp_(max=MAX_LOGIT_SCALE)
        timesteps = batch["timesteps"]
        x_t = scheduler.train_process.q_sample(batch["pixel_values"], batch["noise"], timesteps)
        output = model(batch["input_ids"], x_t, timesteps, attention_mask=batch["attention_mask"])
        own = slice(accelerator.process_index * len(x_t), (accelerator.process_index + 1) * len(x_t))
        image_embeds = _gather(accelerator, output.image_embeds, own)
        text_embeds = _gather(accelerator, output.text_embeds, own)
        # Padding has a token of its own, so equal tokens are equal captions.
        captions = accelerator.gather(batch["input_ids"])
        positives = (captions[:, None] == captions).all(dim=-1)
        loss = contrastive_loss(image_embeds, text_embeds, logit_scale, positives)

        chosen = (output.image_embeds @ text_embeds.T).argmax(dim=1)
        right = positives[own][torch.arange(len(x_t), device=chosen.device), chosen]
        return loss.expand(len(x_t)), {"accuracy": right.float()}

    return compute_loss


def _gather(accelerator: Accelerator, embeds: torch.Tensor, own: slice) -> torch.Tensor:
    """The rows of all processes. Each process computes the whole loss, whose gradient reaches only its own rows. It is
    multiplied by the number of processes, because data-parallel training averages the gradients."""
    others = accelerator.num_processes - 1
    if not others:
        return embeds
    gathered = accelerator.gather(embeds.detach())
    gathered[own] = embeds + others * (embeds - embeds.detach())
    return gathered
