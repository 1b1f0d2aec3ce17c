"""The fused pass computes what the UNet computes, in fewer operations, and leaves the UNet as it is."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.attention_processor import AttnAddedKVProcessor
from tiny import CONTEXT, WIDTH, tiny_unet
from torch.utils._python_dispatch import TorchDispatchMode

from glide_pipelines.models import fused
from glide_pipelines.models.fused import FusedUNet


def inputs_of(unet, batch_size: int = 2, size: int = 16) -> dict[str, torch.Tensor]:
    """What a pass takes, of noise."""
    torch.manual_seed(1)
    image = torch.randn(batch_size, 3, size, size)
    inputs = {"sample": image, "timestep": torch.tensor(500), "encoder_hidden_states": text(batch_size)}
    if unet.is_upsampler:
        inputs["low_res"] = image[..., ::4, ::4]
    if unet.is_inpainter:
        inputs |= {"image": image.flip(0), "mask": (image[:, :1] > 0).float()}
    return inputs


def text(batch_size: int = 2, seed: int = 2) -> torch.Tensor:
    return torch.randn(batch_size, CONTEXT, WIDTH, generator=torch.Generator().manual_seed(seed))


def random_unet(in_channels: int = 3):
    """A tiny UNet all of whose weights count: biases and norms too."""
    unet = tiny_unet(in_channels, 16).eval()
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return unet


@torch.no_grad()
def assert_equal_passes(unet, **changes) -> FusedUNet:
    inputs = inputs_of(unet) | changes
    expected = unet(**inputs).sample
    fused_unet = FusedUNet(unet)
    fused_unet.prepare(inputs["encoder_hidden_states"])
    torch.testing.assert_close(fused_unet(**inputs).sample, expected, rtol=1e-4, atol=1e-5)
    return fused_unet


class Count(TorchDispatchMode):
    """Counts operations that launch a kernel."""

    VIEWS = ("view", "split", "slice", "permute", "transpose", "expand", "unsqueeze", "select", "as_strided", "alias")
    operations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operations += not any(view in str(func) for view in self.VIEWS)
        return func(*args, **(kwargs or {}))

    def one(self, function):
        """The function, which counts as one operation, whatever it does."""

        def run(*args, **kwargs):
            before = self.operations
            result = function(*args, **kwargs)
            self.operations = before + 1
            return result

        return run


@pytest.mark.parametrize("in_channels", [3, 6, 7, 10])
def test_every_variant(in_channels):
    assert_equal_passes(random_unet(in_channels))


def test_a_timestep_for_each_example_and_class_labels():
    assert_equal_passes(random_unet(), timestep=torch.tensor([3, 900]), class_labels=torch.randn(2, WIDTH))


@torch.no_grad()
def test_another_text_and_other_weights_are_prepared():
    unet = random_unet()
    fused_unet = assert_equal_passes(unet)
    for parameter in unet.parameters():
        parameter.mul_(0.9)
    inputs = inputs_of(unet) | {"encoder_hidden_states": text(seed=3)}
    fused_unet.prepare(inputs["encoder_hidden_states"])
    torch.testing.assert_close(fused_unet(**inputs).sample, unet(**inputs).sample, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_it_launches_half_as_many_kernels(monkeypatch):
    unet = random_unet()
    inputs = inputs_of(unet)
    with Count() as plain:
        unet(**inputs)
    fused_unet = FusedUNet(unet)
    fused_unet.prepare(inputs["encoder_hidden_states"])
    with Count() as fewer:
        for name in ("group_norm", "add"):  # where Triton runs
            monkeypatch.setattr(fused, name, fewer.one(getattr(fused, name)))
        fused_unet(**inputs)
    assert fewer.operations < 0.5 * plain.operations


def test_the_unet_stays_as_it_is():
    unet = random_unet()
    before = {name: (value.data_ptr(), value.stride()) for name, value in unet.state_dict().items()}
    modules, processors = [type(module) for module in unet.modules()], list(unet.attn_processors.values())
    assert_equal_passes(unet)
    assert {name: (value.data_ptr(), value.stride()) for name, value in unet.state_dict().items()} == before
    assert [type(module) for module in unet.modules()] == modules
    assert list(unet.attn_processors.values()) == processors


def test_blocks_that_are_not_diffusers_own_run_as_they_are():
    peft = pytest.importorskip("peft")
    unet = random_unet()
    targets = ["to_q", "add_k_proj", "conv1", "time_emb_proj"]
    unet.add_adapter(peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    assert_equal_passes(unet)
    assert_equal_passes(unet, cross_attention_kwargs={"scale": 0.5})
    unet = random_unet()
    unet.set_attn_processor(AttnAddedKVProcessor())
    assert_equal_passes(unet)


def test_weights_that_cannot_be_stacked_run_as_they_are():
    class Quantized(torch.nn.Parameter):
        """As those of torchao, which can be multiplied by, and not much more."""

        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            if func is torch.cat:
                raise NotImplementedError(f"{func} of quantized weights")
            return super().__torch_function__(func, types, args, kwargs or {})

    unet = random_unet()
    for layer in (unet.mid_block.attentions[0].to_k, unet.mid_block.resnets[0].time_emb_proj):
        layer.weight = Quantized(layer.weight.detach())
    assert_equal_passes(unet)


def test_convolutions_keep_their_padding():
    unet = random_unet()
    for module in unet.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.padding_mode = "circular"  # for tiles without seams
    assert_equal_passes(unet)


@pytest.mark.parametrize(
    "change",
    [
        lambda unet: unet.train(),
        lambda unet: unet.mid_block.resnets[0].dropout.train(),
        lambda unet: unet.enable_gradient_checkpointing(),
        lambda unet: unet.mid_block.attentions[0].to_q.register_forward_hook(lambda module, inputs, output: 2 * output),
        lambda unet: unet.mid_block.register_forward_pre_hook(lambda module, inputs: None),
        # As `compile` leaves it, without the compiler's seconds.
        lambda unet: setattr(unet.mid_block, "_compiled_call_impl", unet.mid_block._call_impl),
    ],
    ids=["training", "dropout", "checkpointing", "hook", "pre-hook", "compiled"],
)
def test_what_a_fused_pass_would_pass_over_is_refused(change):
    unet = random_unet()
    assert FusedUNet.fits(unet)
    change(unet)
    assert not FusedUNet.fits(unet)
