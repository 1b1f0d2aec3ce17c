"""A UNet whose blocks are compiled: the same run, the same names, and as exact a resumption."""

import functools

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from tiny import tiny_inpaint_pipeline, tiny_pipeline, tiny_text_encoder, tiny_tokenizer, tiny_unet
from trainings import assert_equal, make_config, read_checkpoint, run_training

from glide_pipelines import GLIDEUNet2DConditionModel
from glide_pipelines.sampling import Stage
from glide_pipelines.shapes import ShapesSource
from glide_pipelines.training import TextToImageDataset, TimestepWeighting, train_stage


@pytest.fixture
def quick(monkeypatch):
    """Capture and differentiate the blocks, but leave out generating code, which takes a minute."""
    compile_blocks = functools.partialmethod(GLIDEUNet2DConditionModel.compile_repeated_blocks, backend="aot_eager")
    monkeypatch.setattr(GLIDEUNet2DConditionModel, "compile_repeated_blocks", compile_blocks)
    torch.compiler.reset()


def graphs():
    """How many pieces of code were captured so far."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def train(folder, compile=True, dropout=0.0, validate=None, lora=None, **changes):
    """A run of a tiny base; returns the stage. `validate` is given it at each checkpoint."""
    unet, scheduler = tiny_unet(seed=1, dropout=dropout), tiny_pipeline(upsampler=False).scheduler
    stage = Stage("base", tiny_text_encoder(0), unet, scheduler)
    on_checkpoint = None if validate is None else lambda step: validate(stage)
    dataset = TextToImageDataset(ShapesSource(8, 0), tiny_tokenizer(), TimestepWeighting(1000), 0)
    # Where the gradient is zero in exact arithmetic, AdamW would blow rounding up to full steps.
    config = make_config(folder, adam_epsilon=1e-3, **changes)
    train_stage(Accelerator(cpu=True), config, stage, dataset, on_checkpoint=on_checkpoint, lora=lora, compile=compile)
    return stage


@pytest.mark.parametrize("rank", [None, 2], ids=["whole", "LoRA"])
def test_a_compiled_run_is_the_same_run(tmp_path, quick, rank):
    lora = None if rank is None else pytest.importorskip("peft").LoraConfig(r=rank, init_lora_weights="gaussian")
    before = graphs()
    compiled = train(tmp_path / "compiled", lora=lora)
    assert graphs() - before == 6  # the test of the compiler; two blocks down, the middle, two up: each once
    plain = train(tmp_path / "plain", compile=False, lora=lora)
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    one, other = (read_checkpoint(tmp_path / name / "checkpoint-4")["model"] for name in ("compiled", "plain"))
    assert one.keys() == other.keys()
    for name, value in other.items():
        torch.testing.assert_close(one[name], value, atol=1e-5, rtol=1e-4, msg=name)


def test_a_resumed_run_equals_an_unbroken_one_to_the_bit(tmp_path, quick):
    train(tmp_path / "unbroken", dropout=0.2, max_train_steps=2)
    train(tmp_path / "resumed", dropout=0.2, max_train_steps=1)
    train(tmp_path / "resumed", dropout=0.2, max_train_steps=2, resume_from_checkpoint="latest")
    assert_equal(*(read_checkpoint(tmp_path / name / "checkpoint-2") for name in ("unbroken", "resumed")))


def test_validation_compiles_nothing(tmp_path, quick):
    """Its batches have other shapes."""
    counts = []

    def validate(stage):
        before = graphs()
        with torch.no_grad():
            stage.unet(torch.zeros(3, 3, 16, 16), 5, encoder_hidden_states=torch.zeros(3, 12, 16))
        counts.append(graphs() - before)

    train(tmp_path, validate=validate, max_train_steps=1)
    assert counts == [0]


def test_a_compiler_that_is_missing_is_told_before_the_first_step(tmp_path, monkeypatch):
    def fails(function):
        raise torch._dynamo.exc.TorchDynamoException("No working C++ compiler found\nmore")

    monkeypatch.setattr(torch, "compile", fails)
    with pytest.raises(ValueError, match=r"^`compile` needs .* works on cpu, .* does not: No working C\+\+.*found$"):
        train(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("training", ["text-to-image", "inpaint"])
def test_a_saved_pipeline_has_the_names_of_old(tmp_path, quick, training):
    tiny_inpaint_pipeline(upsampler=False).save_pretrained(tmp_path / "before")
    if training == "text-to-image":
        tiny_pipeline(upsampler=False).save_pretrained(tmp_path / "before")
    run = ["--output_dir", str(tmp_path), "--max_train_steps", "1", "--train_batch_size", "2", "--compile"]
    start = ["--dataset_name", "shapes", "--pretrained_model_name_or_path", str(tmp_path / "before")]
    run_training(training, [*start, *run])
    file = "unet/diffusion_pytorch_model.safetensors"
    before, after = (load_file(tmp_path / name / file) for name in ("before", "pipeline"))
    assert after.keys() == before.keys()
    assert not torch.equal(after["conv_out.bias"], before["conv_out.bias"])
