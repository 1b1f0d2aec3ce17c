"""Measures a noised CLIP: which captions it picks for noised pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from diffusers import SchedulerMixin
from transformers import PreTrainedTokenizerBase

from ..models import NoisedCLIPModel, tokenize_prompts
from ..pixels import pictures_to_tensor
from .dataset import ShapesWorld
from .evaluation import per_cent, rate
from .judge import judge
from .render import render


# Of a picked caption: what is asked, and the size of the clean picture that the judge looks at.
OWN, TRUE = "its own caption", "a true caption"
_JUDGED_SIZE = 64


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
    Noises held-out pictures to a timestep and lets the model pick each one's caption out of all of them. Captions that
    say the same are one's own for each other's pictures. Since captions leave things unsaid, several may be true of a
    picture, and nobody can always tell which of them is its own.

    Args:
        clip_model ([`NoisedCLIPModel`]): What is measured.
        clip_tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        scheduler ([`GLIDEDDPMScheduler`] or [`GLIDEDDIMScheduler`]): The noise schedule of the model to be guided.
        timesteps (`Sequence[int]`): Where to measure.
        num_captions (`int`, defaults to 256): Captions to choose from, and pictures.
        seed (`int`, defaults to 0): Of scenes, captions and noise; the noise is the same at every timestep.
        batch_size (`int`, defaults to 64): Pictures at a time.

    Returns:
        `dict`: a timestep to `OWN` and `TRUE`, how often the picked caption is the picture's own, and how often it is
            true of the picture, as [`rate`] gives it.
    """
    world = ShapesWorld(seed, held_out=True)
    examples = [world.example(index) for index in range(num_captions)]
    captions = [example.caption for example in examples]
    size = clip_model.config.vision_config.image_size
    x_start = pictures_to_tensor([render(example.scene, size) for example in examples])
    noise = torch.randn(x_start.shape, generator=torch.Generator().manual_seed(seed))

    tokens = tokenize_prompts(clip_tokenizer, [str(caption) for caption in captions]).to(clip_model.device)
    text = clip_model.get_text_features(tokens.input_ids, tokens.attention_mask).float()
    text = torch.nn.functional.normalize(text, dim=-1)
    shown = [render(example.scene, _JUDGED_SIZE) for example in examples]
    rates = {}
    for t in timesteps:
        picks: list[int] = []
        for start in range(0, num_captions, batch_size):
            part = slice(start, start + batch_size)
            at = torch.full((len(x_start[part]),), t)
            x_t = scheduler.add_noise(x_start[part], noise[part], at)
            features = clip_model.get_image_features(x_t.to(clip_model.device), at.to(clip_model.device)).float()
            # Lengths do not matter for which caption is nearest, once the texts have unit length.
            picks += (features @ text.T).argmax(dim=1).tolist()
        picked = [captions[pick] for pick in picks]
        rates[int(t)] = {
            OWN: rate([caption == own for caption, own in zip(picked, captions, strict=True)]),
            TRUE: rate([judge(*pair).correct for pair in zip(shown, picked, strict=True)]),
        }
    return rates


def retrieval_table(rates: Mapping[int | str, dict[str, dict[str, float]]]) -> str:
    """
    What [`caption_retrieval`] gave as Markdown, in per cent with its 95 % interval.

    Args:
        rates (`Mapping`): A timestep to its rate; one or more.
    """
    cases = next(iter(rates.values()))[OWN]["cases"]
    lines = [f"| timestep | of {cases} captions it picks {OWN}, per cent | {TRUE} |", "|---|---|---|"]
    return "\n".join(lines + [f"| {t} | {per_cent(rate[OWN])} | {per_cent(rate[TRUE])} |" for t, rate in rates.items()])
