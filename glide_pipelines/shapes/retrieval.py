"""Measures a noised CLIP: which captions it picks for noised images."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ..evaluation.statistics import per_cent, rate
from ..images import images_to_tensor
from ..markdown import markdown_table
from ..models import NoisedCLIPModel, tokenize_prompts
from ..schedulers import GLIDEDDIMScheduler, GLIDEDDPMScheduler
from .captions import Caption, describe_fully
from .dataset import ShapesWorld
from .ideal_observer import log_likelihoods
from .judge import judge
from .render import render


# What is asked of a picked caption. `FULL` and `IDEAL` are picked among full captions, by the model and by Bayes' rule;
# the others, by the model, among captions as they come.
FULL, OWN, TRUE = "its own full caption", "its own caption", "a true caption"
IDEAL = f"{FULL}, by an ideal observer"
_JUDGED_SIZE = 64  # of the clean image that the judge looks at


@torch.no_grad()
def caption_retrieval(
    clip_model: NoisedCLIPModel,
    clip_tokenizer: PreTrainedTokenizerBase,
    scheduler: GLIDEDDPMScheduler | GLIDEDDIMScheduler,
    timesteps: Sequence[int] = (0, 250, 500, 750, 999),
    num_captions: int = 256,
    seed: int = 0,
    batch_size: int = 64,
) -> dict[int, dict[str, dict[str, float]]]:
    """Noises held-out images to a timestep and lets the model pick each one's caption out of all of them, first among
    full captions ([`describe_fully`]), then among captions as the world samples them. These leave attributes unstated:
    several may be true of an image, and nobody can always tell which is its own. Equal captions count as each other's.

    No model can see what the noise hides from everybody. So an ideal observer picks among the full captions too, by
    Bayes' rule: it knows how the world renders ([`log_likelihoods`]) and how often each caption occurs. Apart from
    luck, and from its approximations, no model is right more often.

    Args:
        clip_model ([`NoisedCLIPModel`]): What is measured.
        clip_tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        scheduler ([`GLIDEDDPMScheduler`] or [`GLIDEDDIMScheduler`]): The noise schedule of the model to be guided.
        timesteps (`Sequence[int]`): Where to measure.
        num_captions (`int`, defaults to 256): Captions to choose from, and images.
        seed (`int`, defaults to 0): Of scenes, captions and noise; the noise is the same at every timestep.
        batch_size (`int`, defaults to 64): Images at a time. 256 images take ten to twenty seconds at each
            timestep, nearly all of it the ideal observer's.

    Returns:
        `dict`: a timestep to `FULL`, `IDEAL` and `OWN`, how often the picked caption is the image's own, and `TRUE`,
            how often it is true of the image, as [`rate`] gives it.

    Raises:
        ValueError: if the model's images are not a multiple of 16 pixels wide.
    """
    world = ShapesWorld(seed, held_out=True)
    examples = [world.example(index) for index in range(num_captions)]
    captions = [example.caption for example in examples]
    full_captions = [describe_fully(example.scene) for example in examples]
    size = clip_model.config.vision_config.image_size
    x_start = images_to_tensor([render(example.scene, size) for example in examples])
    noise = torch.randn(x_start.shape, generator=torch.Generator().manual_seed(seed))

    device = clip_model.device

    def embed(captions: Sequence[Caption]) -> torch.Tensor:
        tokens = tokenize_prompts(clip_tokenizer, [str(caption) for caption in captions]).to(device)
        features = clip_model.get_text_features(tokens.input_ids, tokens.attention_mask).float()
        return torch.nn.functional.normalize(features, dim=-1)

    text, full_text = embed(captions), embed(full_captions)

    def rate_of(picks: Sequence[Caption], own: Sequence[Caption]) -> dict[str, float]:
        return rate([pick == caption for pick, caption in zip(picks, own, strict=True)])

    # Equal captions are one, and that is likelier beforehand.
    prior = Counter(full_captions)
    scene_of = dict(zip(full_captions, (example.scene for example in examples), strict=True))
    distinct = list(scene_of)
    log_prior = torch.tensor([math.log(prior[caption] / num_captions) for caption in distinct])
    shown = [render(example.scene, _JUDGED_SIZE) for example in examples]
    rates = {}
    for t in timesteps:
        image, posterior = [], []
        for clean, its_noise in zip(x_start.split(batch_size), noise.split(batch_size), strict=True):
            steps = torch.full((len(clean),), t)
            x_t = scheduler.add_noise(clean, its_noise, steps)
            image.append(clip_model.get_image_features(x_t.to(device), steps.to(device)).float())
            alpha_bar = float(scheduler.alphas_cumprod[t])
            posterior.append(log_likelihoods(x_t, alpha_bar, list(scene_of.values())) + log_prior)

        # The lengths of the images' vectors do not matter for which caption is nearest.
        nearest = [captions[pick] for pick in (torch.cat(image) @ text.T).argmax(dim=1).tolist()]
        nearest_full = [full_captions[pick] for pick in (torch.cat(image) @ full_text.T).argmax(dim=1).tolist()]
        likeliest = [distinct[pick] for pick in torch.cat(posterior).argmax(dim=1).tolist()]
        rates[int(t)] = {
            FULL: rate_of(nearest_full, full_captions),
            IDEAL: rate_of(likeliest, full_captions),
            OWN: rate_of(nearest, captions),
            TRUE: rate([judge(*pair).correct for pair in zip(shown, nearest, strict=True)]),
        }
    return rates


def retrieval_table(rates: Mapping[Any, dict[str, dict[str, float]]]) -> str:
    """What [`caption_retrieval`] gave as Markdown: how often which caption is picked, in per cent with 95 % intervals.

    Args:
        rates (`Mapping`): A timestep, a number or its text, to its rates; one or more.
    """
    columns = (FULL, IDEAL, OWN, TRUE)
    rows = ([t, *(per_cent(found[column]) for column in columns)] for t, found in rates.items())
    return markdown_table(["timestep", *(f"{column}, per cent" for column in columns)], rows)
