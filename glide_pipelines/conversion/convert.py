"""Released checkpoints to a folder that diffusers opens."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from huggingface_hub import create_repo, upload_folder
from huggingface_hub.utils import HFValidationError, validate_repo_id

from ..pipelines import CLIPGuidedPipeline, GLIDEInpaintPipeline, GLIDEPipeline
from .detection import STAGE_KINDS
from .errors import ConversionError, blaming, check_variant, first_line
from .folders import new_folder, writing
from .model_card import glide_filtered_card
from .stages import PipelineFiles, open_files


DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


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
    allow_non_finite: bool = False,
) -> Path:
    """Convert a GLIDE base model, and its upsampler, to a folder that `GLIDEPipeline.from_pretrained` opens.

    Where either stage was fine-tuned for inpainting, it is a folder for [`GLIDEInpaintPipeline`], in which each stage
    runs in its own mode; with the noised CLIP any pair becomes one for [`CLIPGuidedPipeline`].

    A file may be one of safetensors, and its state dict may stand under keys such as `state_dict` or `ema` and bear the
    names of torch's wrappers (see [`open_checkpoint`]).

    Memory: little more than the larger network, since the files are mapped and one network is written at a time.

    Args:
        checkpoint_path (`str` or `Path`): The base model: a file in the layout of OpenAI's `base.pt`, or the name
            `"base"` or `"base-inpaint"`, which is downloaded.
        dump_path (`str` or `Path`): The folder to write; it must be empty or not exist.
        super_res_checkpoint_path (`str` or `Path`, *optional*): The upsampler: a file in the layout of `upsample.pt`,
            or the name `"upsample"` or `"upsample-inpaint"`. Without it the pipeline returns the base image.
        tokenizer, attention_head_dim, text_num_attention_heads, image_size, super_res_image_size, clip_tokenizer,
        clip_attention_head_dim: As in [`GLIDESingleFileMixin.from_single_file`].
        clip_text_checkpoint_path, clip_image_checkpoint_path (`str` or `Path`, *optional*): The noised CLIP's two
            towers: files in the layout of `clip_text_enc.pt` and `clip_image_enc.pt`, or the names `"clip-text-enc"`
            and `"clip-image-enc"`. Both or neither.
        dtype (`str`, defaults to `"float32"`): `"float32"`, `"float16"` or `"bfloat16"`: how weights are stored.
        allow_non_finite (`bool`, defaults to `False`): Whether weights may be NaN or infinite, for those who look into
            such a model: `from_pretrained` refuses it.
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
    check_variant(variant)
    if push_to_hub is not None:
        _check_repo_id(push_to_hub)
    destination = Path(dump_path).expanduser().resolve()
    with new_folder(destination, "dump_path") as folder:
        towers = {
            "clip-text-enc": ("clip_text_checkpoint_path", clip_text_checkpoint_path),
            "clip-image-enc": ("clip_image_checkpoint_path", clip_image_checkpoint_path),
        }
        files = open_files(
            {"checkpoint_path": checkpoint_path, "super_res_checkpoint_path": super_res_checkpoint_path},
            STAGE_KINDS,
            {"base": image_size, "super_res": super_res_image_size},
            attention_head_dim,
            text_num_attention_heads,
            towers if any(path for _, path in towers.values()) else None,
            clip_attention_head_dim,
        )
        pipe = _pipeline_class(files)(**files.components(tokenizer, clip_tokenizer))
        for name, network in files.load_weights("Converting", DTYPES[dtype], allow_non_finite):
            with writing("dump_path", dump_path):
                network.save_pretrained(folder / name, variant=variant)
            network.to("meta")  # makes room for the next one
        card = glide_filtered_card(pipe, files.files, push_to_hub or destination.name, DTYPES[dtype], variant)
        with writing("dump_path", dump_path):
            for name, component in pipe.components.items():
                if component is not None and not isinstance(component, torch.nn.Module):
                    component.save_pretrained(folder / name)
            pipe.save_config(folder)
            card.save(folder / "README.md")
    if push_to_hub is not None:
        with blaming("push_to_hub", push_to_hub):
            _push(destination, push_to_hub)
    return destination


def _pipeline_class(files: PipelineFiles) -> type[DiffusionPipeline]:
    if files.clip is not None:
        return CLIPGuidedPipeline
    inpaints = any(opened.stage.unet.is_inpainter for opened in files.stages)
    return GLIDEInpaintPipeline if inpaints else GLIDEPipeline


def _check_repo_id(repo_id: str) -> None:
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ConversionError(f"`push_to_hub` must be a repository on the Hub, such as 'user/name': {error}") from None


def _push(folder: Path, repo_id: str) -> None:
    try:
        upload_folder(repo_id=create_repo(repo_id, exist_ok=True).repo_id, folder_path=folder)
    except Exception as error:  # not logged in, no right to write there, no network
        raise ConversionError(f"the upload failed ({first_line(error)}); the folder {folder} is complete") from error
