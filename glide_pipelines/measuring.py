"""What a benchmark measures with: clocks, counted operations, memory, and the rate of the machine."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count


def make_clock(device: torch.device, cpu_time: bool = False) -> Callable[[], float]:
    """A clock of elapsed time, which waits for the device, or of the processor's time."""

    def clock() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.process_time() if cpu_time else time.perf_counter()

    return clock


def seconds_of(clock: Callable[[], float], work: Callable[..., Any], *args: Any) -> float:
    """What a piece of work takes by a clock."""
    start = clock()
    work(*args)
    return clock() - start


def flop_counter() -> FlopCounterMode:
    """torch's counter of operations, extended to the attention kernel of CPUs, which it passes over."""

    def attention(query: Sequence[int], key: Sequence[int], value: Sequence[int], *args: Any, **kwargs: Any) -> int:
        return sdpa_flop_count(query, key, value)

    on_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return FlopCounterMode(display=False, custom_mapping={on_cpu: attention})


def matmul_rate(device: torch.device, dtype: torch.dtype, clock: Callable[[], float]) -> float:
    """The machine's rate at a large matrix product, in operations per second; the best of half a second."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    times: list[float] = []
    while len(times) < 2 or sum(times) < 0.5:
        start = clock()
        a @ b
        times.append(clock() - start)
    return 2 * size**3 / min(times)


def machine(device: torch.device) -> dict[str, str]:
    """The names of the device and of the version of torch."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {"device": name, "torch": torch.__version__}


def _processor() -> str:
    return f"CPU ({platform.machine()}, {torch.backends.cpu.get_cpu_capability()}), threads: {torch.get_num_threads()}"


def peak_memory(device: torch.device) -> int | None:
    """The most bytes in use: on the device, or on a CPU by the process. None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # on Windows
        return None
    # Kilobytes on Linux, bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
