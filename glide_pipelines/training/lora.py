"""LoRA and DoRA adapters of a stage: added, trained alone, and saved as diffusers saves them (arXiv 2106.09685)."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations import peft as peft_integration
from transformers.utils import check_peft_version

from ..files import updated_folder
from ..pipelines.lora import STAGE_LOADERS
from ..sampling import Stage


if TYPE_CHECKING:  # an optional package
    from peft import LoraConfig


# The projections of the attention: of the UNet (the last two read the text), and of the text encoder.
LORA_TARGETS = (
    *("to_q", "to_k", "to_v", "to_out.0", "add_k_proj", "add_v_proj"),
    *("q_proj", "k_proj", "v_proj", "out_proj"),
)


def add_lora(stage: Stage, config: LoraConfig, freeze_text_encoder: bool = False) -> None:
    """Freeze a stage, and add adapters to it, which are all that is trained then.

    Args:
        stage ([`Stage`]): Text encoder and UNet, without adapters.
        config (`peft.LoraConfig`): Rank, alpha and the like. Its `target_modules` are names of layers, or ends of them,
            in either network; by default the projections of the attention.
        freeze_text_encoder (`bool`, defaults to `False`): Adapt the UNet only.

    Raises:
        ValueError: if a target is no layer, or no linear or convolutional one; if transformers asks for a newer peft.
    """
    from peft import LoraConfig

    settings = config.to_dict()
    targets = set(settings.pop("target_modules") or LORA_TARGETS)
    found = set()
    stage.requires_grad_(False)
    for name, network in _networks(stage).items():
        own = {target for target in targets if _has_layer(network, target)}
        found |= own
        if own and not (freeze_text_encoder and name == "text_encoder"):
            if isinstance(network, PreTrainedModel):  # asked here, because the version is no fault of the targets
                check_peft_version(min_version=peft_integration.MIN_PEFT_VERSION)
            try:
                network.add_adapter(LoraConfig(**settings, target_modules=sorted(own)))
            except (ValueError, TypeError) as error:
                raise ValueError(f"`lora_targets`: {' '.join(str(error).split())}") from error
    unknown = [] if config.target_modules is None else sorted(targets - found)
    if unknown or not lora_parameters(stage):
        layers = (name for name, layer in stage.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d))
        ends = sorted({name.rpartition(".")[2] for name in layers} - {"0"})
        raise ValueError(
            f"`lora_targets` must be names of layers that are trained, or ends of them, such as {', '.join(ends)}; "
            f"got {', '.join(unknown or sorted(targets))}."
        )


def lora_parameters(stage: Stage) -> dict[str, nn.Parameter]:
    """The weights of the adapters, by their names in the stage."""
    return {name: parameter for name, parameter in stage.named_parameters() if ".lora_" in name}


def lora_settings(stage: Stage) -> dict[str, Any]:
    """What adapters mean besides their weights: the settings, and which weights they are added to, as a SHA-256."""
    settings: dict[str, Any] = {}
    for name, network in _networks(stage).items():
        if adapters := getattr(network, "peft_config", None):
            config = adapters["default"]
            settings[name] = {
                "lora_rank": config.r,
                "lora_alpha": config.lora_alpha,
                "lora_targets": sorted(config.target_modules),
                "use_dora": config.use_dora,
            }
    digest = hashlib.sha256()
    for name, tensor in stage.state_dict().items():
        if ".lora_" not in name:
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return {**settings, "model": digest.hexdigest()}


def save_lora(stage: Stage, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
    """Save the adapters of a stage, for `load_lora_weights` of a pipeline and `glide --lora`.

    Args:
        stage ([`Stage`]): With adapters: see [`add_lora`].
        folder (`str` or `Path`): Gets `pytorch_lora_weights.safetensors`.
        dtype (`torch.dtype`, defaults to `torch.float32`): Number format of the saved weights.
    """
    from peft import get_peft_model_state_dict

    layers: dict[str, Any] = {}
    for name, network in _networks(stage).items():
        if adapters := getattr(network, "peft_config", None):
            weights = get_peft_model_state_dict(network)
            layers[f"{name}_lora_layers"] = {key: weight.to(dtype).contiguous() for key, weight in weights.items()}
            layers[f"{name}_lora_adapter_metadata"] = adapters["default"].to_dict()
    with updated_folder(Path(folder)) as temporary:
        STAGE_LOADERS[stage.name].save_lora_weights(temporary, **layers)


def _networks(stage: Stage) -> dict[str, Any]:
    networks = {"unet": stage.unet, "text_encoder": stage.text_encoder}
    return {name: network for name, network in networks.items() if network is not None}


def _has_layer(network: nn.Module, target: str) -> bool:
    return any(name == target or name.endswith(f".{target}") for name, _ in network.named_modules())
