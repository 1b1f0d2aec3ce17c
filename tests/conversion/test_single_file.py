"""`from_single_file`: what a conversion would write, opened without a folder between."""

import itertools
import json

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file
from small import CLIP_HEAD_DIM, OPTIONS, PAIRS, small_clip, write_checkpoint
from tiny import tiny_call, tiny_tokenizer

from glide_pipelines import (
    CLIPGuidedPipeline,
    GLIDEDDIMScheduler,
    GLIDEImg2ImgPipeline,
    GLIDEInpaintPipeline,
    GLIDEPipeline,
    GLIDESuperResolutionPipeline,
    GLIDETextEncoder,
    GLIDEUNet2DConditionModel,
)
from glide_pipelines.conversion import ConversionError, convert_glide_to_diffusers, load_noised_clip


def options(files, **changes):
    return {"tokenizer": files / "tokenizer", **OPTIONS, **changes}


def clip_options(files):
    return {
        "clip_text": files / "clip-text-enc.pt",
        "clip_image": files / "clip-image-enc.pt",
        "clip_tokenizer": files / "clip-tokenizer",
        "clip_attention_head_dim": CLIP_HEAD_DIM,
    }


def run(pipe):
    """An image of 32 pixels from the given noise."""
    pipe.set_progress_bar_config(disable=True)
    image = np.linspace(0, 1, 32 * 32 * 3, dtype=np.float32).reshape(32, 32, 3)
    if isinstance(pipe, GLIDESuperResolutionPipeline):
        return pipe("a", image=image[::2, ::2], output_type="np", generator=torch.manual_seed(0), timesteps="2").images
    given = {}
    if isinstance(pipe, GLIDEImg2ImgPipeline | GLIDEInpaintPipeline) and not isinstance(pipe, CLIPGuidedPipeline):
        given["image"] = image
    if "image" in given and isinstance(pipe, GLIDEInpaintPipeline):
        given["mask_image"] = np.ones((32, 32), np.float32)
    return pipe(**tiny_call(**given)).images


@pytest.mark.parametrize(
    ("pipeline", "pair"),
    [
        (GLIDEPipeline, PAIRS[0]),
        (GLIDEImg2ImgPipeline, PAIRS[0]),
        (GLIDEInpaintPipeline, PAIRS[0]),
        (GLIDEInpaintPipeline, PAIRS[1]),
        (GLIDEInpaintPipeline, ("base", "upsample-inpaint")),
        (GLIDEInpaintPipeline, ("base-inpaint", "upsample")),
        (CLIPGuidedPipeline, PAIRS[0]),
    ],
)
def test_it_equals_the_converted_folder(files, tmp_path, pipeline, pair):
    base, upsampler = (files / f"{kind}.pt" for kind in pair)
    clip = clip_options(files) if pipeline is CLIPGuidedPipeline else {}
    loaded = pipeline.from_single_file(base, upsampler, **options(files, **clip))
    clip = {name if name not in ("clip_text", "clip_image") else f"{name}_checkpoint_path": clip[name] for name in clip}
    folder = convert_glide_to_diffusers(base, tmp_path / "glide", upsampler, **options(files, **clip))
    assert_same(loaded, pipeline.from_pretrained(folder))
    inpaints = any("inpaint" in kind for kind in pair)
    assert ("mask_image" in (folder / "README.md").read_text(encoding="utf-8")) is inpaints
    if inpaints:
        assert DiffusionPipeline.load_config(folder)["_class_name"] == "GLIDEInpaintPipeline"


def test_an_upsampler_alone(files, tmp_path):
    loaded = GLIDESuperResolutionPipeline.from_single_file(files / "upsample.pt", **options(files))
    folder = convert_glide_to_diffusers(files / "base.pt", tmp_path / "glide", files / "upsample.pt", **options(files))
    assert_same(loaded, GLIDESuperResolutionPipeline.from_pretrained(folder))
    assert loaded.config.scale_factor == 2


def test_a_base_model_alone(files):
    loaded = GLIDEPipeline.from_single_file(files / "base.pt", **options(files))
    assert loaded.super_res_unet is loaded.super_res_text_encoder is loaded.super_res_scheduler is None
    assert run(loaded).shape == (1, 16, 16, 3)


def settings(component):
    """The configuration of a component, but for where it came from and how it is stored."""
    config = component.config if isinstance(component.config, dict) else component.config.to_dict()
    ignored = {"_class_name", "_diffusers_version", "_name_or_path", "_use_default_values", "architectures", "dtype"}

    def kept(items):
        return {key: value for key, value in items if key not in ignored}

    return json.loads(json.dumps(dict(config), default=list), object_pairs_hook=kept)


def assert_same(loaded, expected):
    assert type(loaded) is type(expected)
    assert loaded.components.keys() == expected.components.keys()
    for name, component in loaded.components.items():
        other = expected.components[name]
        assert type(component) is type(other), name
        if isinstance(component, torch.nn.Module):
            assert not component.training
            weights = other.state_dict()
            assert component.state_dict().keys() == weights.keys()
            for key, tensor in component.state_dict().items():
                assert tensor.device.type == "cpu" and tensor.dtype == weights[key].dtype
                assert torch.equal(tensor, weights[key]), key
            assert not any(tensor.is_meta for tensor in itertools.chain(component.parameters(), component.buffers()))
        if hasattr(component, "config"):
            assert settings(component) == settings(other), name
    np.testing.assert_allclose(run(loaded), run(expected), atol=1e-4)  # memory is aligned in other ways


def test_safetensors_and_prefixes(files, tmp_path):
    state_dict = torch.load(files / "base.pt", weights_only=True)
    save_file({f"module.{key}": tensor for key, tensor in state_dict.items()}, tmp_path / "base.safetensors")
    foreign, released = (
        GLIDEPipeline.from_single_file(path, **options(files))
        for path in (tmp_path / "base.safetensors", files / "base.pt")
    )
    np.testing.assert_array_equal(run(foreign), run(released))


def test_the_weights_outlive_the_file(files, tmp_path):
    path = write_checkpoint(tmp_path, seed=0)
    loaded = GLIDEPipeline.from_single_file(path, **options(files))
    with open(path, "r+b") as file:
        file.write(bytes(path.stat().st_size))
    np.testing.assert_array_equal(run(loaded), run(GLIDEPipeline.from_single_file(files / "base.pt", **options(files))))


def test_dtype_and_components(files):
    scheduler = GLIDEDDIMScheduler(beta_schedule="squaredcos_cap_v2")
    loaded = GLIDEPipeline.from_single_file(
        files / "base.pt",
        **options(files, tokenizer=tiny_tokenizer(), scheduler=scheduler, dtype=torch.bfloat16, prompt_domain="shapes"),
    )
    assert loaded.unet.dtype == loaded.text_encoder.dtype == torch.bfloat16
    assert loaded.scheduler is scheduler
    assert loaded.config.prompt_domain == "shapes"


@pytest.mark.parametrize("kind", ["base", "upsample-inpaint"])
def test_networks(files, kind):
    heads = {name: OPTIONS[name] for name in ("attention_head_dim", "text_num_attention_heads")}
    unet = GLIDEUNet2DConditionModel.from_single_file(files / f"{kind}.pt", **heads)
    text_encoder = GLIDETextEncoder.from_single_file(files / f"{kind}.pt", **heads)
    base = "base-inpaint" if "inpaint" in kind else "base"
    pipe = GLIDEInpaintPipeline.from_single_file(
        files / f"{base}.pt", files / f"upsample{base[4:]}.pt", **options(files)
    )
    prefix = "super_res_" if "upsample" in kind else ""
    for name, network in (("unet", unet), ("text_encoder", text_encoder)):
        weights = getattr(pipe, prefix + name).state_dict()
        assert all(torch.equal(tensor, weights[key]) for key, tensor in network.state_dict().items())
    assert unet.config.sample_size == (256 if prefix else 64)
    assert (
        GLIDEUNet2DConditionModel.from_single_file(files / f"{kind}.pt", image_size=32, **heads).config.sample_size
        == 32
    )


def test_the_noised_clip(files):
    clip = load_noised_clip(files / "clip-text-enc.pt", files / "clip-image-enc.pt", attention_head_dim=CLIP_HEAD_DIM)
    weights = small_clip().state_dict()
    assert clip.state_dict().keys() == weights.keys()
    assert all(torch.equal(tensor, weights[key]) for key, tensor in clip.state_dict().items())


@pytest.mark.parametrize(
    ("pipeline", "changes", "message"),
    [
        (
            GLIDEPipeline,
            {"path": "upsample.pt"},
            r"`pretrained_model_link_or_path` \(.*GLIDE's upsample, where base is needed",
        ),
        (GLIDEPipeline, {"path": "base-inpaint.pt"}, "GLIDE's base-inpaint, where base is needed"),
        (GLIDEImg2ImgPipeline, {"path": "base-inpaint.pt"}, "GLIDE's base-inpaint, where base is needed"),
        (GLIDEInpaintPipeline, {"path": "upsample.pt"}, "GLIDE's upsample, where base or base-inpaint is needed"),
        (GLIDEPipeline, {"super_res": "base.pt"}, r"`super_res` \(.*GLIDE's base, where upsample is needed"),
        (GLIDEPipeline, {"super_res": "upsample-inpaint.pt"}, "GLIDE's upsample-inpaint, where upsample is needed"),
        (GLIDESuperResolutionPipeline, {}, "GLIDE's base, where upsample is needed"),
        (
            GLIDESuperResolutionPipeline,
            {"super_res": "upsample.pt"},
            "`super_res` is not for GLIDESuperResolutionPipeline",
        ),
        (CLIPGuidedPipeline, {}, "`clip_text` is missing"),
        (
            CLIPGuidedPipeline,
            {"clip_text": "base.pt", "clip_image": "base.pt"},
            r"`clip_text` \(.*GLIDE's base, where clip-",
        ),
        (GLIDEPipeline, {"clip_text": "clip-text-enc.pt"}, "`clip_text` and `clip_image` are not for GLIDEPipeline"),
        (GLIDEPipeline, {"path": "none.pt"}, "No such file"),
        (GLIDEPipeline, {"dtype": "float32"}, "`dtype` must be a floating-point `torch.dtype`, got 'float32'"),
        (GLIDEPipeline, {"dtype": torch.int8}, "`dtype` must be a floating-point `torch.dtype`, got torch.int8"),
        (GLIDEPipeline, {"image_size": 15}, "`image_size` must be a positive multiple of 2"),
        (GLIDEPipeline, {"image_size": "16"}, "`image_size` must be a positive multiple of 2"),
        (GLIDESuperResolutionPipeline, {"path": "upsample.pt", "image_size": 0}, "do not go together"),
        (
            GLIDEPipeline,
            {"tokenizer": tiny_tokenizer(9)},
            r"`tokenizer` \(GPT2Tokenizer.*\): its `model_max_length` must be .* 12, got 9",
        ),
    ],
)
def test_a_wrong_file_is_named_before_anything_is_loaded(files, monkeypatch, pipeline, changes, message):
    def fail(*args, **kwargs):
        raise AssertionError("weights were read")

    monkeypatch.setattr("glide_pipelines.conversion.stages.read_weights", fail)
    paths = {
        key: files / value if isinstance(value, str) and value.endswith(".pt") else value
        for key, value in changes.items()
    }
    path = paths.pop("path", files / "base.pt")
    with pytest.raises(ConversionError, match=message):
        pipeline.from_single_file(path, **options(files, **paths))


@pytest.mark.parametrize("pipeline", [GLIDEPipeline, GLIDESuperResolutionPipeline])
def test_a_file_that_is_opened_as_a_folder_names_the_way(files, pipeline):
    with pytest.raises(ValueError, match="a checkpoint file is opened by `from_single_file`"):
        pipeline.from_pretrained(files / "base.pt")


def test_an_unknown_argument(files):
    with pytest.raises(TypeError, match=r"`GLIDEPipeline.from_single_file` has no argument 'super_res_unett'"):
        GLIDEPipeline.from_single_file(files / "base.pt", **options(files, super_res_unett=None))


def test_nan(files, tmp_path):
    state_dict = torch.load(files / "base.pt", weights_only=True)
    torch.save(state_dict | {"out.2.bias": torch.full((6,), torch.nan)}, tmp_path / "nan.pt")
    with pytest.raises(ConversionError, match=r"`pretrained_model_link_or_path` \(.*nan.pt\): 'out.2.bias' holds NaN"):
        GLIDEPipeline.from_single_file(tmp_path / "nan.pt", **options(files))
    loaded = GLIDEPipeline.from_single_file(tmp_path / "nan.pt", **options(files, allow_non_finite=True))
    assert loaded.unet.conv_out.bias.isnan().all()
