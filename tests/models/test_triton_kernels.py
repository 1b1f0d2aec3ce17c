"""Triton's kernels against float64, and that they compile for NVIDIA's cards.

    pip install triton
    TRITON_INTERPRET=1 pytest tests/models/test_triton_kernels.py

On a CPU they run in Triton's interpreter, on a CUDA device as they are.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from glide_pipelines.models.fused import _kernels, add, group_norm


pytest.importorskip("triton", reason="needs triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
runs = pytest.mark.skipif(
    DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1", reason="needs a CUDA device or TRITON_INTERPRET=1"
)
# Images, channels, groups, height, width. Up to 256 pixels are one kernel, more are two. No block divides most sizes.
SHAPES = [
    (2, 48, 8, 5, 7),
    (1, 96, 32, 16, 16),
    (2, 6, 1, 9, 3),
    (3, 24, 24, 33, 40),
    (1, 96, 2, 17, 30),
]
ERRORS = {torch.float32: 2e-6, torch.bfloat16: 5e-3, torch.float16: 1e-3}


def features(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Features whose mean is far from zero, as those of a trained UNet may be."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator) + 10).to(DEVICE, dtype, memory_format=torch.channels_last)


def relative_error(value: torch.Tensor, expected: torch.Tensor) -> float:
    return ((value.double() - expected).norm() / expected.norm()).item()


@runs
@pytest.mark.parametrize("dtype", ERRORS)
@pytest.mark.parametrize("options", ["", "silu", "x_bias scale_shift silu"])
@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_group_norm(shape, options, dtype):
    batch_size, channels, groups, height, width = shape
    assert _kernels(torch.device(DEVICE)) is not None
    x = features(batch_size, channels, height, width, dtype=dtype)
    norm = nn.GroupNorm(groups, channels).to(DEVICE, dtype)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    values = {
        "silu": True,
        "x_bias": torch.randn(channels, device=DEVICE, dtype=dtype),
        # A part of a larger matrix, as the time embedding's projection is.
        "scale_shift": torch.randn(batch_size, 4 * channels, device=DEVICE, dtype=dtype)[:, channels : 3 * channels],
    }
    values = {name: values[name] for name in options.split()}
    exact = x.double()
    if "x_bias" in values:
        exact = exact + values["x_bias"].double()[:, None, None]
    exact = F.group_norm(exact, groups, norm.weight.double(), norm.bias.double(), norm.eps)
    if "scale_shift" in values:
        scale, shift = values["scale_shift"].double()[..., None, None].chunk(2, dim=1)
        exact = exact * (1 + scale) + shift
    if "silu" in values:
        exact = F.silu(exact)
    normed = group_norm(x, norm, **values)
    assert normed.dtype == dtype
    assert normed.is_contiguous(memory_format=torch.channels_last)
    assert relative_error(normed, exact) < ERRORS[dtype]


@runs
@pytest.mark.parametrize("dtype", ERRORS)
@pytest.mark.parametrize("has_bias", [False, True])
def test_add(has_bias, dtype):
    x, other = (features(2, 24, 9, 31, dtype=dtype, seed=seed) for seed in (0, 1))
    bias = torch.randn(24, device=DEVICE, dtype=dtype) if has_bias else None
    exact = x.double() + other.double() + (0 if bias is None else bias.double()[:, None, None])
    assert relative_error(add(x, other, bias), exact) < ERRORS[dtype]


@runs
def test_another_layout_is_taken_too():
    x = features(2, 24, 9, 31, dtype=torch.float32)
    norm = nn.GroupNorm(8, 24).to(DEVICE)
    assert group_norm(x.contiguous(), norm).equal(group_norm(x, norm))
    assert add(x.contiguous(), x, None).equal(add(x, x, None))


COMPILE = """
import itertools, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from glide_pipelines.models import triton_kernels

def compiles(kernel, types, constants, special):
    # Triton compiles numbers of 1 and multiples of 16 anew: `special` is one of them.
    names = kernel.arg_names
    signature = {name: types.get(name, "i32") if name not in constants else "constexpr" for name in names}
    numbers = [name for name in names if signature[name] == "i32"]
    if special == 1:
        constants = constants | dict.fromkeys(numbers, 1)
        signature |= dict.fromkeys(numbers, "constexpr")
    values = {(names.index(name),): value for name, value in constants.items()}
    multiples = {(names.index(name),): [["tt.divisibility", 16]] for name in numbers} if special == 16 else {}
    source = ASTSource(kernel, signature=signature, constexprs=values, attrs=multiples)
    assert triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]

for dtype, special in (("bf16", 16), ("fp32", None), ("fp16", 1)):
    pointers = dict.fromkeys(("x", "y", "other", "weight", "bias", "x_bias", "scale_shift"), f"*{dtype}")
    types = pointers | {"sums": "*fp32", "eps": "fp32"}
    for (sums, applies), has_all in itertools.product([(True, True), (True, False), (False, True)], [False, True]):
        constants = {"SUM": sums, "APPLY": applies, "HAS_X_BIAS": has_all, "HAS_SCALE_SHIFT": has_all, "SILU": has_all}
        sizes = {"ROWS": 32, "WIDTH": 64} if sums and applies else {"ROWS": 64, "WIDTH": 128}
        compiles(triton_kernels._group_norm, types, constants | sizes | {"GROUPS": 32, "PARTS": 128}, special)
    compiles(triton_kernels._add, types, {"HAS_BIAS": True, "BLOCK": 1024}, special)
"""


def test_they_compile_without_a_card():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, "-c", COMPILE], check=True, env=environment, timeout=300)
