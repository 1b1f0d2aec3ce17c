"""What a pipeline checks of its components when it is made or loaded, before they are used."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterable, Mapping
from numbers import Real
from pathlib import Path
from typing import Any

from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from ..models.checks import read_json_object
from ..sampling import STAGE_PREFIXES, Stage
from ..schedulers.respacing import check_num_train_timesteps


def check_components(pipeline: DiffusionPipeline) -> None:
    """The parts of each stage must fit: the text encoder the tokenizer, and the UNet the text encoder.

    Raises:
        ValueError: naming the components, and both sizes.
    """
    tokenizer = getattr(pipeline, "tokenizer", None)
    for stage in STAGE_PREFIXES:
        text_name, unet_name, _ = Stage.component_names(stage)
        text_encoder, unet = getattr(pipeline, text_name, None), getattr(pipeline, unet_name, None)
        if text_encoder is None:
            continue
        config = text_encoder.config
        if tokenizer is not None:
            where = f"`tokenizer` ({tokenizer.name_or_path})" if tokenizer.name_or_path else "`tokenizer`"
            context = config.max_position_embeddings
            if tokenizer.model_max_length != context:
                raise ValueError(
                    f"{where}: `model_max_length` must be {context}, the context of `{text_name}`, got "
                    f"{tokenizer.model_max_length}. Set it in tokenizer_config.json, or pass `tokenizer=`."
                )
            last = max(tokenizer.get_vocab().values(), default=0)
            if last >= config.vocab_size:
                raise ValueError(
                    f"{where} has token ids up to {last}, but `{text_name}` has a vocabulary of {config.vocab_size}."
                )
        width = None if unet is None else unet.config.cross_attention_dim
        if width is not None and width != config.hidden_size:
            raise ValueError(f"`{text_name}` gives vectors of {config.hidden_size}, but `{unet_name}` reads {width}.")


def check_index(index: Any, components: Iterable[str], path: str | os.PathLike) -> None:
    """What `model_index.json` says must be a pipeline of known classes, and its schedulers of a plausible length.

    Args:
        index: What the file holds.
        components (`Iterable[str]`): Their names.
        path (`str` or `os.PathLike`): Where it came from: a folder or a Hub id.

    Raises:
        ValueError: naming file and field.
    """
    where = f"{path}: model_index.json"
    if not isinstance(index, Mapping):
        raise ValueError(f"{where} must hold a JSON object, not a {type(index).__name__}.")
    if not isinstance(index.get("_class_name"), str):
        raise ValueError(f"{where}: `_class_name` must be the name of a pipeline, got {index.get('_class_name')!r}.")
    scale = index.get("default_guidance_scale")
    if scale is not None and (isinstance(scale, bool) or not isinstance(scale, Real) or not math.isfinite(scale)):
        raise ValueError(f"{where}: `default_guidance_scale` must be a finite number, got {scale!r}.")
    for name in sorted(set(components) & set(index)):
        entry = index[name]
        is_pair = isinstance(entry, list | tuple) and len(entry) == 2
        if not is_pair or not all(part is None or isinstance(part, str) for part in entry):
            raise ValueError(f"{where}: `{name}` must be a library and a class, got {entry!r}.")
        library, class_name = entry
        # Among what is imported already: a name in a file must not decide what is.
        if library in sys.modules and not hasattr(sys.modules[library], class_name or ""):
            raise ValueError(f"{where}: `{name}` names {class_name!r}, which {library} does not have.")
        config = Path(path, name, "scheduler_config.json")
        if config.is_file():
            total = read_json_object(config).get("num_train_timesteps", 1000)
            try:
                check_num_train_timesteps(total)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{config}: {error}") from error
