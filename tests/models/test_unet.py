"""The UNet: its variants, what it refuses, and what diffusers promises of a model."""

import copy
import json
import shutil
import warnings

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnAddedKVProcessor
from diffusers.training_utils import EMAModel
from peft import LoraConfig
from tiny import CONTEXT, WIDTH, tiny_unet
from torch._dynamo.testing import CompileCounterWithBackend

from glide_pipelines import GLIDEUNet2DConditionModel


VARIANTS = {"base": 3, "upsampler": 6, "inpainting base": 7, "inpainting upsampler": 10}


def inputs(in_channels=3, size=8, batch=2):
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(shape, generator=generator)

    given = {
        "sample": randn(batch, 3, size, size),
        "timestep": torch.tensor([10, 900])[:batch],
        "encoder_hidden_states": randn(batch, CONTEXT, WIDTH),
    }
    if in_channels in (6, 10):
        given["low_res"] = randn(batch, 3, size // 4, size // 4)
    if in_channels in (7, 10):
        given["image"] = randn(batch, 3, size, size)
        given["mask"] = (randn(batch, 1, size, size) > 0).float()
    return given


@pytest.mark.parametrize("in_channels", VARIANTS.values(), ids=VARIANTS)
def test_each_variant_predicts_noise_and_variance(in_channels):
    unet = tiny_unet(in_channels)
    given = inputs(in_channels)
    output = unet(**given).sample
    assert output.shape == (2, 6, 8, 8)
    assert torch.equal(unet(**given, return_dict=False)[0], output)


@pytest.mark.parametrize("number", [np.float32(10.0), np.int64(10), 10.0])
def test_a_timestep_is_a_number_of_any_kind(number):
    unet, given = tiny_unet(), inputs()
    expected = unet(**given | {"timestep": 10}).sample
    torch.testing.assert_close(unet(**given | {"timestep": number}).sample, expected)


@pytest.mark.parametrize("in_channels", VARIANTS.values(), ids=VARIANTS)
def test_channels_are_stacked_as_released(in_channels):
    given = inputs(in_channels)
    stacked = tiny_unet(in_channels)._stack_channels(*(given.get(n) for n in ("sample", "low_res", "image", "mask")))
    assert stacked.shape[1] == in_channels
    assert torch.equal(stacked[:, :3], given["sample"])
    if in_channels in (7, 10):
        keep = 1 - given["mask"]
        assert torch.equal(stacked[:, 3:6], given["image"] * keep)
        assert torch.equal(stacked[:, 6:7], keep)
    if in_channels in (6, 10):
        enlarged = torch.nn.functional.interpolate(given["low_res"], (8, 8), mode="bilinear", align_corners=False)
        assert torch.equal(stacked[:, -3:], enlarged)


def test_pixels_under_the_mask_are_not_seen():
    unet, given = tiny_unet(7), inputs(7)
    changed = given | {"image": given["image"] + 5 * given["mask"]}
    assert torch.equal(unet(**given).sample, unet(**changed).sample)


def test_the_last_text_token_is_the_default_class_label():
    unet, given = tiny_unet(), inputs()
    explicit = unet(**given, class_labels=given["encoder_hidden_states"][:, -1]).sample
    assert torch.equal(unet(**given).sample, explicit)
    assert not torch.allclose(unet(**given, class_labels=torch.zeros(2, WIDTH)).sample, explicit)


def test_every_text_token_is_attended_to():
    unet, given = tiny_unet(), inputs()
    changed = given["encoder_hidden_states"].clone()
    changed[:, 0] += 1
    assert not torch.allclose(unet(**given).sample, unet(**(given | {"encoder_hidden_states": changed})).sample)


@pytest.mark.parametrize(("in_channels", "missing"), [(6, "low_res"), (7, "image"), (7, "mask"), (10, "low_res")])
def test_a_missing_condition_is_named(in_channels, missing):
    given = inputs(in_channels)
    del given[missing]
    with pytest.raises(ValueError, match=f"needs `{missing}`"):
        tiny_unet(in_channels)(**given)


@pytest.mark.parametrize("in_channels", [7, 10])
def test_an_inpainting_model_without_image_and_mask_repaints_everything(in_channels):
    given = inputs(in_channels)
    given["mask"] = torch.ones_like(given["mask"])
    unet, expected = tiny_unet(in_channels), tiny_unet(in_channels)(**given).sample
    del given["image"], given["mask"]
    assert torch.equal(unet(**given).sample, expected)


@pytest.mark.parametrize("shape", [(), (1,), (2,)])
def test_a_timestep_without_a_value_is_named(shape):
    with pytest.raises(ValueError, match="`timestep` is on the meta device"):
        tiny_unet()(**(inputs() | {"timestep": torch.zeros(shape, device="meta")}))


def test_a_condition_too_many_is_named():
    with pytest.raises(ValueError, match="does not take `low_res`"):
        tiny_unet(3)(**inputs(6))


def test_sizes_that_do_not_divide_are_an_error():
    given = inputs() | {"sample": torch.zeros(2, 3, 8, 9)}
    with pytest.raises(ValueError, match="multiples of 2, got 8 x 9"):
        tiny_unet()(**given)


def test_released_sizes():
    """The parameter counts of OpenAI's checkpoints (the text transformers left out)."""
    base = {"block_out_channels": (192, 384, 576, 768), "attention_levels": (1, 2, 3), "layers_per_block": 3}
    upsampler = {
        "block_out_channels": (192, 192, 384, 384, 768, 768),
        "attention_levels": (3, 4, 5),
        "layers_per_block": 2,
    }
    text = 76_301_824
    for config, in_channels, total in (
        (base, 3, 385_030_726),
        (base, 7, 385_037_638),
        (upsampler, 6, 398_361_286),
        (upsampler, 10, 398_368_198),
    ):
        with torch.device("meta"):
            unet = GLIDEUNet2DConditionModel(
                **GLIDEUNet2DConditionModel.glide_config(**config, in_channels=in_channels, text_hidden_size=512)
            )
        assert unet.num_parameters() + text == total


def gradients(unet, given):
    unet.zero_grad()
    unet(**given).sample.square().sum().backward()
    return {name: parameter.grad.clone() for name, parameter in unet.named_parameters()}


def test_gradient_checkpointing_gives_the_same_gradients():
    unet, given = tiny_unet().train(), inputs()
    expected = gradients(unet, given)
    unet.enable_gradient_checkpointing()
    for name, gradient in gradients(unet, given).items():
        torch.testing.assert_close(gradient, expected[name], atol=5e-5, rtol=1e-4)


def test_a_copy_of_a_checkpointed_model_is_a_copy():
    """As an average of the weights is made; it must not run the layers of the model that it was copied from."""
    unet, given = tiny_unet().train(), inputs()
    unet.enable_gradient_checkpointing()
    expected = unet(**given).sample
    copied = copy.deepcopy(unet)
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter += 1
    torch.testing.assert_close(copied(**given).sample, expected)


def test_gradient_checkpointing_covers_attention_and_the_middle_block():
    """Forward passes are counted: each layer that is covered runs once more in the backward pass."""
    unet, given = tiny_unet().train(), inputs()
    layers = {
        name: module
        for name, module in unet.named_modules()
        if isinstance(module, Attention) or (name.startswith("mid_block.resnets.") and name.count(".") == 2)
    }
    layers |= {name: m for name, m in unet.named_modules() if name.endswith(("downsamplers.0", "upsamplers.0"))}
    layers |= {name: m for name, m in unet.named_modules() if name.endswith(("resnets.0", "resnets.1"))}
    calls = dict.fromkeys(layers, 0)

    def counter(name):
        def count(*_):
            calls[name] += 1

        return count

    for name, layer in layers.items():
        # Recomputation stops before what nobody needs: count at the first child, not at the layer or its last one.
        child = layer.to_q if isinstance(layer, Attention) else layer.norm1
        child.register_forward_hook(counter(name))
    unet.enable_gradient_checkpointing()
    unet(**given).sample.sum().backward()
    assert set(calls.values()) == {2}, calls
    unet.disable_gradient_checkpointing()
    calls.update(dict.fromkeys(calls, 0))
    unet(**given).sample.sum().backward()
    assert set(calls.values()) == {1}, calls


def test_fresh_output_layers_are_zero():
    unet = tiny_unet()
    unet.zero_output_layers()
    assert not unet(**inputs()).sample.any()


def test_repeats_itself():
    unet, given = tiny_unet(dropout=0.5), inputs()
    assert torch.equal(unet(**given).sample, unet(**given).sample)


def test_dropout_acts_in_training_only():
    unet, given = tiny_unet(dropout=0.5).train(), inputs()
    assert not torch.equal(unet(**given).sample, unet(**given).sample)


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("shards", ["10GB", "20KB"])
def test_save_and_load(tmp_path, variant, shards):
    unet, given = tiny_unet(), inputs()
    unet.save_pretrained(tmp_path, variant=variant, max_shard_size=shards)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1 or shards == "10GB"
    loaded = GLIDEUNet2DConditionModel.from_pretrained(tmp_path, variant=variant)
    torch.testing.assert_close(loaded(**given).sample, unet(**given).sample, atol=5e-5, rtol=0)
    saved, reloaded = (json.loads(model.to_json_string()) for model in (unet, loaded))
    assert reloaded.pop("_name_or_path") and reloaded == saved


def test_a_wide_model_can_be_spread_over_devices(tmp_path):
    """As `device_map="auto"` does where memory is short; wide models change their memory layout on loading."""
    unet = tiny_unet(block_out_channels=(128, 128)).eval()
    unet.save_pretrained(tmp_path / "unet")
    device_map = {name: "cpu" for name, _ in unet.named_children()} | {"up_blocks": "disk"}
    spread = GLIDEUNet2DConditionModel.from_pretrained(
        tmp_path / "unet", device_map=device_map, offload_folder=tmp_path / "offloaded"
    )
    call = inputs()
    with torch.no_grad():
        torch.testing.assert_close(spread(**call).sample, unet(**call).sample, atol=1e-5, rtol=0)


def test_half_precision_stays_close():
    unet, given = tiny_unet(), inputs()
    half = tiny_unet().to(torch.bfloat16)
    output = half(**{k: v.bfloat16() if v.is_floating_point() else v for k, v in given.items()}).sample
    torch.testing.assert_close(output.float(), unet(**given).sample, atol=0.1, rtol=0.1)


def test_attention_without_sdpa_agrees():
    unet, given = tiny_unet(), inputs()
    expected = unet(**given).sample
    unet.set_attn_processor(AttnAddedKVProcessor())
    torch.testing.assert_close(unet(**given).sample, expected, atol=1e-5, rtol=0)


def test_ema_follows_the_weights(tmp_path):
    unet = tiny_unet()
    ema = EMAModel(unet.parameters(), decay=0.5, model_cls=GLIDEUNet2DConditionModel, model_config=unet.config)
    with torch.no_grad():
        unet.conv_in.weight += 1
    before = ema.shadow_params[0].clone()
    ema.step(unet.parameters())
    moved = ema.shadow_params[0]
    torch.testing.assert_close(moved, before + (1 - ema.cur_decay_value))
    ema.save_pretrained(tmp_path)
    loaded = EMAModel.from_pretrained(tmp_path, GLIDEUNet2DConditionModel)
    torch.testing.assert_close(loaded.shadow_params[0], moved)


def test_a_training_step_lowers_the_loss():
    unet, given = tiny_unet().train(), inputs()
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-3)
    losses = []
    for _ in range(10):
        loss = unet(**given).sample.square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_lora_trains_only_its_adapters_and_saves(tmp_path):
    unet, given = tiny_unet(), inputs()
    before = unet(**given).sample
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v", "to_out.0", "add_k_proj", "add_v_proj"]))
    trainable = [name for name, parameter in unet.named_parameters() if parameter.requires_grad]
    assert trainable and all("lora" in name for name in trainable)
    torch.testing.assert_close(unet(**given).sample, before)
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if "lora_B" in name:
                parameter += 0.1
    changed = unet(**given).sample
    assert not torch.allclose(changed, before)
    unet.save_lora_adapter(str(tmp_path))
    fresh = tiny_unet()
    fresh.load_lora_adapter(str(tmp_path), prefix=None, weight_name="pytorch_lora_weights.safetensors")
    torch.testing.assert_close(fresh(**given).sample, changed, atol=1e-5, rtol=0)


def test_compiles_whole_without_recompiling_across_timesteps():
    compiler = shutil.which("g++") or shutil.which("c++")
    # On a small model compiling takes far longer than running; the eager backend traces the same graph.
    backend = "inductor" if compiler else "eager"
    if compiler is None:
        warnings.warn("no C++ compiler found: torch.compile is tested with backend='eager' only", stacklevel=1)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend(backend)
    unet, given = tiny_unet(), inputs()
    compiled = torch.compile(unet, backend=counter, fullgraph=True)
    with torch.no_grad():
        for timestep in (999, 500, 3):
            given["timestep"] = torch.tensor([timestep, timestep])
            torch.testing.assert_close(compiled(**given).sample, unet(**given).sample, atol=1e-4, rtol=1e-4)
    assert counter.frame_count == 1
    torch._dynamo.reset()
