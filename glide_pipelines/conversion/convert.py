"""Released checkpoints to a diffusers folder, and back."""

from __future__ import annotations

import itertools
import math
import re
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from diffusers.utils import logging
from huggingface_hub import create_repo, upload_folder
from huggingface_hub.utils import HFValidationError, validate_repo_id

from ..models import GLIDETextEncoder, GLIDEUNet2DConditionModel, NoisedCLIPModel
from ..pipelines import CLIPGuidedPipeline, GLIDEInpaintPipeline, GLIDEPipeline
from ..pipelines.pipeline_utils import enlargement
from ..schedulers import GLIDEDDIMScheduler, GLIDEDDPMScheduler
from .clip import RELEASED_LOGIT_SCALE, build_clip, clip_correspondences, clip_to_glide, tower_config
from .detection import Networks, build_networks, check_tensors
from .download import RELEASED_FILES, find_checkpoint
from .errors import ConversionError, blaming
from .files import new_folder, read_state_dict, writing
from .model_card import glide_filtered_card
from .state_dicts import Correspondence, to_diffusers, to_glide
from .tokenizers import load_clip_tokenizer, load_tokenizer


logger = logging.get_logger(__name__)

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_PREFIXES = ("", "super_res_")
# The pipeline that opens a converted folder; with a CLIP it is CLIPGuidedPipeline.
_PIPELINES = {"base": GLIDEPipeline, "base-inpaint": GLIDEInpaintPipeline}


@dataclass(frozen=True)
class _Stage:
    """One checkpoint: where it is, what it holds, and what its components are called in the pipeline."""

    prefix: str
    path: Path
    networks: Networks


@dataclass(frozen=True)
class _CLIP:
    """The noised CLIP: the file of each tower by its kind, the model without values, and how the files fill it."""

    paths: dict[str, Path]
    model: NoisedCLIPModel
    table: list[Correspondence]


def convert_glide_to_diffusers(
    checkpoint_path: str | Path,
    dump_path: str | Path,
    super_res_checkpoint_path: str | Path | None = None,
    tokenizer: str | Path = "openai-community/gpt2",
    attention_head_dim: int = 64,
    text_num_attention_heads: int | None = None,
    image_size: int = 64,
    super_res_image_size: int = 256,
    clip_text_checkpoint_path: str | Path | None = None,
    clip_image_checkpoint_path: str | Path | None = None,
    clip_tokenizer: str | Path = "openai/clip-vit-base-patch32",
    clip_attention_head_dim: int = 64,
    dtype: str = "float32",
    variant: str | None = None,
    push_to_hub: str | None = None,
) -> Path:
    """Convert a GLIDE base model, and its upsampler, to a folder that `GLIDEPipeline.from_pretrained` opens.

    A pair that was fine-tuned for inpainting becomes a folder for [`GLIDEInpaintPipeline`]; with the noised CLIP
    either kind becomes one for [`CLIPGuidedPipeline`].

    Memory: little more than the larger network, since the files are mapped and one network is written at a time.

    Args:
        checkpoint_path (`str` or `Path`): The base model: a file in the layout of OpenAI's `base.pt`, or the name
            `"base"` or `"base-inpaint"`, which is downloaded.
        dump_path (`str` or `Path`): The folder to write; it must be empty or not exist.
        super_res_checkpoint_path (`str` or `Path`, *optional*): The upsampler: a file in the layout of `upsample.pt`,
            or the name `"upsample"` or `"upsample-inpaint"`. Without it the pipeline returns the base picture.
        tokenizer (`str` or `Path`, defaults to `"openai-community/gpt2"`): A folder with `vocab.json` and
            `merges.txt`, or a repository on the Hub.
        attention_head_dim (`int`, defaults to 64): Channels per attention head of the UNets. The files do not show
            it, and a wrong number makes wrong pictures without an error; 64 is right for OpenAI's models and
            everything fine-tuned from them.
        text_num_attention_heads (`int`, *optional*): Heads of the text encoders, which the files do not show either;
            by default they are 64 channels wide.
        image_size (`int`, defaults to 64): Height and width of the base picture, in pixels.
        super_res_image_size (`int`, defaults to 256): Height and width of the enlarged picture.
        clip_text_checkpoint_path, clip_image_checkpoint_path (`str` or `Path`, *optional*): The noised CLIP's two
            towers: files in the layout of `clip_text_enc.pt` and `clip_image_enc.pt`, or the names `"clip-text-enc"`
            and `"clip-image-enc"`. Both or neither.
        clip_tokenizer (`str` or `Path`, defaults to `"openai/clip-vit-base-patch32"`): A folder with CLIP's
            `vocab.json` and `merges.txt`, or a repository on the Hub.
        clip_attention_head_dim (`int`, defaults to 64): Channels per attention head of both towers, which the files
            do not show.
        dtype (`str`, defaults to `"float32"`): `"float32"`, `"float16"` or `"bfloat16"`: how weights are stored.
        variant (`str`, *optional*): Goes into the names of the weight files, such as `"fp16"`.
        push_to_hub (`str`, *optional*): Upload the folder, once it is complete, to this repository.

    Returns:
        `Path`: the folder.

    Raises:
        ConversionError: naming the argument, what was given and what is allowed; then nothing has been written. Only
            a failing upload leaves the (complete) folder in place.
    """
    if dtype not in DTYPES:
        raise ConversionError(f"`dtype` must be one of {', '.join(DTYPES)}, got {dtype!r}")
    _check_variant(variant)
    if push_to_hub is not None:
        _check_repo_id(push_to_hub)
    with new_folder(dump_path, "dump_path") as folder:
        heads = (attention_head_dim, text_num_attention_heads)
        stages = [_open("checkpoint_path", checkpoint_path, "", image_size, *heads)]
        if super_res_checkpoint_path is not None:
            upsampler = super_res_checkpoint_path
            stages.append(_open("super_res_checkpoint_path", upsampler, "super_res_", super_res_image_size, *heads))
            _check_pair(stages)
        clip = None
        if clip_text_checkpoint_path is not None or clip_image_checkpoint_path is not None:
            clip = _open_clip(clip_text_checkpoint_path, clip_image_checkpoint_path, clip_attention_head_dim)
            _check_clip(clip, image_size)
        pipe = _build_pipeline(stages, tokenizer, clip, clip_tokenizer)
        total = 2 * len(stages) + (clip is not None)
        with logging.tqdm(total=total, desc="Converting", unit="network") as progress_bar:
            filled = [_fill_networks(stage, DTYPES[dtype]) for stage in stages]
            if clip is not None:
                filled.append(_fill_clip(clip, DTYPES[dtype]))
            for name, network in itertools.chain(*filled):
                with writing("dump_path", dump_path):
                    network.save_pretrained(folder / name, variant=variant)
                progress_bar.set_postfix_str(name)
                progress_bar.update()
        files = [stage.path.name for stage in stages] + ([] if clip is None else [p.name for p in clip.paths.values()])
        card = glide_filtered_card(pipe, files, push_to_hub or folder.name, DTYPES[dtype], variant)
        with writing("dump_path", dump_path):
            for name, component in pipe.components.items():
                if component is not None and not isinstance(component, torch.nn.Module):
                    component.save_pretrained(folder / name)
            pipe.save_config(folder)
            card.save(folder / "README.md")
    folder = Path(dump_path).expanduser().resolve()
    if push_to_hub is not None:
        with blaming("push_to_hub", push_to_hub):
            _push(folder, push_to_hub)
    return folder


def convert_diffusers_to_glide(model_path: str | Path, dump_path: str | Path, variant: str | None = None) -> list[Path]:
    """Convert the networks of a pipeline's folder to files that the original code loads.

    Weights are written in float32, as released. A folder that was converted in float32 gives the very same tensors
    back.

    Args:
        model_path (`str` or `Path`): A folder that a GLIDE pipeline was saved to.
        dump_path (`str` or `Path`): The folder to write; it must be empty or not exist.
        variant (`str`, *optional*): The variant to read, such as `"fp16"`.

    Returns:
        `list[Path]`: the files, named as OpenAI's release: `base.pt` and `upsample.pt`, or `base_inpaint.pt` and
        `upsample_inpaint.pt`, and `clip_text_enc.pt` and `clip_image_enc.pt` where there is a noised CLIP.

    Raises:
        ConversionError: naming the argument, what was given and what is allowed; then nothing has been written.
    """
    _check_variant(variant)
    names = []
    with new_folder(dump_path, "dump_path") as folder:
        for kind, state_dict in _read_pipeline(Path(model_path).expanduser(), variant):
            names.append(RELEASED_FILES[kind])
            # Opened here, because torch keeps to itself why a file that it opened cannot be written.
            with writing("dump_path", dump_path), open(folder / names[-1], "wb") as file:
                torch.save(state_dict, file)
            del state_dict  # before the next one is read
    return [Path(dump_path).expanduser().resolve() / name for name in names]


def _open(
    argument: str,
    name_or_path: str | Path,
    prefix: str,
    image_size: int,
    attention_head_dim: int,
    text_num_attention_heads: int | None,
) -> _Stage:
    """Find the file and build the networks that it shows, without reading the values."""
    with blaming(argument, name_or_path):
        path = find_checkpoint(name_or_path)
        networks = build_networks(read_state_dict(path), attention_head_dim, text_num_attention_heads, image_size)
        wanted = "upsample" if prefix else "base"
        if not networks.kind.startswith(wanted):
            raise ConversionError(f"this is GLIDE's {networks.kind}, where {wanted} or {wanted}-inpaint is needed")
        multiple = networks.unet.size_multiple
        if image_size < 1 or image_size % multiple:
            raise ConversionError(
                f"`{prefix}image_size` must be a positive multiple of {multiple} for this file, got {image_size}"
            )
    return _Stage(prefix, path, networks)


def _check_pair(stages: list[_Stage]) -> None:
    base, upsampler = stages
    with blaming("super_res_checkpoint_path", upsampler.path):
        if base.networks.unet.is_inpainter != upsampler.networks.unet.is_inpainter:
            raise ConversionError(
                f"this is GLIDE's {upsampler.networks.kind}, which does not go with the {base.networks.kind} of "
                "`checkpoint_path`: both must inpaint, or neither"
            )
        for what, of in (("tokens", "vocab_size"), ("positions", "max_position_embeddings")):
            here, there = (getattr(stage.networks.text_encoder.config, of) for stage in (upsampler, base))
            if here != there:
                raise ConversionError(
                    f"its text encoder has {here} {what}, that of `checkpoint_path` {there}; they share a tokenizer"
                )
        try:
            enlargement(*(stage.networks.unet.config.sample_size for stage in (upsampler, base)))
        except ValueError as error:
            raise ConversionError(f"`super_res_image_size` and `image_size` do not go together: {error}") from error


def _open_clip(text: str | Path | None, image: str | Path | None, attention_head_dim: int) -> _CLIP:
    """Find the files of both towers and build the network that they show, without reading the values."""
    given = {
        "clip-text-enc": ("clip_text_checkpoint_path", text),
        "clip-image-enc": ("clip_image_checkpoint_path", image),
    }
    for argument, name_or_path in given.values():
        if name_or_path is None:
            raise ConversionError(f"`{argument}` is missing: the noised CLIP has two towers, each with its file")
    paths, towers = {}, {}
    for kind, (argument, name_or_path) in given.items():
        with blaming(argument, name_or_path):
            paths[kind] = find_checkpoint(name_or_path)
            towers[kind] = tower_config(read_state_dict(paths[kind]), kind, attention_head_dim)
    with blaming("clip_image_checkpoint_path", image):
        clip = build_clip(*towers.values())
    table = clip_correspondences(clip)
    for kind, (argument, name_or_path) in given.items():
        with blaming(argument, name_or_path):
            rows = [row for row in table if row.component == kind]
            check_tensors(read_state_dict(paths[kind]), rows, {kind: clip})
    return _CLIP(paths, clip, table)


def _check_clip(clip: _CLIP, image_size: int) -> None:
    """The CLIP must read what the base model draws."""
    vision = clip.model.config.vision_config
    with blaming("clip_image_checkpoint_path", clip.paths["clip-image-enc"]):
        if vision.image_size != image_size:
            raise ConversionError(
                f"it reads pictures of {vision.image_size} pixels, the base model draws {image_size} (`image_size`)"
            )
        timesteps = GLIDEDDPMScheduler().config.num_train_timesteps
        if vision.num_train_timesteps != timesteps:
            raise ConversionError(f"it knows {vision.num_train_timesteps} timesteps, the base model has {timesteps}")


def _build_pipeline(
    stages: list[_Stage], tokenizer: str | Path, clip: _CLIP | None, clip_tokenizer: str | Path
) -> DiffusionPipeline:
    """The pipeline around networks without values: it knows which components there are, and writes the index."""
    text_config = stages[0].networks.text_encoder.config
    with blaming("tokenizer", tokenizer):
        components = {
            "tokenizer": load_tokenizer(tokenizer, text_config.max_position_embeddings, text_config.vocab_size)
        }
    for stage in stages:
        text_encoder = stage.networks.text_encoder
        text_encoder.config.pad_token_id = components["tokenizer"].pad_token_id
        text_encoder.config.eos_token_id = components["tokenizer"].eos_token_id
        components[f"{stage.prefix}text_encoder"] = text_encoder
        components[f"{stage.prefix}unet"] = stage.networks.unet
        components[f"{stage.prefix}scheduler"] = _scheduler(stage.networks.unet)
    if clip is None:
        return _PIPELINES[stages[0].networks.kind](**components)
    text_config = clip.model.config.text_config
    with blaming("clip_tokenizer", clip_tokenizer):
        components["clip_tokenizer"] = load_clip_tokenizer(
            clip_tokenizer, text_config.max_position_embeddings, text_config.vocab_size
        )
    return CLIPGuidedPipeline(**components, clip_model=clip.model)


def _scheduler(unet: GLIDEUNet2DConditionModel) -> SchedulerMixin:
    """The noise schedule that the network was trained with, and the sampler of the released notebooks."""
    if not unet.is_upsampler:
        return GLIDEDDPMScheduler(beta_schedule="squaredcos_cap_v2")
    return (GLIDEDDPMScheduler if unet.is_inpainter else GLIDEDDIMScheduler)(beta_schedule="linear")


def _fill_networks(stage: _Stage, dtype: torch.dtype) -> Iterator[tuple[str, torch.nn.Module]]:
    """Fill one network after the other, yield it with its name, and empty it again."""
    for name in ("text_encoder", "unet"):
        network = getattr(stage.networks, name)
        # Mapped anew for each network: what has been read of a mapped file counts as used memory until it is closed.
        tensors = to_diffusers(read_state_dict(stage.path), stage.networks.table, name)
        network.load_state_dict({key: tensor.to(dtype) for key, tensor in tensors.items()}, assign=True)
        del tensors
        yield f"{stage.prefix}{name}", network
        network.to("meta")


def _fill_clip(clip: _CLIP, dtype: torch.dtype) -> Iterator[tuple[str, torch.nn.Module]]:
    """The same for the noised CLIP."""
    weights = {"logit_scale": torch.tensor(RELEASED_LOGIT_SCALE, dtype=dtype)}
    for kind, path in clip.paths.items():
        tensors = to_diffusers(read_state_dict(path), clip.table, kind)
        weights |= {key: tensor.to(dtype) for key, tensor in tensors.items()}
    clip.model.load_state_dict(weights, assign=True)
    del weights, tensors
    yield "clip_model", clip.model
    clip.model.to("meta")


def _read_pipeline(model_path: Path, variant: str | None) -> Iterator[tuple[str, OrderedDict[str, torch.Tensor]]]:
    """Kind and GLIDE state dict of each file, one after the other."""
    with blaming("model_path", model_path):
        if not (model_path / "unet" / "config.json").is_file():
            raise ConversionError("a folder that a GLIDE pipeline was saved to is needed; there is no unet in it")
        for prefix in _PREFIXES:
            if (model_path / f"{prefix}unet").is_dir():
                yield _read_networks(model_path, prefix, variant)
        if (model_path / "clip_model").is_dir():
            yield from _read_clip(model_path, variant).items()


def _read_networks(model_path: Path, prefix: str, variant: str | None) -> tuple[str, OrderedDict[str, torch.Tensor]]:
    """The kind of one stage, and its GLIDE state dict."""
    options = {"variant": variant, "dtype": torch.float32, "use_safetensors": True}
    try:
        unet, text_encoder = (
            network.from_pretrained(model_path / f"{prefix}{name}", **options)
            for network, name in ((GLIDEUNet2DConditionModel, "unet"), (GLIDETextEncoder, "text_encoder"))
        )
        state_dict = to_glide(unet, text_encoder)
    except Exception as error:  # what a missing or broken file, or one of another model raises is not ours to know
        reason = str(error).strip().split("\n")[0]
        raise ConversionError(f"{prefix}unet and {prefix}text_encoder are not those of GLIDE ({reason})") from error
    heads = (unet.config.attention_head_dim, text_encoder.config.num_attention_heads)
    return build_networks(state_dict, *heads, unet.config.sample_size).kind, state_dict


def _read_clip(model_path: Path, variant: str | None) -> dict[str, OrderedDict[str, torch.Tensor]]:
    """The two GLIDE state dicts of the noised CLIP, by kind."""
    options = {"variant": variant, "dtype": torch.float32, "use_safetensors": True}
    try:
        clip = NoisedCLIPModel.from_pretrained(model_path / "clip_model", **options)
    except Exception as error:  # what a missing or broken file, or one of another model raises is not ours to know
        reason = str(error).strip().split("\n")[0]
        raise ConversionError(f"clip_model is not GLIDE's noised CLIP ({reason})") from error
    if not math.isclose(clip.logit_scale.item(), RELEASED_LOGIT_SCALE, abs_tol=1e-2):
        logger.warning(
            f"This CLIP multiplies cosines by {clip.logit_scale.exp().item():.4g}, which the files do not hold: "
            "OpenAI's code takes 100, and needs its guidance scale changed by as much."
        )
    return clip_to_glide(clip)


def _check_variant(variant: str | None) -> None:
    if variant is not None and not re.fullmatch(r"[\w.-]+", variant):
        raise ConversionError(
            f"`variant` must be a part of a file name, such as 'fp16' (letters, digits, '.', '_', '-'), got {variant!r}"
        )


def _check_repo_id(repo_id: str) -> None:
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ConversionError(f"`push_to_hub` must be a repository on the Hub, such as 'user/name': {error}") from None


def _push(folder: Path, repo_id: str) -> None:
    try:
        upload_folder(repo_id=create_repo(repo_id, exist_ok=True).repo_id, folder_path=folder)
    except Exception as error:  # not logged in, no right to write there, no network
        reason = str(error).strip().split("\n")[0]
        raise ConversionError(f"the upload failed ({reason}); the folder {folder} is complete") from error
