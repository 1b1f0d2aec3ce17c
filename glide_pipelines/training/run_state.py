"""What a checkpoint holds: tensors as safetensors, all else as JSON. Nothing in it is ever unpickled."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from ..files import write_json
from .averages import Average
from .power_averages import power_tensors
from .sharding import gather, scatter


_FORMAT = 1
_MODEL, _OPTIMIZER = "model.safetensors", "optimizer.safetensors"
_MOMENTS = ("exp_avg", "exp_avg_sq", "momentum_buffer")  # of the shape of their parameter
_POWERS = "power_averages.safetensors"
_RANDOM, _STATE = "random_states.json", "state.json"


class RunState:
    """Everything that a run goes on from. The files hold whole tensors, whether the weights are sharded or not.

    Args:
        accelerator (`Accelerator`): Knows the processes and the gradient scaler.
        model (`nn.Module`): The trained module, not wrapped.
        parameters (`dict[str, nn.Parameter]`): What is trained of it, by name; the other parameters are not saved.
        optimizer (`torch.optim.Optimizer`): The optimizer of the parameters, not wrapped.
        averages (`Mapping[float, Average]`): Their moving averages, by decay.
        powers (`Mapping[float, Average]`, *optional*): Their averages by width, of which others are made afterwards.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        averages: Mapping[float, Average],
        powers: Mapping[float, Average] | None = None,
    ) -> None:
        self.accelerator, self.model, self.parameters = accelerator, model, parameters
        self.optimizer, self.averages, self.powers = optimizer, averages, powers or {}

    def _model_tensors(self) -> dict[str, torch.Tensor]:
        left_out = {name for name, _ in self.model.named_parameters()} - self.parameters.keys()
        return {name: tensor for name, tensor in self.model.state_dict().items() if name not in left_out}

    def gather(self) -> dict[str, dict[str, torch.Tensor]]:
        """The tensors of every file, whole; empty but in the main process. Every process must call it."""
        names = self._names_of_parameters
        files = {
            _MODEL: self._model_tensors(),
            **{_average_file(number): average.tensors() for number, average in enumerate(self.averages.values())},
            _OPTIMIZER: {
                f"{names[parameter]}/{key}": value
                for parameter, entries in self.optimizer.state.items()
                for key, value in entries.items()
                if isinstance(value, torch.Tensor)
            },
        }
        if self.powers:
            files[_POWERS] = power_tensors(self.powers)
        return {file: gather(tensors, self.accelerator.is_main_process) for file, tensors in files.items()}

    def save(
        self,
        folder: Path,
        files: Mapping[str, Mapping[str, torch.Tensor]],
        progress: dict[str, Any],
        random_states: list[Any],
    ) -> None:
        """Write everything into an empty folder, from the main process.

        Args:
            files (`Mapping[str, Mapping[str, torch.Tensor]]`): See [`gather`].
            progress (`dict[str, Any]`): The position in the run, as JSON can hold it.
            random_states (`list`): Of every process: see [`random_state`].

        Raises:
            OSError: if it cannot be written.
        """
        names = self._names_of_parameters
        values = {
            f"{names[parameter]}/{key}": value
            for parameter, entries in self.optimizer.state.items()
            for key, value in entries.items()
            if not isinstance(value, torch.Tensor)
        }
        try:
            for name, tensors in files.items():
                _save_tensors(tensors, folder / name)
        except SafetensorError as error:  # which is no OSError, even where the disk is full
            raise OSError(str(error)) from error
        write_json({"processes": random_states}, folder / _RANDOM)
        groups = [
            {key: value for key, value in group.items() if key != "params"} for group in self.optimizer.param_groups
        ]
        scaler = self.accelerator.scaler
        state = {
            "format": _FORMAT,
            "progress": progress,
            "average": {"decays": list(self.averages)},
            "optimizer": {
                "name": type(self.optimizer).__name__,
                "param_groups": groups,
                "values": values,
                "tensors": sorted(files[_OPTIMIZER]),
            },
            "scaler": None if scaler is None else scaler.state_dict(),
            "files": {name: _fingerprint(folder / name) for name in (*files, _RANDOM)},
        }
        write_json(state, folder / _STATE)

    def load(self, folder: Path) -> dict[str, Any]:
        """Take over what a folder holds.

        Returns:
            `dict[str, Any]`: The progress that was saved.

        Raises:
            ValueError: naming file and tensor, if something is missing, unexpected or of another shape.
        """
        state = read_state(folder)
        own = self._model_tensors()
        tensors = {name: scatter(tensor, own[name]) for name, tensor in _load_tensors(folder / _MODEL, own).items()}
        # Not strict, because of the parameters that are left out; the names have been checked.
        self.model.load_state_dict(tensors, strict=False)
        self._load_averages(folder, state["average"].get("decays", [None]))  # an earlier version did not note it
        if bool(self.powers) != (_POWERS in state["files"]):
            has = "has kept no averages for it" if self.powers else "keeps averages for it: pass it again"
            raise ValueError(f"`post_hoc_ema_steps`: the run to resume {has}.")
        if self.powers:
            tensors = _load_tensors(folder / _POWERS, power_tensors(self.powers))
            for sigma_rel, average in self.powers.items():
                average.load({name: tensors[f"{sigma_rel}/{name}"] for name in self.parameters})
        self._load_optimizer(folder / _OPTIMIZER, state["optimizer"])
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        processes = json.loads((folder / _RANDOM).read_text(encoding="utf-8"))["processes"]
        # A process that the run did not have before keeps the random state of its seed.
        if self.accelerator.process_index < len(processes):
            set_random_state(processes[self.accelerator.process_index], self.accelerator.device)
        return dict(state["progress"])

    @property
    def _names_of_parameters(self) -> dict[torch.Tensor, str]:
        return {parameter: name for name, parameter in self.parameters.items()}

    def _load_averages(self, folder: Path, decays: Sequence[float | None]) -> None:
        for own, average in self.averages.items():
            if len(decays) == len(self.averages) == 1:
                number = 0  # which goes on with another decay
            elif own in decays:
                number = decays.index(own)
            else:
                kept = ", ".join("a decay that it did not note" if decay is None else str(decay) for decay in decays)
                raise ValueError(f"`ema_decay`: the run to resume keeps averages of {kept}, and none of {own}.")
            average.load(_load_tensors(folder / _average_file(number), self.parameters))

    def _load_optimizer(self, path: Path, saved: dict[str, Any]) -> None:
        parameters, own_groups = self.parameters, self.optimizer.param_groups
        name, own = saved.get("name", "AdamW"), type(self.optimizer).__name__
        if name != own:
            raise ValueError(f"`optimizer` of the run to resume is {name}, got {own}.")
        tensors = load_file(path)
        _check_names(path, tensors, saved["tensors"])
        numbers = {parameter: number for number, parameter in enumerate(p for g in own_groups for p in g["params"])}
        state: dict[int, dict[str, Any]] = {}
        for full_name, value in {**tensors, **saved["values"]}.items():
            name, _, key = full_name.rpartition("/")
            if name not in parameters:
                raise ValueError(f"{_short(path)} holds {full_name!r}, which this model does not have.")
            if key in _MOMENTS:
                _check_shape(path, full_name, value, parameters[name])
            if isinstance(value, torch.Tensor) and value.shape == parameters[name].shape:
                value = scatter(value, parameters[name])
            state.setdefault(numbers[parameters[name]], {})[key] = value
        if len(saved["param_groups"]) != len(own_groups):
            raise ValueError(
                f"{_short(path)} must have {len(own_groups)} groups of parameters, got {len(saved['param_groups'])}."
            )
        groups, first = [], 0
        for group, values in zip(own_groups, saved["param_groups"], strict=True):
            values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
            groups.append({**values, "params": list(range(first, first + len(group["params"])))})
            first += len(group["params"])
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})


def _average_file(number: int) -> str:
    return "average.safetensors" if number == 0 else f"average-{number + 1}.safetensors"


def read_state(folder: Path) -> dict[str, Any]:
    """The JSON of a checkpoint.

    Raises:
        ValueError: saying what is wrong with the checkpoint.
    """
    path = folder / _STATE
    if not path.is_file():
        if any(folder.glob("*.pkl")):
            raise ValueError(
                f"{folder.name} was written by an earlier version, as pickles, which can run code and are not opened: "
                "let the version that wrote it save its pipeline (resume it with its own step as `--max_train_steps`), "
                "and go on from that with `--pretrained_model_name_or_path` in a new `--output_dir`."
            )
        raise ValueError(f"{folder.name} is no whole checkpoint: it lacks {_STATE}.")
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        version = state["format"]
        complete = isinstance(state["progress"]["step"], int) and {"average", "optimizer", "scaler", "files"} <= set(
            state
        )
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise ValueError(f"{_short(path)} is damaged: {error!r}") from error
    if version != _FORMAT or not complete:
        raise ValueError(f"{_short(path)} must be of format {_FORMAT} and whole, got format {version!r}.")
    return dict(state)


def check_files(folder: Path, contents: bool = True) -> None:
    """Compare a checkpoint's files, or their sizes alone, with what was written.

    Raises:
        ValueError: naming the file that is damaged.
    """
    for name, written in read_state(folder)["files"].items():
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{folder.name} is damaged: it lacks {name}.")
        if path.stat().st_size != written["bytes"]:
            raise ValueError(f"{_short(path)} is damaged: it has {path.stat().st_size} bytes of {written['bytes']}.")
        if contents and _fingerprint(path) != written:
            raise ValueError(f"{_short(path)} is damaged: its SHA-256 is not the one that was written.")


def random_state(device: torch.device) -> dict[str, Any]:
    """The random state of this process, as JSON can hold it."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    state = {
        "python": random.getstate(),
        "numpy": [name, np.asarray(keys).tolist(), position, has_gauss, gauss],
        "torch": torch.get_rng_state().numpy().tobytes().hex(),
    }
    if device.type != "cpu":
        state[device.type] = torch.get_device_module(device).get_rng_state().cpu().numpy().tobytes().hex()
    return state


def set_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Take over a random state. That of another kind of device is left out."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(_tensor(state["torch"]))
    if device.type != "cpu" and device.type in state:
        torch.get_device_module(device).set_rng_state(_tensor(state[device.type]))


def _tensor(digits: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(digits), dtype=torch.uint8)


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _save_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    written: dict[str, torch.Tensor] = {}
    places = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        if tensor.data_ptr() in places:  # tied: safetensors takes no tensor twice
            tensor = tensor.clone()
        places.add(tensor.data_ptr())
        written[name] = tensor
    save_file(written, path)


def _load_tensors(path: Path, expected: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    tensors = load_file(path)
    _check_names(path, tensors, expected)
    for name, tensor in tensors.items():
        _check_shape(path, name, tensor, expected[name])
    return tensors


def _check_names(path: Path, tensors: Mapping[str, torch.Tensor], expected: Iterable[str]) -> None:
    names = set(expected)
    for problem, wrong in (("lacks", names - tensors.keys()), ("holds an unexpected", tensors.keys() - names)):
        if wrong:
            more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            raise ValueError(f"{_short(path)} {problem} {min(wrong)!r}{more}: it is of another model or damaged.")


def _check_shape(path: Path, name: str, tensor: torch.Tensor, expected: torch.Tensor) -> None:
    if tensor.shape != expected.shape:
        raise ValueError(
            f"{_short(path)}: {name!r} must have the shape {list(expected.shape)}, got {list(tensor.shape)}."
        )


def _short(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"
