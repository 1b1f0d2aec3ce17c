"""Measures a noised CLIP: which captions it picks for noised pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from diffusers import SchedulerMixin
from transformers import PreTrainedTokenizerBase

from ..markdown import markdown_table
from ..models import NoisedCLIPModel, tokenize_prompts
from ..pixels import pictures_to_tensor
from .captions import Caption, describe_fully
from .dataset import ShapesWorld
from .evaluation import per_cent, rate
from .ideal_observer import log_likelihoods
from .judge import judge
from .render import render


# What is asked of a picked caption. `FULL` is picked among full captions, the others among captions as they come;
# `IDEAL` is `FULL` by Bayes' rule in place of the model.
FULL, IDEAL, OWN, TRUE = "its own full caption", "by an ideal observer", "its own caption", "a true caption"
_JUDGED_SIZE = 64  # of the clean picture that the judge looks at


@torch.no_grad()
def caption_retrieval(
    clip_model: NoisedCLIPModel,
    clip_tokenizer: PreTrainedTokenizerBase,
    scheduler: SchedulerMixin,
    timesteps: Sequence[int] = (0, 250, 500, 750, 999),
    num_captions: int = 256,
    seed: int = 0,
    batch_size: int = 64,
) -> dict[int, dict[str, dict[str, float]]]:
    """
    Noises held-out pictures to a timestep and lets the model pick each one's caption out of all of them, first among
    full captions ([`describe_fully`]), then among captions as the world draws them. These leave things unsaid: several
    may be true of a picture, and nobody can always tell which of them is its own. Captions that say the same are one's
    own for each other's pictures. What no model can see in so much noise an ideal observer does not see either
    ([`log_likelihoods`]): its figure is the bound of the first.

    Args:
        clip_model ([`NoisedCLIPModel`]): What is measured.
        clip_tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        scheduler ([`GLIDEDDPMScheduler`] or [`GLIDEDDIMScheduler`]): The noise schedule of the model to be guided.
        timesteps (`Sequence[int]`): Where to measure.
        num_captions (`int`, defaults to 256): Captions to choose from, and pictures.
        seed (`int`, defaults to 0): Of scenes, captions and noise; the noise is the same at every timestep.
        batch_size (`int`, defaults to 64): Pictures at a time.

    Returns:
        `dict`: a timestep to `FULL`, `IDEAL` and `OWN`, how often the picked caption is the picture's own, and `TRUE`,
            how often it is true of the picture, as [`rate`] gives it.
    """
    world = ShapesWorld(seed, held_out=True)
    examples = [world.example(index) for index in range(num_captions)]
    captions = [example.caption for example in examples]
    full_captions = [describe_fully(example.scene) for example in examples]
    size = clip_model.config.vision_config.image_size
    x_start = pictures_to_tensor([render(example.scene, size) for example in examples])
    noise = torch.randn(x_start.shape, generator=torch.Generator().manual_seed(seed))

    def embed(captions: Sequence[Caption]) -> torch.Tensor:
        tokens = tokenize_prompts(clip_tokenizer, [str(caption) for caption in captions]).to(clip_model.device)
        features = clip_model.get_text_features(tokens.input_ids, tokens.attention_mask).float()
        return torch.nn.functional.normalize(features, dim=-1)

    text, full_text = embed(captions), embed(full_captions)

    def found(scores: torch.Tensor, captions: Sequence[Caption]) -> dict[str, float]:
        picked = [captions[pick] for pick in scores.argmax(dim=1).tolist()]
        return rate([caption == own for caption, own in zip(picked, captions, strict=True)])

    shown = [render(example.scene, _JUDGED_SIZE) for example in examples]
    rates = {}
    for t in timesteps:
        at = torch.full((num_captions,), t)
        x_t = scheduler.add_noise(x_start, noise, at)
        parts = zip(x_t.split(batch_size), at.split(batch_size), strict=True)
        device = clip_model.device
        features = [clip_model.get_image_features(part.to(device), its.to(device)).float() for part, its in parts]
        # Their lengths do not matter for which caption is nearest, once the texts have unit length.
        image = torch.cat(features)
        picked = [captions[pick] for pick in (image @ text.T).argmax(dim=1).tolist()]
        likelihoods = log_likelihoods(x_t, float(scheduler.alphas_cumprod[t]), [example.scene for example in examples])
        rates[int(t)] = {
            FULL: found(image @ full_text.T, full_captions),
            IDEAL: found(likelihoods, full_captions),
            OWN: found(image @ text.T, captions),
            TRUE: rate([judge(*pair).correct for pair in zip(shown, picked, strict=True)]),
        }
    return rates


def retrieval_table(rates: Mapping[int | str, dict[str, dict[str, float]]]) -> str:
    """
    What [`caption_retrieval`] gave as Markdown: how often which caption is picked, in per cent with 95 % intervals.

    Args:
        rates (`Mapping`): A timestep to its rate; one or more.
    """
    columns = (FULL, IDEAL, OWN, TRUE)
    rows = ([t, *(per_cent(found[column]) for column in columns)] for t, found in rates.items())
    return markdown_table(["timestep", *(f"{column}, per cent" for column in columns)], rows)
