"""Model cards: what a checkpoint is, what it is for and what it cannot do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from huggingface_hub import ModelCard, ModelCardData

from ..markdown import markdown_table
from .reading import CheckpointFile, file_sha256


_LIBRARY_TAGS = ("glide", "glide-pipelines", "diffusers", "arxiv:2112.10741")


def model_card(
    title: str,
    sections: Mapping[str, str],
    license: str,
    tags: Sequence[str] = (),
    pipeline_tag: str = "text-to-image",
    language: str = "en",
) -> ModelCard:
    """A model card as the Hub shows it; `card.save(folder / "README.md")` puts it beside the weights.

    Args:
        title (`str`): Name of the checkpoint.
        sections (`Mapping[str, str]`): Heading to Markdown text, in order; the text under `""` stands first, without
            a heading.
        license (`str`): The Hub's identifier of the licence, such as `"mit"`.
        tags (`Sequence[str]`): Tags beside those of this library.
        pipeline_tag (`str`, defaults to `"text-to-image"`): The Hub's name of the task.
        language (`str`, defaults to `"en"`): Language of the prompts.

    Returns:
        `ModelCard`
    """
    data = ModelCardData(
        language=language,
        library_name="diffusers",
        license=license,
        pipeline_tag=pipeline_tag,
        tags=[*_LIBRARY_TAGS, *tags],
    )
    parts = [f"---\n{data.to_yaml()}\n---", f"# {title}"]
    parts += [f"## {heading}\n\n{text.strip()}" if heading else text.strip() for heading, text in sections.items()]
    return ModelCard("\n\n".join(parts) + "\n")


def glide_filtered_card(
    pipe: DiffusionPipeline,
    files: Sequence[CheckpointFile],
    location: str | Path,
    dtype: torch.dtype = torch.float32,
    variant: str | None = None,
) -> ModelCard:
    """The card of GLIDE (filtered), the models that OpenAI released, after conversion.

    Args:
        pipe (`DiffusionPipeline`): The pipeline; its networks may be on the meta device.
        files (`Sequence[CheckpointFile]`): The files that were converted; the card records their SHA-256.
        location (`str` or `Path`): What `from_pretrained` is given in the example: a repository or a folder.
        dtype (`torch.dtype`, defaults to `torch.float32`): How the weights are stored.
        variant (`str`, *optional*): The variant that they are stored as.

    Returns:
        `ModelCard`
    """
    inpaints = any(unet is not None and unet.is_inpainter for unet in (pipe.unet, pipe.super_res_unet))
    clip = getattr(pipe, "clip_model", None)
    options = "" if variant is None else f', variant="{variant}"'
    options += "" if dtype == torch.float32 else f", dtype={dtype}"
    quoted = [f"`{file.path.name}`" for file in files]
    classifier_free = f"classifier-free guidance at scale {5 if inpaints else 3}"
    values = {
        "pipeline": type(pipe).__name__,
        "guidance": classifier_free if clip is None else "the noised CLIP's guidance at scale 3",
        "files": " and ".join([", ".join(quoted[:-1]), quoted[-1]] if len(quoted) > 1 else quoted),
        "task": "fills a region of an image to fit a prompt" if inpaints else "generates an image from a prompt",
        "imports": "" if dtype == torch.float32 else "import torch\n",
        "location": location,
        "options": options,
        "context": pipe.text_encoder.config.max_position_embeddings,
        "size": f"{pipe.unet.config.sample_size} x {pipe.unet.config.sample_size}",
        "upsampling": "" if pipe.super_res_unet is None else ", then 27 steps of the upsampler",
        "components": _component_table(pipe),
        "checksums": _checksum_table(files),
        "dtype": str(dtype).removeprefix("torch."),
    }
    sections = {
        "": _SUMMARY,
        "Use": _INSTALL + (_USE_INPAINTING if inpaints else _USE),
        "Facts": _FACTS + ("" if clip is None else _CLIP_FACTS),
        "What it was trained on": _DATA,
        "What it is for": _INTENDED,
        "What it cannot do": _LIMITS,
        "Converted files": _CHECKSUMS,
        "Licence": _LICENCE,
        "Reference": _REFERENCE,
    }
    sections = {heading: text.format(**values) for heading, text in sections.items()}
    return model_card("GLIDE (filtered)", sections, license="mit", tags=["inpainting"] if inpaints else [])


def _component_table(pipe: DiffusionPipeline) -> str:
    rows = []
    for prefix, task in (("", "generates"), ("super_res_", "upsamples to")):
        text_encoder, unet = getattr(pipe, f"{prefix}text_encoder"), getattr(pipe, f"{prefix}unet")
        if unet is not None:
            context, size = text_encoder.config.max_position_embeddings, unet.config.sample_size
            rows += [
                [f"`{prefix}text_encoder`", f"{text_encoder.num_parameters():,}", f"reads {context} tokens"],
                [f"`{prefix}unet`", f"{unet.num_parameters():,}", f"{task} {size} x {size} pixels"],
            ]
    if (clip := getattr(pipe, "clip_model", None)) is not None:
        text, vision = clip.text_model.config, clip.vision_model.config
        size = f"{vision.image_size} x {vision.image_size}"
        reads = f"reads noised images of {size} pixels and captions of {text.max_position_embeddings} tokens"
        rows.append(["`clip_model`", f"{clip.num_parameters():,}", reads])
    return markdown_table(["component", "parameters", ""], rows)


def _checksum_table(files: Sequence[CheckpointFile]) -> str:
    rows = [
        [f"`{file.path.name}`" + (f", its `{file.key}`" if file.key else ""), f"`{file_sha256(file.path)}`"]
        for file in files
    ]
    return markdown_table(["file", "SHA-256"], rows)


_SUMMARY = """\
GLIDE is a text-guided diffusion model: it {task}.
"Filtered" is the model that OpenAI released in December 2021; the paper's own model is several times larger and was not
released. This folder holds {files}, converted with glide-pipelines to the layout of
[diffusers](https://github.com/huggingface/diffusers).

This card describes OpenAI's release. If the files were fine-tuned from it, add here what they were trained on and under
which licence."""

_INSTALL = """\
```bash
pip install glide-pipelines
```

"""

_USE = """\
```python
{imports}from glide_pipelines import {pipeline}

pipe = {pipeline}.from_pretrained("{location}"{options})
image = pipe("an oil painting of a corgi").images[0]
image.save("corgi.png")
```

Prompts are cut after {context} tokens. Without further arguments the pipeline samples as the released notebooks do:
100 steps with {guidance}{upsampling}."""

_USE_INPAINTING = """\
```python
{imports}from diffusers.utils import load_image
from glide_pipelines import {pipeline}

pipe = {pipeline}.from_pretrained("{location}"{options})
image, mask = load_image("image.png"), load_image("mask.png")  # white in the mask is repainted
edited = pipe("a vase of flowers", image=image, mask_image=mask).images[0]
edited.save("edited.png")
```

Prompts are cut after {context} tokens. Without further arguments the pipeline samples as the released notebooks do:
100 steps with {guidance}{upsampling}; the pixels that the mask keeps are
put back at each step."""

_FACTS = """\
{components}

Weights are stored in {dtype}. Both models are trained with 1000 diffusion steps in pixel space, the base model with the
cosine schedule and the upsampler with the linear one. They predict the noise and the variance of a step. Each has its
own text encoder, a transformer whose outputs are keys and values in every attention layer of the UNet."""

_CLIP_FACTS = """

The noised CLIP was trained on images with the base model's noise, and its image tower takes the timestep. The gradient
of how well an image fits a caption guides the base model. Cosines are multiplied by 100, a number that is in none of
OpenAI's files."""

_DATA = """\
Images with captions from the internet. Before training, OpenAI filtered out images of people, violent objects and some
hate symbols, to make misuse harder. Filters miss things, so some of these images may have remained."""

_INTENDED = """\
Research: on diffusion models, on guidance, and on how to measure and correct the errors of such models. It was not made
for products, and its images should not be passed off as photographs or used to deceive or to harm."""

_LIMITS = """\
- It does not generate people well: images of them were removed from the training set, and with them much of what
  surrounds people.
- It is much smaller than the model of the paper: expect less realism than in the paper's figures, and errors for
  prompts with several objects, with counts, or with things that are rarely seen together.
- The base image has {size} pixels; finer detail is invented by the upsampler.
- It repeats the biases of images and captions on the internet: what it shows for a profession, a place or a custom is
  what was common there. Filtering may have added biases of its own.
- It has no safety checker: look at its images before you show them to others."""

_CHECKSUMS = """\
{checksums}"""

_LICENCE = """\
OpenAI released the code and these weights under the
[MIT licence](https://github.com/openai/glide-text2im/blob/main/LICENSE)."""

_REFERENCE = """\
Nichol, Dhariwal, Ramesh, Shyam, Mishkin, McGrew, Sutskever and Chen: *GLIDE: Towards Photorealistic Image Generation
and Editing with Text-Guided Diffusion Models*, [arXiv 2112.10741](https://arxiv.org/abs/2112.10741)."""
