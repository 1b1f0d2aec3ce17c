"""The loader of a run: which process takes which examples, and workers that outlive a signal to stop."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, default_collate


def _micro_batches(
    first: int, steps: int, batch_size: int, accumulation: int, rank: int, world: int
) -> Iterator[list[int]]:
    """The numbers of the examples in each micro batch of one process, step after step."""
    for step in range(steps):
        start = first + (step * world + rank) * accumulation * batch_size
        for begin in range(start, start + accumulation * batch_size, batch_size):
            yield list(range(begin, begin + batch_size))


class _Examples(Dataset[Any]):
    """A dataset whose errors are values: a loader's process would wrap an error in its own traceback."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> Any:
        try:
            return self.dataset[index]
        except ValueError as error:
            return ValueError(str(error))  # of a kind that can be sent to another process

    def collate(self, examples: list[Any]) -> Any:
        for example in examples:
            if isinstance(example, ValueError):
                return example
        batch = default_collate(examples)
        if bad_rows := getattr(self.dataset, "bad_rows", None):
            batch["bad_rows"] = dict(bad_rows)
        return batch


def make_loader(
    dataset: Dataset[Any],
    first: int,
    steps: int,
    batch_size: int,
    accumulation: int,
    rank: int,
    world: int,
    num_workers: int,
) -> DataLoader[Any]:
    """One process's share of `steps` steps that begin at example number `first`.

    A step takes `world * accumulation * batch_size` neighbouring examples, so the number of processes does not change
    what a step is made of.

    Args:
        dataset (`Dataset`): Examples by number, without end.
        first, steps (`int`): Number of the first example, and of the optimizer's steps.
        batch_size, accumulation (`int`): Examples in a micro batch of a process, and its micro batches in a step.
        rank, world (`int`): Which process this is, of how many.
        num_workers (`int`): Worker processes; 0 makes the examples in this one.

    Returns:
        `DataLoader`: one micro batch after the other; in place of one that cannot be made, the `ValueError`. A dataset
        that has skipped rows, its `bad_rows`, has a batch bring them.
    """
    examples = _Examples(dataset)
    return DataLoader(
        examples,
        batch_sampler=_micro_batches(first, steps, batch_size, accumulation, rank, world),
        collate_fn=examples.collate,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        # Its own: a loader takes a number from its generator when it starts, and dropout uses the global one.
        generator=torch.Generator().manual_seed(0),
        worker_init_fn=_ignore_signals,
    )


def _ignore_signals(worker: int) -> None:
    """Ctrl-C and `timeout` reach the whole process group, and a worker that ends would end the run with an error: the
    trainer decides when to stop."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
