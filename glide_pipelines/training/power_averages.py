"""Averages of the weights whose width is chosen after training (Karras et al. 2024, arXiv 2312.02696, section 3)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import safe_open, save_file

from ..files import atomic_file
from .averages import Average
from .sharding import gather


logger = logging.getLogger(__name__)
# The widths that are tracked, of which all others are made (section 3.2).
SIGMA_RELS = (0.05, 0.10)


def power(sigma_rel: float) -> Callable[[int], float]:
    """beta of an average of the weights of steps tau = 1..t in proportion to tau^gamma (equation 4), for [`Average`].

    Args:
        sigma_rel (`float`): The width, see [`exponent`].
    """
    gamma = exponent(sigma_rel)
    return lambda number: (1 - 1 / number) ** (gamma + 1)


def power_tensors(averages: Mapping[float, Average]) -> dict[str, torch.Tensor]:
    """The tensors of averages by width, as a file names them."""
    return {
        f"{sigma_rel}/{name}": tensor
        for sigma_rel, average in averages.items()
        for name, tensor in average.tensors().items()
    }


def save_snapshot(folder: Path, step: int, averages: Mapping[float, Average], write: bool = True) -> None:
    """Write `<folder>/step-<step>.safetensors`, of which [`reconstruct`] makes other averages. Every process must call
    it, and one of them writes.

    Args:
        folder (`Path`): Is made if missing.
        step (`int`): Steps of the run so far.
        averages (`Mapping[float, Average]`): Of the widths `SIGMA_RELS`.
        write (`bool`, defaults to `True`): Whether this process writes.
    """
    tensors = gather(power_tensors(averages), keep=write)
    if write:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(folder / f"step-{step:08}.safetensors") as temporary:
            save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, temporary)


def remove_snapshots_after(folder: Path, step: int, is_resumed: bool) -> None:
    """Delete the snapshots of later steps, if the run goes on from `step`: it is the one that made them, and will make
    them again.

    Raises:
        ValueError: if it is a new run: those of another one may be all that is left of it.
    """
    later = [path for number, path in _snapshots(folder).items() if number > step]
    if later and not is_resumed:
        raise ValueError(
            f"`output_dir` holds snapshots of another run in {folder}: go on with `--resume_from_checkpoint latest`, "
            "move these away, or take another folder."
        )
    if later:
        logger.warning(f"{len(later)} snapshots after step {step} in {folder} have no checkpoint, and are deleted.")
    for path in later:
        path.unlink()


def _snapshots(folder: str | Path) -> dict[int, Path]:
    """The files of a folder by step, the earliest first."""
    paths = [path for path in Path(folder).glob("step-*.safetensors") if path.stem.removeprefix("step-").isdecimal()]
    return dict(sorted((int(path.stem.removeprefix("step-")), path) for path in paths))


def exponent(sigma_rel: float) -> float:
    """gamma of the average whose standard deviation is `sigma_rel` times the length of the run: the positive root of
    sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)) (equation 3).

    Raises:
        ValueError: unless `sigma_rel` lies between 0 and 0.288, that of the plain mean.
    """
    if not 0 < sigma_rel < 12**-0.5:
        raise ValueError(f"`ema_sigma_rel` must lie between 0 and {12**-0.5:.3f}, got {sigma_rel}.")
    inverse = sigma_rel**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def reconstruct(folder: str | Path, sigma_rel: float, step: int | None = None) -> dict[str, torch.Tensor]:
    """The average of another width, as the combination of snapshots that is nearest to it in least squares.

    Args:
        folder (`str` or `Path`): Holds the snapshots of a run, see [`save_snapshot`].
        sigma_rel (`float`): The width: the standard deviation of the steps that are averaged, relative to their number.
        step (`int`, *optional*): The step at which the average ends; by default that of the last snapshot.

    Returns:
        `dict[str, torch.Tensor]`: The weights by name, in float32.

    Raises:
        ValueError: if the width is out of its range, or there is no snapshot, of `step` at least.
    """
    gamma = exponent(sigma_rel)
    steps = {number: path for number, path in _snapshots(folder).items() if step is None or number <= step}
    if not steps:
        raise ValueError(f"`ema_sigma_rel` needs snapshots of the averages, and there is none in {folder}.")
    if step is not None and step not in steps:
        raise ValueError(f"`ema_sigma_rel`: {folder} has no snapshot of step {step}; the last one is of {max(steps)}.")
    ends = np.repeat(np.array(list(steps), dtype=np.float64), len(SIGMA_RELS))
    exponents = np.tile([exponent(own) for own in SIGMA_RELS], len(steps))
    end = float(step or max(steps))
    products = _inner_product(ends[:, None], exponents[:, None], ends, exponents)
    weights = np.linalg.lstsq(products, _inner_product(ends, exponents, end, gamma), rcond=None)[0]
    result: dict[str, torch.Tensor] = {}
    for path, own in zip(steps.values(), weights.reshape(-1, len(SIGMA_RELS)), strict=True):
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118  # no mapping
                width, _, name = key.partition("/")
                part = own[SIGMA_RELS.index(float(width))] * file.get_tensor(key).double()
                result[name] = result[name] + part if name in result else part
    return {name: weight.float() for name, weight in result.items()}


def _inner_product(
    end: np.ndarray | float, gamma: np.ndarray | float, other_end: np.ndarray | float, other_gamma: np.ndarray | float
) -> np.ndarray:
    """The integral of the product of two densities (gamma + 1) tau^gamma / end^(gamma + 1) on [0, end]."""
    shorter = np.minimum(end, other_end)
    powers = (shorter / end) ** gamma * (shorter / other_end) ** other_gamma
    return (gamma + 1) * (other_gamma + 1) / (gamma + other_gamma + 1) * powers * shorter / (end * other_end)
