"""Checkpoints of other training code: wrapped in dictionaries and prefixes, with averages, or in safetensors."""

import logging

import pytest
import torch
from safetensors.torch import save_file
from small import OPTIONS, small_state_dict, write_checkpoint, write_clip, write_tokenizer
from torch import nn

from glide_pipelines import GLIDEPipeline
from glide_pipelines.conversion import ConversionError, convert_glide_to_diffusers
from glide_pipelines.conversion.reading import open_checkpoint


def prefixed(prefix, state_dict):
    return {prefix + key: tensor for key, tensor in state_dict.items()}


def in_the_middle(state_dict):
    """As torch.compile of single blocks, and FSDP, name their tensors."""
    return {key.replace("blocks.", "blocks._fsdp_wrapped_module.", 1): value for key, value in state_dict.items()}


WEIGHTS = small_state_dict()
OTHER = small_state_dict(seed=1)
OPTIMIZER = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]}

WRAPPED = {
    "DataParallel": (prefixed("module.", WEIGHTS), ""),
    "torch.compile": (prefixed("_orig_mod.", WEIGHTS), ""),
    "both": (prefixed("module._orig_mod.", WEIGHTS), ""),
    "parts of it": (in_the_middle(WEIGHTS), ""),
    "an averaged model": (prefixed("module.", WEIGHTS) | {"n_averaged": torch.tensor(7)}, ""),
    "state_dict": ({"state_dict": WEIGHTS, "epoch": 3, "optimizer": OPTIMIZER}, "state_dict"),
    "model": ({"model": prefixed("module.", WEIGHTS), "step": 10}, "model"),
    "two dictionaries": ({"checkpoint": {"model": WEIGHTS, "loss": 0.5}}, "checkpoint.model"),
    "Lightning": ({"state_dict": prefixed("glide_model.", WEIGHTS), "epoch": 1}, "state_dict.glide_model"),
    "an average beside the model": ({"model": OTHER, "ema": WEIGHTS, "step": 10}, "ema"),
    "an average of another name": ({"state_dict": OTHER, "model_ema": WEIGHTS}, "model_ema"),
    "an average among prefixes": (prefixed("model.", OTHER) | prefixed("ema_model.", WEIGHTS), "ema_model"),
    "buffers beside it": (prefixed("model.", WEIGHTS) | {"betas": torch.zeros(5)}, "model"),
    "the base of a pair": ({"base": WEIGHTS, "upsampler": small_state_dict("upsample")}, "base"),
    "parameters": ({key: nn.Parameter(value) for key, value in WEIGHTS.items()}, ""),
}


def assert_same(state_dict, expected):
    assert state_dict.keys() == expected.keys()
    assert all(
        torch.equal(state_dict[key], value) and not state_dict[key].requires_grad for key, value in expected.items()
    )


@pytest.mark.parametrize("name", WRAPPED)
def test_the_model_is_found(tmp_path, name):
    content, key = WRAPPED[name]
    torch.save(content, tmp_path / "file.pt")
    file = open_checkpoint(tmp_path / "file.pt", ("base", "base-inpaint"))
    assert (file.kind, file.key) == ("base", key)
    assert_same(file.state_dict(), WEIGHTS)


@pytest.mark.parametrize(
    "name", ["DataParallel", "an averaged model", "an average among prefixes", "buffers beside it"]
)
@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_safetensors_of_any_ending(tmp_path, name, ending):
    content, key = WRAPPED[name]
    save_file(content, tmp_path / f"file.{ending}")
    file = open_checkpoint(tmp_path / f"file.{ending}")
    assert (file.kind, file.key) == ("base", key)
    assert_same(file.state_dict(), WEIGHTS)


def test_safetensors_that_begin_like_a_pickle(tmp_path):
    """The length of the header comes first, and so one file in 32 begins with the byte of a pickle."""
    path = tmp_path / "file.pt"
    for length in range(0, 256, 8):  # the header is padded to a multiple of 8
        save_file(WEIGHTS, path, metadata={"padding": "x" * length})
        if path.read_bytes()[0] == 0x80:
            break
    assert path.read_bytes()[0] == 0x80
    assert_same(open_checkpoint(path).state_dict(), WEIGHTS)


@pytest.mark.parametrize(
    ("name", "level", "message"),
    [
        ("state_dict", logging.INFO, "took the weights under 'state_dict'."),
        ("an average beside the model", logging.WARNING, "took the weights under 'ema', and left out 'model'."),
        ("the base of a pair", logging.WARNING, "took the weights under 'base', and left out 'upsampler'."),
    ],
)
def test_what_was_taken_is_logged(tmp_path, caplog, name, level, message):
    caplog.set_level(logging.INFO, logger="glide_pipelines")
    torch.save(WRAPPED[name][0], tmp_path / "file.pt")
    open_checkpoint(tmp_path / "file.pt", ("base",))
    ((_, logged, text),) = caplog.record_tuples
    assert (logged, text) == (level, f"{tmp_path / 'file.pt'}: {message}")


@pytest.mark.parametrize("content", ["a list", "names without dots"])
def test_an_average_that_cannot_be_read_is_told(tmp_path, caplog, content):
    """As diffusers keeps one, and as latent-diffusion does."""
    if content == "a list":
        file = {"model": WEIGHTS, "ema": {"decay": 0.9, "shadow_params": list(WEIGHTS.values())}}
    else:
        average = {f"model_ema.{key.replace('.', '')}": tensor for key, tensor in WEIGHTS.items()}
        file = {"state_dict": prefixed("model.", WEIGHTS) | average, "ema_decay": torch.tensor(0.9)}
    torch.save(file, tmp_path / "file.pt")
    assert_same(open_checkpoint(tmp_path / "file.pt").state_dict(), WEIGHTS)
    left_out = "'ema'" if content == "a list" else "'state_dict.model_ema'"
    assert caplog.messages[-1].endswith(f"and left out {left_out}.")


def test_two_averages_are_not_chosen_from(tmp_path):
    torch.save({"ema_0.999": WEIGHTS, "ema_0.9999": OTHER, "model": OTHER}, tmp_path / "file.pt")
    with pytest.raises(ConversionError, match=r"several models, under 'ema_0.999', 'ema_0.9999': save the wanted one"):
        open_checkpoint(tmp_path / "file.pt")


def test_the_word_ema_inside_another_word_is_no_average(tmp_path):
    torch.save({"schema": WEIGHTS, "remaining": OTHER}, tmp_path / "file.pt")
    with pytest.raises(ConversionError, match=r"several models, under 'schema', 'remaining'"):
        open_checkpoint(tmp_path / "file.pt")


def test_conversion(tmp_path):
    """The whole way, with a wrapped base and an upsampler in safetensors."""
    torch.save(
        {"state_dict": prefixed("module.", WEIGHTS), "ema": prefixed("_orig_mod.", OTHER)}, tmp_path / "base.ckpt"
    )
    save_file(prefixed("module.", small_state_dict("upsample")), tmp_path / "upsample.safetensors")
    plain = tmp_path / "plain"
    plain.mkdir()
    clip = write_clip(plain)
    folder, expected = (
        convert_glide_to_diffusers(base, tmp_path / name, upsampler, write_tokenizer(plain), **OPTIONS)
        for name, base, upsampler in (
            ("foreign", tmp_path / "base.ckpt", tmp_path / "upsample.safetensors"),
            ("released", write_checkpoint(plain, seed=1), write_checkpoint(plain, "upsample")),
        )
    )
    for path in expected.rglob("*.safetensors"):
        assert path.read_bytes() == (folder / path.relative_to(expected)).read_bytes()
    assert "| `base.ckpt`, its `ema` |" in (folder / "README.md").read_text()
    assert GLIDEPipeline.from_pretrained(folder)
    # The towers of the noised CLIP are found in the same way.
    text = torch.load(clip["clip_text_checkpoint_path"], weights_only=True)
    torch.save({"model": prefixed("module.", text)}, tmp_path / "text.pt")
    assert open_checkpoint(tmp_path / "text.pt").kind == "clip-text-enc"
