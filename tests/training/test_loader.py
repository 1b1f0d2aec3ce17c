"""Which process takes which examples, and workers that outlive a signal to stop."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from glide_pipelines.training.loader import make_loader


ROOT = Path(__file__).parents[2]


def numbers(first, steps, batch, accumulation, rank, world):
    return list(make_loader(None, first, steps, batch, accumulation, rank, world, 0).batch_sampler)


def test_processes_share_out_the_examples_of_one():
    whole = [numbers(first=40, steps=3, batch=8, accumulation=1, rank=0, world=1)]
    shared = [numbers(first=40, steps=3, batch=2, accumulation=2, rank=rank, world=2) for rank in range(2)]
    for step in range(3):
        micro_batches = shared[0][2 * step : 2 * step + 2] + shared[1][2 * step : 2 * step + 2]
        assert (
            [number for batch in micro_batches for number in batch]
            == whole[0][step]
            == list(range(40 + 8 * step, 48 + 8 * step))
        )


GROUP_IS_STOPPED = """
import os, signal, sys, time
import torch
from glide_pipelines.training.loader import make_loader
from glide_pipelines.training.trainer import _stop_signal

class Slow(torch.utils.data.Dataset):
    def __getitem__(self, index):
        time.sleep(0.05)
        return index

if __name__ == "__main__":
    torch.multiprocessing.set_start_method("spawn")  # a forked worker would handle Ctrl-C as its parent does
    with _stop_signal() as stop:
        for number, batch in enumerate(make_loader(Slow(), 0, 30, 1, 1, 0, 1, num_workers=1)):
            if number == 2:
                os.killpg(0, getattr(signal, sys.argv[1]))
    print(number, stop.is_set)
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_workers_outlive_what_stops_the_run(name, tmp_path):
    """Ctrl-C and `timeout` reach them too; the trainer still needs them until it has saved its checkpoint."""
    script = tmp_path / "script.py"
    script.write_text(GROUP_IS_STOPPED)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(script), name]
    result = subprocess.run(
        command, env=environment, start_new_session=True, capture_output=True, text=True, timeout=300
    )
    assert result.stdout == "29 True\n", result.stderr
