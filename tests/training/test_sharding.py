"""FSDP2: weights that are sharded over two processes train as whole ones do, and leave the same files."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import DistributedType
from accelerate.utils import DynamoBackend, FullyShardedDataParallelPlugin
from PIL import Image
from safetensors.torch import load_file
from scripts import ROOT
from tiny import tiny_clip, tiny_pipeline, tiny_text_encoder, tiny_tokenizer, tiny_unet
from trainings import SMALL, launch, make_config, read_log, run_training

from glide_pipelines import GLIDEDDPMScheduler
from glide_pipelines.sampling import Stage
from glide_pipelines.shapes import ShapesSource
from glide_pipelines.training import TextToImageDataset, TimestepWeighting, train_stage
from glide_pipelines.training.sharding import check_sharding


AVERAGES = "averages/step-00000003.safetensors"


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    """Arguments of a tiny run of four images a step."""
    folder = tmp_path_factory.mktemp("sizes")
    sizes = SMALL | {"text_encoder": SMALL["text_encoder"] | {"intermediate_size": 33}}  # two parts that are not equal
    (folder / "sizes.json").write_text(json.dumps(sizes))
    tiny_tokenizer(24).save_pretrained(folder / "tokenizer")

    def make(output_dir, batch_size, *more):
        model = ["--model_config", str(folder / "sizes.json"), "--tokenizer_name", str(folder / "tokenizer")]
        data = ["--dataset_name", "shapes", "--train_batch_size", str(batch_size), "--max_train_steps", "3"]
        # Where the gradient is zero in exact arithmetic, AdamW would blow rounding up to full steps.
        settings = ["--learning_rate", "1e-2", "--adam_epsilon", "1e-3", "--max_grad_norm", "0.5"]
        averages = ["--ema_decay", "0.5", "0.9", "--post_hoc_ema_steps", "3"]
        saving = ["--checkpointing_steps", "2", "--logging_steps", "1", "--output_dir", str(output_dir)]
        return [*model, *data, *settings, *averages, *saving, *more]

    return make


def launch_sharded(arguments, training="text-to-image"):
    """Two processes, by the config that is among the examples."""
    result = launch(2, [training, *arguments], Path(__file__).with_name("sharded.py"), ROOT / "examples" / "fsdp.yaml")
    assert result.returncode == 0, result.stderr
    held = [float(share) for share in re.findall(r"holds (\d\.\d\d)", result.stdout)]
    assert held and all(0.4 < share < 0.6 for share in held)


@pytest.fixture(scope="module")
def whole(arguments, tmp_path_factory):
    """The folder of a run of one process."""
    folder = tmp_path_factory.mktemp("whole")
    run_training("text-to-image", arguments(folder, 4, "--validation_prompts", "a red circle"))
    return folder


def assert_same_tensors(one, other):
    one, other = load_file(one), load_file(other)
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, atol=1e-6, rtol=1e-4)


def assert_same_run(one, other):
    """The same last losses, checkpoint, averages and pipeline."""
    lines = [read_log(folder)[-1] for folder in (one, other)]
    for name in ("loss", "mse", "vb", "grad_norm"):
        assert lines[1][name] == pytest.approx(lines[0][name], rel=1e-4)
    for name in ("model", "average", "average-2", "optimizer", "power_averages"):
        assert_same_tensors(one / f"checkpoint-3/{name}.safetensors", other / f"checkpoint-3/{name}.safetensors")
    assert_same_tensors(one / AVERAGES, other / AVERAGES)
    for network in ("unet/diffusion_pytorch_model", "text_encoder/model"):
        assert_same_tensors(*(folder / f"pipeline/{network}.safetensors" for folder in (one, other)))


def test_sharded_training_equals_that_of_one_process(arguments, whole, tmp_path):
    """Gradients are clipped and accumulated, the model is averaged in both ways, sampled from, and saved. One process
    goes on with the checkpoint of the two."""
    more = ["--gradient_accumulation_steps", "2", "--gradient_checkpointing", "--validation_prompts", "a red circle"]
    launch_sharded(arguments(tmp_path, 1, *more))
    assert_same_run(whole, tmp_path)
    images = [np.asarray(Image.open(folder / "validation/step-000003.png"), int) for folder in (whole, tmp_path)]
    assert images[0].std() > 10 and abs(images[0] - images[1]).max() <= 1
    # What was saved is the average.
    saved = load_file(tmp_path / "pipeline/unet/diffusion_pytorch_model.safetensors")
    average = load_file(tmp_path / "checkpoint-3/average.safetensors")
    assert all(torch.equal(value, average[f"unet.{name}"]) for name, value in saved.items())

    for path in (tmp_path / "checkpoint-3", tmp_path / AVERAGES):
        path.rename(tmp_path / f"{path.name}.moved")
    run_training("text-to-image", arguments(tmp_path, 4, "--resume_from_checkpoint", "latest"))
    assert_same_run(whole, tmp_path)


@pytest.mark.slow
def test_two_processes_go_on_with_what_one_began(arguments, whole, tmp_path):
    shutil.copytree(whole / "checkpoint-2", tmp_path / "checkpoint-2")
    launch_sharded(arguments(tmp_path, 2, "--resume_from_checkpoint", "latest"))
    assert_same_run(whole, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("training", ["inpaint", "distill"])
def test_the_other_trainings_shard_as_well(arguments, tmp_path, training):
    tiny_pipeline().save_pretrained(tmp_path / "source")

    def options(run, batch_size):
        model = ["--pretrained_model_name_or_path", str(tmp_path / "source")]
        return [*model, *arguments(tmp_path / run, batch_size)[4:]]  # in place of the sizes of a new one

    run_training(training, options("whole", 4))
    launch_sharded(options("sharded", 2), training)
    one, other = (tmp_path / run / "checkpoint-3" for run in ("whole", "sharded"))
    for name in ("model", "average", "optimizer", "power_averages"):
        assert_same_tensors(one / f"{name}.safetensors", other / f"{name}.safetensors")


def test_the_config_in_the_docs_is_that_of_the_examples():
    config = (ROOT / "examples" / "fsdp.yaml").read_text()
    settings = "".join(line for line in config.splitlines(True) if not line.lstrip().startswith("#"))
    assert f"```yaml\n{settings}```" in (ROOT / "docs" / "training.md").read_text()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fsdp_version": 1}, "`fsdp_version` must be 2, got 1"),
        ({"cpu_offload": True}, "`fsdp_offload_params` must be off"),
        ({"activation_checkpointing": True}, "`fsdp_activation_checkpointing` must be off"),
        ({"cpu_ram_efficient_loading": True}, "`fsdp_cpu_ram_efficient_loading` must be off"),
        ({"ignored_modules": "0"}, "`fsdp_ignored_modules` must be off"),
        ({"transformer_cls_names_to_wrap": ["Linear", "Block"]}, "_cls_to_wrap` names Block, not part of this model"),
    ],
)
def test_settings_of_fsdp_that_do_not_work_are_named(monkeypatch, settings, message):
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "false")  # the plugin sets it
    plugin = FullyShardedDataParallelPlugin(**{"fsdp_version": 2} | settings)
    with pytest.raises(ValueError, match=message):
        check_sharding(accelerator(plugin), torch.nn.Sequential(torch.nn.Linear(1, 1)), "adamw")


def test_what_cannot_be_sharded_is_named():
    plugin, plain = FullyShardedDataParallelPlugin(fsdp_version=2), torch.nn.Linear(1, 1)
    check_sharding(accelerator(plugin, "bf16"), plain, "adamw")
    for mixed_precision, optimizer, message in (
        ("fp16", "adamw", "`mixed_precision` must be no or bf16 where FSDP shards the weights, got fp16"),
        ("no", "muon", "`optimizer` must be one of adadelta, adam, .* where FSDP shards the weights, got 'muon'"),
    ):
        with pytest.raises(ValueError, match=message):
            check_sharding(accelerator(plugin, mixed_precision), plain, optimizer)
    with pytest.raises(ValueError, match=r"FSDP cannot shard `logit_scale`, a single number: .*`--multi_gpu`"):
        check_sharding(accelerator(plugin), tiny_clip(), "adamw")
    stage = Stage("base", tiny_text_encoder(), tiny_unet(), GLIDEDDPMScheduler())
    dataset = TextToImageDataset(ShapesSource(8, 0), tiny_tokenizer(), TimestepWeighting(1000), seed=0)
    with pytest.raises(ValueError, match="`compile` does not work where FSDP shards the weights"):
        train_stage(accelerator(plugin), make_config("unused"), stage, dataset, compile=True)


def accelerator(plugin, mixed_precision="no"):
    """What is asked of an accelerator of GPUs."""
    dynamo = SimpleNamespace(backend=DynamoBackend.NO)
    return SimpleNamespace(
        distributed_type=DistributedType.FSDP,
        is_fsdp2=True,
        mixed_precision=mixed_precision,
        parallelism_config=None,
        state=SimpleNamespace(fsdp_plugin=plugin, dynamo_plugin=dynamo),
    )
