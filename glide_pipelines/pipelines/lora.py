"""LoRA adapters of a pipeline: those of diffusers, and those that PEFT saved for one network."""

from __future__ import annotations

import os
from typing import Any

import torch
from diffusers.loaders import StableDiffusionLoraLoaderMixin


# What PEFT puts before the names of the weights that it saves.
_PEFT_PREFIX = "base_model.model."
_DORA_MAGNITUDE = ".lora_magnitude_vector"
_HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision")


class _UpsamplerLoraLoader(StableDiffusionLoraLoaderMixin):
    """Loads and saves adapters under the names of the upsampler's networks."""

    unet_name = "super_res_unet"
    text_encoder_name = "super_res_text_encoder"


# What loads and saves the adapters of a stage.
STAGE_LOADERS = {"base": StableDiffusionLoraLoaderMixin, "super_res": _UpsamplerLoraLoader}


class GLIDELoraLoaderMixin(StableDiffusionLoraLoaderMixin):
    """`load_lora_weights` and its relatives, as in diffusers; adapters of a single network are loaded too."""

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | os.PathLike | dict[str, torch.Tensor],
        adapter_name: str | None = None,
        hotswap: bool = False,
        **kwargs: Any,
    ) -> None:
        """Load LoRA weights into the UNets and the text encoders that they are named for.

        Args:
            pretrained_model_name_or_path_or_dict (`str`, `os.PathLike` or `dict`): A folder, a file, a Hub id or a
                state dict, in the format of diffusers. Or an adapter of one network, as PEFT's `save_pretrained` and
                diffusers' `save_lora_adapter` save it: it goes to the network that has the layers it names.
            adapter_name (`str`, *optional*): A name for `set_adapters`; by default a number is counted up.
            hotswap (`bool`, defaults to `False`): Whether to replace the loaded adapter of that name in place.
            kwargs: As diffusers takes them, such as `weight_name` and `subfolder`.

        Raises:
            ValueError: if no layer of this pipeline is named, or layers have other sizes than those that were adapted.
        """
        source, options = pretrained_model_name_or_path_or_dict, dict(kwargs)
        low_cpu_mem_usage = options.pop("low_cpu_mem_usage", False)
        given = dict(source) if isinstance(source, dict) else source
        state_dict, network_alphas, metadata = self.lora_state_dict(given, **options, return_lora_metadata=True)
        named = {name.partition(".")[0] for name in state_dict}
        components = [name for name in self._lora_loadable_modules if name in named]
        if not components:
            state_dict = {name.removeprefix(_PEFT_PREFIX): tensor for name, tensor in state_dict.items()}
            component = self._owner_of({name.partition(".lora_")[0] for name in state_dict})
            if component is None:
                described = "the state dict" if isinstance(source, dict) else f"{str(source)!r}"
                raise ValueError(
                    f"No LoRA for {type(self).__name__} in {described}: its names are those of layers in "
                    f"{' or '.join(f'`{name}`' for name in self._lora_loadable_modules)}, with that prefix or without; "
                    f"got {next(iter(state_dict), None)!r}."
                )
            if metadata is None and not isinstance(source, dict):
                metadata = _peft_config(source, options)
            state_dict = {f"{component}.{name}": tensor for name, tensor in state_dict.items()}
            metadata = None if metadata is None else {f"{component}.{name}": value for name, value in metadata.items()}
            components = [component]
        # transformers finds the lengths of a DoRA only under the full name, and would sample them anew in silence.
        state_dict = {f"{name}.weight" if name.endswith(_DORA_MAGNITUDE) else name: w for name, w in state_dict.items()}
        for component in components:
            network = getattr(self, component, None)
            if network is None:
                raise ValueError(f"The LoRA is for `{component}`, which this {type(self).__name__} does not have.")
            _check_sizes(component, network, state_dict)
            loader = STAGE_LOADERS["super_res" if component.startswith("super_res_") else "base"]
            load, argument = (
                (loader.load_lora_into_unet, "unet")
                if component == loader.unet_name
                else (loader.load_lora_into_text_encoder, "text_encoder")
            )
            load(
                state_dict,
                network_alphas=network_alphas,
                metadata=metadata,
                adapter_name=adapter_name,
                hotswap=hotswap,
                low_cpu_mem_usage=low_cpu_mem_usage,
                _pipeline=self,
                **{argument: network},
            )

    def _owner_of(self, layers: set[str]) -> str | None:
        """The component that has all of these layers."""
        for name in self._lora_loadable_modules:
            component = getattr(self, name, None)
            if component is not None and layers and layers <= {layer for layer, _ in component.named_modules()}:
                return name
        return None

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Save as any pipeline of diffusers.

        Args:
            save_directory (`str` or `os.PathLike`): The folder.
            args, kwargs: As `DiffusionPipeline.save_pretrained` takes them.

        Raises:
            ValueError: if a network holds LoRA adapters, without which its own weights would not be found again.
        """
        for name, component in self.components.items():
            if isinstance(component, torch.nn.Module) and any(
                layer.endswith(".base_layer") for layer, _ in component.named_modules()
            ):
                raise ValueError(
                    f"`{name}` holds LoRA adapters, and a folder cannot: call `unload_lora_weights()` before, after "
                    "`fuse_lora()` to keep their effect; `save_lora_weights` saves the adapters themselves."
                )
        super().save_pretrained(save_directory, *args, **kwargs)


def _check_sizes(component: str, network: torch.nn.Module, state_dict: dict[str, torch.Tensor]) -> None:
    """The adapters must be as wide as the layers; of each one that is not, diffusers would write a line."""
    layers = dict(network.named_modules())
    for name, adapter in state_dict.items():
        layer, _, matrix = name.removeprefix(f"{component}.").partition(".lora_")
        axis = {"A.weight": 1, "B.weight": 0}.get(matrix)
        weight = getattr(layers.get(layer), "weight", None)
        if name.startswith(f"{component}.") and axis is not None and weight is not None:
            expected, given = weight.shape[axis], adapter.shape[axis]
            if given != expected:
                raise ValueError(
                    f"The LoRA is of another model: it adapts {given} channels of `{component}`'s {layer}, "
                    f"which has {expected}."
                )


def _peft_config(source: str | os.PathLike, options: dict[str, Any]) -> dict[str, Any] | None:
    """The settings that PEFT saved beside an adapter; None where there are none."""
    from peft import PeftConfig

    folder = os.path.dirname(source) if os.path.isfile(source) else source
    hub_options = {name: options[name] for name in _HUB_OPTIONS if options.get(name) is not None}
    try:
        return PeftConfig.from_pretrained(folder, subfolder=options.get("subfolder"), **hub_options).to_dict()
    except ValueError:  # no adapter_config.json
        return None
