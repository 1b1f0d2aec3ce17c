"""What every loader of a model checks: that a saved model is whole, finite, and no larger than its file.

diffusers and transformers only warn of a tensor that is missing, and sample it at random.
"""

from __future__ import annotations

import inspect
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from itertools import chain
from numbers import Real
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import ModelMixin
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open


_WEIGHTS = r"(model|diffusion_pytorch_model){variant}(-\d+-of-\d+)?\.safetensors"

Shapes = Mapping[str, tuple[int, ...]]


class CheckedLoading:
    """For models of diffusers and of transformers: `from_pretrained` raises a `ValueError` that names file and tensor
    where either would warn, or go on in silence.

    Of a folder, the sizes in its config are compared with the headers of its weights before anything is allocated.

    Attributes:
        _sizes: For numbers of the config, by their (dotted) names: a tensor and which of its dimensions is as long.
        _counts: For numbers of the config: a pattern whose group is a different number in the tensors of each layer.
        _positive: Numbers of the config, or lists of them, that must be 1 or more, which the weights do not show.
    """

    _sizes: ClassVar[Mapping[str, tuple[str, int]]] = {}
    _counts: ClassVar[Mapping[str, str]] = {}
    _positive: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load as any model of its library, and check what was loaded.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`): A folder or a Hub id.
            args, kwargs: As the library's `from_pretrained` takes them. With `ignore_mismatched_sizes=True` tensors of
                other shapes are sampled anew, as there.

        Raises:
            ValueError: if a tensor is missing, unknown, of another shape or not finite, or if a size in the config is
                not that of the weights.
            OSError: as the library raises it.
        """
        name = str(pretrained_model_name_or_path)
        folder = Path(name, kwargs.get("subfolder") or "")
        is_local = folder.is_dir()
        ignore_mismatched = kwargs.pop("ignore_mismatched_sizes", False)
        if is_local:
            name = str(folder)
            if not {"config", "state_dict", "gguf_file"} & set(kwargs):
                cls.check_folder(folder, kwargs.get("variant"), ignore_mismatched)
        with_info = kwargs.pop("output_loading_info", False)
        default_dtype = torch.get_default_dtype()
        # What does not fit is told below, in one line.
        try:
            model, info = super().from_pretrained(  # type: ignore[misc]  # of the class that this is mixed into
                pretrained_model_name_or_path,
                *args,
                ignore_mismatched_sizes=ignore_mismatched or is_local,
                output_loading_info=True,
                **kwargs,
            )
        except (AttributeError, IndexError, KeyError, TypeError, ZeroDivisionError, StrictDataclassError) as error:
            # What a field of the wrong type makes the libraries raise depends on the field.
            raise ValueError(f"{name} cannot be loaded, its config may be damaged: {one_line(error)}") from error
        finally:
            torch.set_default_dtype(default_dtype)  # where diffusers fails, it leaves that of the model
        _check_loading_info(name, info, ignore_mismatched)
        if info["mismatched_keys"] and isinstance(model, ModelMixin):
            _sample_anew(model, [entry[0] for entry in info["mismatched_keys"]])
        check_finite(name, chain(model.named_parameters(), model.named_buffers()))
        return (model, info) if with_info else model

    @classmethod
    def check_folder(cls, folder: Path, variant: str | None = None, ignore_mismatched_sizes: bool = False) -> None:
        """Compare the config of a saved model with the headers of its weights.

        With `ignore_mismatched_sizes` the config may make tensors of other shapes, but none beyond all measure.

        Raises:
            ValueError: naming the file, and the field or the tensor.
        """
        config_path = folder / "config.json"
        config = read_json_object(config_path)
        parts = _index(folder)
        weights = _weights(folder, variant)
        if not weights:
            return
        shapes = _shapes(weights)
        for key, part in parts.items():
            if folder / part in weights and key not in shapes:
                raise ValueError(f"{folder / part}: {key!r} is missing from the weights.")
        sizes = cls.sizes(shapes)
        length = sum(path.stat().st_size for path in weights)
        given = dict(_numbers(config))
        for field, value in given.items():
            if value > max(length, 2**20):  # below it stand token ids too
                raise ValueError(f"{config_path}: `{field}` is {value}, but the weights have {length} bytes.")
        for field, size in sizes.items():
            value = given.get(field, size)
            if value != size and not ignore_mismatched_sizes:
                raise ValueError(f"{config_path}: `{field}` is {value}, but that of the weights is {size}.")
        for field in cls._positive:
            value = config.get(field, 1)
            if not all(type(each) is int and each >= 1 for each in (value if isinstance(value, list) else [value])):
                raise ValueError(f"{config_path}: `{field}` must be 1 or more, got {value!r}.")
        for field, parameter in inspect.signature(cls.__init__).parameters.items():
            value = config.get(field, parameter.default)
            if parameter.annotation in (int, float) and not (isinstance(value, Real) and math.isfinite(value)):
                raise ValueError(f"{config_path}: `{field}` must be a finite number, got {value!r}.")

    @classmethod
    def sizes(cls, shapes: Shapes) -> dict[str, int]:
        """What the shapes of the weights say about numbers of the config."""
        sizes = {
            field: shapes[tensor][dimension]
            for field, (tensor, dimension) in cls._sizes.items()
            if len(shapes.get(tensor, ())) > dimension
        }
        for field, pattern in cls._counts.items():
            sizes[field] = len({match.group(1) for match in (re.match(pattern, key) for key in shapes) if match})
        return sizes


def one_line(error: Exception) -> str:
    """What an error says, in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def read_json_object(path: Path) -> dict[str, Any]:
    """What a JSON file holds, if it is an object.

    Raises:
        ValueError: if it is anything else.
        OSError: if it cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, not a {type(content).__name__}.")
    return content


def check_finite(name: str, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Refuse NaN and infinity in weights. Tensors without values (on `meta`) and quantized ones are passed over.

    Raises:
        ValueError: naming the model and the tensor.
    """
    for key, tensor in tensors:
        has_values = tensor.is_floating_point() and tensor.dtype.itemsize > 1 and not tensor.is_meta
        if has_values and not tensor.isfinite().all():
            raise ValueError(f"{name}: {key!r} holds NaN or infinity; the weights are damaged.")


def _check_loading_info(name: str, info: Mapping[str, Any], ignore_mismatched: bool) -> None:
    mismatched = {entry[0]: entry for entry in info["mismatched_keys"]}
    if mismatched and not ignore_mismatched:
        key, saved, expected = mismatched[min(mismatched)]
        raise ValueError(
            f"{name}: {key!r} has the shape {list(saved)}, but the config makes it {list(expected)}"
            f"{_and_others(len(mismatched))}."
        )
    for kind, keys in (("missing from", info["missing_keys"]), ("unknown to the model in", info["unexpected_keys"])):
        keys = sorted(set(keys) - set(mismatched))
        if keys:
            raise ValueError(f"{name}: {keys[0]!r} is {kind} the weights{_and_others(len(keys))}.")


def _sample_anew(model: ModelMixin, keys: Iterable[str]) -> None:
    """Sample weights of a model of diffusers, which leaves those of other shapes as the memory was, or on `meta`."""
    own, fresh = model.state_dict(), type(model).from_config(model.config).state_dict()
    device = next((tensor.device for tensor in own.values() if not tensor.is_meta), None)
    model.load_state_dict({key: fresh[key].to(device, own[key].dtype) for key in keys}, strict=False, assign=True)


def _and_others(number: int) -> str:
    return "" if number == 1 else f", as are {number - 1} others"


def _index(folder: Path) -> dict[str, str]:
    """The file of each tensor, as the index of sharded weights says."""
    parts: dict[str, str] = {}
    for index in folder.glob("*.index*.json"):
        weight_map = read_json_object(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise ValueError(f"{index}: `weight_map` must be a JSON object.")
        for part in weight_map.values():
            if not isinstance(part, str) or part != os.path.basename(part) or part in ("", ".", ".."):
                raise ValueError(f"{index} names {part!r}, which is no file of its folder.")
        parts |= weight_map
    return parts


def _weights(folder: Path, variant: str | None) -> list[Path]:
    """The safetensors files that hold a model: one, or its shards. Empty where that is not clear."""
    for infix in dict.fromkeys(("" if variant is None else rf"\.{re.escape(variant)}", "")):
        pattern = re.compile(_WEIGHTS.format(variant=infix))
        found = sorted(path for path in folder.iterdir() if pattern.fullmatch(path.name))
        if found:
            is_clear = len(found) == 1 or all("-of-" in path.name for path in found)
            return found if is_clear else []
    return []


def _shapes(weights: list[Path]) -> Shapes:
    """The shapes in the headers of safetensors files, by the tensors' names."""
    shapes = {}
    for path in weights:
        try:
            with safe_open(path, framework="pt") as file:
                shapes.update({key: tuple(file.get_slice(key).get_shape()) for key in file.keys()})  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is cut short or damaged: {error}") from error
    return shapes


def _numbers(config: Any, name: str = "") -> Iterable[tuple[str, int]]:
    """All whole numbers in a config, under dotted names; entries of lists under their index, and how many they are."""
    entries = config.items() if isinstance(config, dict) else enumerate(config) if isinstance(config, list) else ()
    if isinstance(config, list):
        yield f"len({name})", len(config)
    for key, value in entries:
        path = f"{name}.{key}" if name else str(key)
        if isinstance(value, int) and not isinstance(value, bool):
            yield path, value
        else:
            yield from _numbers(value, path)
