"""Weights that are sharded over the processes: FSDP2 of torch, as accelerate sets it up (arXiv 2304.11277)."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import DynamoBackend
from torch import nn
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, distribute_tensor

from .optimizers import optimizer_class


# Their steps treat each value by itself, and torch can take them on shards (torch 2.13).
_OPTIMIZERS = ("Adadelta", "Adam", "Adamax", "AdamW", "ASGD", "NAdam", "RAdam", "RMSprop")


def check_sharding(accelerator: Accelerator, model: nn.Module, optimizer: str) -> None:
    """Refuse what does not work with FSDP, where accelerate is configured for it: of its settings, of the model, and of
    the optimizer, given by its name.

    Raises:
        ValueError: naming the setting, or the parameter.
    """
    if accelerator.distributed_type != DistributedType.FSDP:
        if os.environ.get("ACCELERATE_USE_FSDP") == "true":
            raise ValueError(
                "accelerate is configured for FSDP, which shards the weights over GPUs, and it leaves that out in "
                f"silence on {accelerator.distributed_type.value}: start on GPUs, or without FSDP."
            )
        return
    plugin = accelerator.state.fsdp_plugin
    if plugin.fsdp_version != 2:
        raise ValueError(f"accelerate's `fsdp_version` must be 2, got {plugin.fsdp_version}.")
    refused = {
        "fsdp_offload_params": isinstance(plugin.cpu_offload, CPUOffloadPolicy),
        "fsdp_activation_checkpointing": plugin.activation_checkpointing,  # --gradient_checkpointing does it
        "fsdp_cpu_ram_efficient_loading": plugin.cpu_ram_efficient_loading,
        "fsdp_ignored_modules": plugin.ignored_modules,
        "dynamo_config": accelerator.state.dynamo_plugin.backend != DynamoBackend.NO,
        "parallelism_config": accelerator.parallelism_config is not None,
    }
    for name, given in refused.items():
        if given:
            raise ValueError(f"accelerate's `{name}` must be off where FSDP shards the weights.")
    precision = accelerator.mixed_precision
    if precision not in ("no", "bf16"):
        raise ValueError(f"`mixed_precision` must be no or bf16 where FSDP shards the weights, got {precision}.")
    missing = set(plugin.transformer_cls_names_to_wrap or ()) - {type(module).__name__ for module in model.modules()}
    if missing:
        names = ", ".join(sorted(missing))
        raise ValueError(f"accelerate's `fsdp_transformer_layer_cls_to_wrap` names {names}, not part of this model.")
    for name, parameter in model.named_parameters():
        if parameter.ndim == 0:
            raise ValueError(f"FSDP cannot shard `{name}`, a single number: train this model with `--multi_gpu`.")
    if optimizer_class(optimizer).__name__ not in _OPTIMIZERS:
        allowed = ", ".join(name.lower() for name in _OPTIMIZERS)
        raise ValueError(f"`optimizer` must be one of {allowed} where FSDP shards the weights, got {optimizer!r}.")


def sharded_copy(accelerator: Accelerator, model: nn.Module) -> nn.Module:
    """A copy of a model in float32, to be sharded when accelerate, set up for FSDP2, prepares it with its optimizer."""
    if accelerator.mixed_precision == "bf16":
        # Autocast decides what is computed in bfloat16, as it does without sharding; the gradients of the processes are
        # added in float32. (By default accelerate takes bfloat16 for everything.)
        accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
    sharded = copy.deepcopy(model)
    for parameter in sharded.parameters():
        parameter.data = parameter.data.contiguous()  # FSDP takes no other layout
    return accelerator.prepare_model(sharded, evaluation_mode=True)  # adds autocast, which FSDP2 leaves out


def local(tensor: torch.Tensor) -> torch.Tensor:
    """What this process holds of a tensor, in the same memory: all of it, unless it is sharded."""
    if not isinstance(tensor, DTensor):
        return tensor
    part = tensor.to_local().detach()
    return nn.Parameter(part, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else part


def from_local(part: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The tensor of which [`local`] gives `part`, sharded as `like` is."""
    if not isinstance(like, DTensor):
        return part
    return DTensor.from_local(part, like.device_mesh, like.placements, shape=like.shape, stride=like.stride())


def scatter(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A tensor that every process holds whole, sharded as `like` is."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None).clone()


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor that may be sharded. Every process must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather(tensors: Mapping[str, torch.Tensor], keep: bool = True) -> dict[str, torch.Tensor]:
    """Tensors as they are, or, of sharded ones, all of them, on the CPU. Every process must call it; one that does not
    `keep` them gives its parts only."""
    gathered = {}
    for name, tensor in tensors.items():
        complete = full_tensor(tensor)
        if keep:
            gathered[name] = complete.cpu() if isinstance(tensor, DTensor) else complete
    return gathered
