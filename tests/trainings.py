"""What tests of training share: the trainings of the command line, and a run of tiny models."""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from scripts import ROOT
from tiny import tiny_text_encoder, tiny_tokenizer, tiny_unet

from glide_cli import Parser
from glide_cli.train import TRAININGS, check_arguments
from glide_pipelines import GLIDEDDPMScheduler
from glide_pipelines.sampling import Stage
from glide_pipelines.shapes import ShapesSource
from glide_pipelines.training import (
    LearningRate,
    TextToImageDataset,
    TimestepWeighting,
    TrainingConfig,
    text_to_image_loss,
    train,
)


# Sizes of a model, as `--model_config` has them.
SMALL = {
    "text_encoder": {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 24,
    },
    "unet": {
        "sample_size": 8,
        "block_out_channels": [8, 16],
        "attention_levels": [1],
        "layers_per_block": 1,
        "attention_head_dim": 8,
        "norm_num_groups": 4,
        "dropout": 0.0,
    },
    "scheduler": {"beta_schedule": "squaredcos_cap_v2"},
}


# -- the command line: mistakes are raised ----------------------------------------------------------------------------


def parse(training: str, argv: Sequence[str]) -> argparse.Namespace:
    """The options of one of `TRAININGS`."""
    parser = Parser()
    TRAININGS[training].add_options(parser)
    return parser.parse_args(argv)


def run_training(training: str, argv: Sequence[str]) -> None:
    """Run one of `TRAININGS` in this process."""
    args = parse(training, argv)
    check_arguments(args)
    TRAININGS[training].run(args)


def launch(processes, arguments, path=ROOT / "examples" / "train_text_to_image.py", config=None):
    """Run a script in several processes: by torchrun, or by `accelerate launch` with a config."""
    with socket.socket() as free:  # another run of the tests may be under way on this machine
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    if config is None:
        launcher = ["torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", port]
    else:
        launcher = ["accelerate.commands.launch", "--config_file", str(config)]
        launcher += ["--num_processes", str(processes), "--main_process_port", port]
    command = [sys.executable, "-m", *launcher, str(path), *arguments]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)


# -- a run of tiny models ---------------------------------------------------------------------------------------------


def make_config(output_dir, **changes):
    steps = changes.get("max_train_steps", 4)
    arguments = {
        "output_dir": str(output_dir),
        "seed": 0,
        "max_train_steps": steps,
        "train_batch_size": 2,
        "gradient_accumulation_steps": 1,
        # No decay: runs that are to go on later end early.
        "learning_rate": LearningRate(1e-3, steps, 1),
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_weight_decay": 0.01,
        "adam_epsilon": 1e-8,
        "max_grad_norm": 1.0,
        "ema_decay": 0.9,
        "checkpointing_steps": None,
        "checkpointing_minutes": None,
        "checkpoints_total_limit": None,
        "resume_from_checkpoint": None,
        "logging_steps": 2,
        "dataloader_num_workers": 0,
    }
    return TrainingConfig(**(arguments | changes))


def run(config, mixed_precision="no", compute_loss=None, dropout=0.2, dataset=None, on_checkpoint=None):
    """One training run in this process; returns the model and the number of steps done."""
    scheduler = GLIDEDDPMScheduler(beta_schedule="squaredcos_cap_v2")
    weighting = TimestepWeighting(1000, "later", 1.5, 0.5)
    dataset = dataset or TextToImageDataset(ShapesSource(8, 0), tiny_tokenizer(), weighting, config.seed)
    accelerator = Accelerator(
        cpu=True,
        mixed_precision=mixed_precision,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
    )
    model = Stage("base", tiny_text_encoder(0), tiny_unet(seed=1, dropout=dropout))
    torch.seed()  # the random state before a run has no effect
    compute_loss = compute_loss or text_to_image_loss(scheduler, weighting)
    return model, train(accelerator, config, model, dataset, compute_loss, 1000, on_checkpoint)


def read_checkpoint(path):
    state = json.loads((path / "state.json").read_text())
    return {
        **{name: load_file(path / f"{name}.safetensors") for name in ("optimizer", "average", "model")},
        "progress": state["progress"],
        "groups": state["optimizer"]["param_groups"],
        "random": json.loads((path / "random_states.json").read_text()),
    }


def assert_equal(one, other):
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_equal(left, right)
    else:
        assert one == other


def read_log(folder):
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=pytest.fail) for line in lines]  # NaN and Infinity are no JSON
