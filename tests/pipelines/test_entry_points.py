"""What a user of diffusers tries first: the classes that choose a pipeline, components by name, torch.compile, LoRA."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    AutoPipelineForImage2Image,
    AutoPipelineForInpainting,
    AutoPipelineForText2Image,
    DDIMScheduler,
    DiffusionPipeline,
)
from diffusers.models.attention_processor import AttnAddedKVProcessor, AttnProcessor2_0
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file
from tiny import (
    WIDTH,
    tiny_call,
    tiny_clip_pipeline,
    tiny_components,
    tiny_inpaint_pipeline,
    tiny_pipeline,
    tiny_text_encoder,
    tiny_unet,
)

from glide_pipelines import (
    CLIPGuidedPipeline,
    GLIDEImg2ImgPipeline,
    GLIDEInpaintPipeline,
    GLIDEPipeline,
    GLIDESuperResolutionPipeline,
    GLIDEUNet2DConditionModel,
)


TASKS = {
    AutoPipelineForText2Image: GLIDEPipeline,
    AutoPipelineForImage2Image: GLIDEImg2ImgPipeline,
    AutoPipelineForInpainting: GLIDEInpaintPipeline,
}
SKETCH = np.linspace(0, 1, 32 * 32 * 3, dtype=np.float32).reshape(32, 32, 3)
MASK = np.kron(np.eye(2, dtype=np.float32), np.ones((16, 16), np.float32))
UNET_TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "add_k_proj", "add_v_proj"]
TEXT_TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj"]


def enlarger():
    pipe = GLIDESuperResolutionPipeline.from_pipe(tiny_pipeline())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def img2img():
    pipe = GLIDEImg2ImgPipeline.from_pipe(tiny_pipeline())
    pipe.set_progress_bar_config(disable=True)
    return pipe


PIPELINES = {
    "text to image": tiny_pipeline,
    "img2img": img2img,
    "inpainting": tiny_inpaint_pipeline,
    "super-resolution": enlarger,
    "CLIP guidance": tiny_clip_pipeline,
}


def draw(pipe, **changes):
    """An image of 32 pixels, whatever the task."""
    if isinstance(pipe, GLIDESuperResolutionPipeline):
        given = {"image": SKETCH[::4, ::4], **changes}
        return pipe("a red circle", num_inference_steps=2, generator=torch.manual_seed(0), output_type="np", **given)[0]
    given = {}
    if isinstance(pipe, GLIDEImg2ImgPipeline | GLIDEInpaintPipeline) and not isinstance(pipe, CLIPGuidedPipeline):
        given["image"] = SKETCH
    if isinstance(pipe, GLIDEInpaintPipeline) and "image" in given:
        given["mask_image"] = MASK
    return pipe(**tiny_call(**given, **changes)).images


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def expected():
    return draw(tiny_pipeline())


# -- the classes that choose a pipeline -------------------------------------------------------------------------------


@pytest.mark.parametrize("auto", TASKS)
def test_auto_pipelines_open_a_folder(saved, auto):
    pipe = auto.from_pretrained(saved, dtype=torch.bfloat16)
    assert type(pipe) is TASKS[auto]
    assert pipe.unet.dtype == torch.bfloat16


@pytest.mark.parametrize("auto", TASKS)
@pytest.mark.parametrize("make", PIPELINES.values(), ids=PIPELINES)
def test_auto_pipelines_compose(make, auto):
    pipe = make()
    if isinstance(pipe, GLIDESuperResolutionPipeline):
        if auto is AutoPipelineForImage2Image:
            assert type(auto.from_pipe(pipe)) is GLIDESuperResolutionPipeline
        else:
            with pytest.raises(ValueError, match="can't find a pipeline linked to GLIDESuperResolutionPipeline"):
                auto.from_pipe(pipe)
        return
    composed = auto.from_pipe(pipe)
    keeps_clip = isinstance(pipe, CLIPGuidedPipeline) and auto is not AutoPipelineForImage2Image
    assert type(composed) is (CLIPGuidedPipeline if keeps_clip else TASKS[auto])
    assert all(composed.components[name] is part for name, part in pipe.components.items() if name[:4] != "clip")


def test_without_the_import_diffusers_names_what_is_missing(saved):
    """diffusers looks a pipeline up among its own classes; the docs say that the import is what it lacks."""
    code = "import sys; from diffusers import DiffusionPipeline; DiffusionPipeline.from_pretrained(sys.argv[1])"
    result = subprocess.run([sys.executable, "-c", code, str(saved)], capture_output=True, text=True)
    message = "module diffusers has no attribute GLIDEPipeline"
    assert message in result.stderr
    assert message in (Path(__file__).parents[2] / "docs/quickstart.md").read_text()


# -- components by name -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opener", [DiffusionPipeline, GLIDEPipeline, AutoPipelineForText2Image])
def test_components_by_name(saved, opener):
    given = {"super_res_unet": tiny_unet(6, 16, 9), "super_res_scheduler": DDIMScheduler(), "unet": tiny_unet(seed=8)}
    pipe = opener.from_pretrained(saved, **given)
    assert all(pipe.components[name] is part for name, part in given.items())
    assert draw(pipe).shape == (1, 16, 16, 3)


@pytest.mark.parametrize("opener", [DiffusionPipeline, GLIDEPipeline, AutoPipelineForText2Image])
def test_a_component_may_be_left_out(saved, opener):
    pipe = opener.from_pretrained(saved, super_res_unet=None)
    assert pipe.super_res_unet is None and pipe.super_res_text_encoder is not None
    assert draw(pipe).shape == (1, 8, 8, 3)


def test_components_of_a_pipeline_with_clip(tmp_path):
    tiny_clip_pipeline().save_pretrained(tmp_path)
    mine = tiny_unet(6, 16, 9)
    pipe = DiffusionPipeline.from_pretrained(tmp_path, super_res_unet=mine, clip_tokenizer=None)
    assert pipe.super_res_unet is mine and pipe.clip_tokenizer is None and pipe.clip_model is not None


def test_a_base_alone_is_refused_by_super_resolution_when_it_is_loaded(tmp_path):
    tiny_pipeline(upsampler=False).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds no upsampler: its `super_res_unet` is missing"):
        GLIDESuperResolutionPipeline.from_pretrained(tmp_path)


def test_the_upsampler_is_optional_in_python():
    components = tiny_components(upsampler=False)
    assert draw(GLIDEPipeline(**components)).shape == (1, 8, 8, 3)
    assert GLIDEPipeline(*components.values()).super_res_unet is None


# -- torch.compile ----------------------------------------------------------------------------------------------------


def networks(pipe):
    return [name for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)]


@pytest.fixture
def compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(("task", "first"), [*((task, 0) for task in PIPELINES), ("text to image", 1)])
def test_compiled_components_serve(task, first, compiler):
    """Every other network is assigned, as diffusers' guides do, and the rest compiled in place."""
    pipe = PIPELINES[task]()
    before = draw(pipe)
    for index, name in enumerate(networks(pipe)):
        if index % 2 == first:
            setattr(pipe, name, torch.compile(getattr(pipe, name), backend="eager"))
        else:
            getattr(pipe, name).compile(backend="eager")
    np.testing.assert_allclose(draw(pipe), before, atol=1e-5)


def test_a_compiled_pipeline_saves_and_composes(tmp_path, expected, compiler):
    pipe = tiny_pipeline()
    for name in networks(pipe):
        setattr(pipe, name, torch.compile(getattr(pipe, name), backend="eager"))
    pipe.save_pretrained(tmp_path)
    np.testing.assert_allclose(draw(GLIDEPipeline.from_pretrained(tmp_path)), expected, atol=5e-4)
    assert draw(GLIDEImg2ImgPipeline.from_pipe(pipe)).shape == (1, 32, 32, 3)


def test_repeated_blocks_compile_within_torch_s_limit(compiler, monkeypatch):
    """OpenAI's pair, narrow: four levels and six, no two of the same width where the released ones differ."""
    monkeypatch.setattr(torch._dynamo.config, "fail_on_recompile_limit_hit", True)
    common = {"layers_per_block": 1, "text_hidden_size": WIDTH, "attention_head_dim": 4, "norm_num_groups": 4}
    base = {"block_out_channels": (4, 8, 12, 16), "attention_levels": (1, 2, 3), "sample_size": 16}
    upsampler = {"block_out_channels": (4, 8, 12, 16, 20, 24), "attention_levels": (3, 4, 5), "in_channels": 6}
    for sizes in (base, {**upsampler, "sample_size": 64}):
        unet = GLIDEUNet2DConditionModel(**GLIDEUNet2DConditionModel.glide_config(**common, **sizes)).eval()
        size = sizes["sample_size"]
        given = {"timestep": torch.tensor(500), "encoder_hidden_states": torch.randn(2, 5, WIDTH)}
        sample = torch.randn(2, 3, size, size)
        conditions = {"low_res": sample} if unet.is_upsampler else {}
        with torch.no_grad():
            before = unet(sample, **given, **conditions).sample
            unet.compile_repeated_blocks(backend="eager", fullgraph=True)
            torch.testing.assert_close(unet(sample, **given, **conditions).sample, before, atol=1e-5, rtol=1e-4)


# -- LoRA -------------------------------------------------------------------------------------------------------------


def adapter(model, targets, **settings):
    """An adapter that changes what the model does, and the model with it."""
    config = LoraConfig(**{"r": 2, "lora_alpha": 6, "init_lora_weights": False} | settings, target_modules=targets)
    torch.manual_seed(7)
    return get_peft_model(model, config)


def differ(left, right):
    return not np.allclose(left, right, atol=1e-3)


@pytest.mark.parametrize("pattern", [{}, {"rank_pattern": {"to_q": 1, "q_proj": 1}}], ids=["one rank", "two ranks"])
@pytest.mark.parametrize("component", ["unet", "text_encoder"])
def test_an_adapter_that_peft_saved(tmp_path, expected, component, pattern):
    """With its alpha, which the weights do not tell."""
    model, targets = (tiny_unet(3, 8, 1), UNET_TARGETS) if component == "unet" else (tiny_text_encoder(0), TEXT_TARGETS)
    adapter(model, targets, **pattern).save_pretrained(tmp_path)
    pipe = tiny_pipeline()
    setattr(pipe, component, PeftModel.from_pretrained(getattr(pipe, component), tmp_path).get_base_model())
    right = draw(pipe)
    assert differ(right, expected)
    for source in (str(tmp_path), str(tmp_path / "adapter_model.safetensors")):
        pipe = tiny_pipeline()
        pipe.load_lora_weights(source, adapter_name="style")
        assert pipe.get_list_adapters() == {component: ["style"]}
        np.testing.assert_allclose(draw(pipe), right, atol=1e-5)
        pipe.unload_lora_weights()
        np.testing.assert_allclose(draw(pipe), expected, atol=1e-5)


def test_an_adapter_of_one_network(tmp_path, expected):
    """As `save_lora_adapter` writes it, and as a state dict."""
    unet = tiny_unet(3, 8, 1)
    unet.add_adapter(LoraConfig(r=2, lora_alpha=6, target_modules=UNET_TARGETS, init_lora_weights=False))
    unet.save_lora_adapter(str(tmp_path))
    pipe = tiny_pipeline()
    pipe.unet = unet
    right = draw(pipe)
    assert differ(right, expected)
    pipe = tiny_pipeline()
    pipe.load_lora_weights(str(tmp_path))
    np.testing.assert_allclose(draw(pipe), right, atol=1e-5)
    weights = load_file(tmp_path / "pytorch_lora_weights.safetensors")
    pipe = tiny_pipeline()
    pipe.load_lora_weights(weights)
    assert differ(draw(pipe), expected)


def test_an_adapter_of_the_upsampler(tmp_path):
    adapter(tiny_unet(6, 32, 3), UNET_TARGETS).save_pretrained(tmp_path)
    before, pipe = draw(enlarger()), enlarger()
    pipe.load_lora_weights(str(tmp_path))
    assert differ(draw(pipe), before)
    assert list(pipe.get_list_adapters()) == ["super_res_unet"]


@pytest.mark.parametrize(
    "weights", [{"transformer.proj.lora_A.weight": torch.ones(2, 2)}, {"unet2.to_q.lora_A.weight": torch.ones(2, 2)}]
)
def test_an_adapter_of_something_else_is_named(weights):
    with pytest.raises(ValueError, match=r"No LoRA for GLIDEPipeline in the state dict.*`unet` or `text_encoder`"):
        tiny_pipeline().load_lora_weights(weights)


def both_adapters():
    """Adapter weights of a UNet and a text encoder, in the format of diffusers."""
    layers = {}
    for prefix, model, targets in (
        ("unet", tiny_unet(3, 8, 1), UNET_TARGETS),
        ("text_encoder", tiny_text_encoder(0), TEXT_TARGETS),
    ):
        torch.manual_seed(7)
        model.add_adapter(LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
        layers |= {f"{prefix}.{name}": 0.5 + value for name, value in get_peft_model_state_dict(model).items()}
    return layers


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_a_scale_of_the_call_scales_each_part(expected, part):
    pipe = tiny_pipeline()
    pipe.load_lora_weights({name: value for name, value in both_adapters().items() if name.startswith(part)})
    assert differ(draw(pipe), expected)
    np.testing.assert_allclose(draw(pipe, cross_attention_kwargs={"scale": 0.0}), expected, atol=1e-4)
    half = draw(pipe, cross_attention_kwargs={"scale": 0.5})
    assert differ(half, expected) and differ(half, draw(pipe))


def test_scales_by_block(expected):
    pipe = tiny_pipeline()
    pipe.load_lora_weights(
        {name: value for name, value in both_adapters().items() if name.startswith("unet")}, adapter_name="style"
    )
    whole = draw(pipe)
    pipe.set_adapters("style", {"unet": {"down": {"block_1": 0.5}, "mid": 0.0, "up": 0.0}})
    some = draw(pipe)
    assert differ(some, whole) and differ(some, expected)
    pipe.set_adapters("style", {"unet": {"down": 0.0, "mid": 0.0, "up": 0.0}})
    np.testing.assert_allclose(draw(pipe), expected, atol=1e-5)


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_a_pipeline_with_adapters_is_not_saved_without_them(tmp_path, part):
    pipe = tiny_pipeline()
    pipe.load_lora_weights({name: value for name, value in both_adapters().items() if name.startswith(part)})
    with pytest.raises(ValueError, match=rf"`{part}` holds LoRA adapters.*unload_lora_weights"):
        pipe.save_pretrained(tmp_path)
    assert not any(tmp_path.iterdir())
    pipe.fuse_lora()
    right = draw(pipe)
    pipe.unload_lora_weights()
    pipe.save_pretrained(tmp_path)
    np.testing.assert_allclose(draw(GLIDEPipeline.from_pretrained(tmp_path)), right, atol=5e-4)


# -- settings of the UNet ---------------------------------------------------------------------------------------------


def test_attention_that_ignores_the_prompt_is_refused(expected):
    pipe = tiny_pipeline()
    with pytest.raises(ValueError, match=r"`processor` must be .*AttnAddedKVProcessor.*AttnProcessor2_0 would ignore"):
        pipe.unet.set_attn_processor(AttnProcessor2_0())
    processors = dict.fromkeys(pipe.unet.attn_processors, AttnAddedKVProcessor())
    with pytest.raises(ValueError, match="AttnProcessor2_0"):
        pipe.unet.set_attn_processor({**processors, next(iter(processors)): AttnProcessor2_0()})
    np.testing.assert_array_equal(draw(pipe), expected)
    pipe.unet.set_attn_processor(processors)
    np.testing.assert_allclose(draw(pipe), expected, atol=1e-4)
    pipe.unet.set_default_attn_processor()


def test_settings_without_effect_are_refused():
    unet = tiny_unet()
    with pytest.raises(NotImplementedError, match="FreeU has no effect"):
        unet.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    with pytest.raises(NotImplementedError, match="has no effect on GLIDEUNet2DConditionModel"):
        unet.set_attention_backend("flash")
    with pytest.raises(ValueError):
        unet.fuse_qkv_projections()


# -- output -----------------------------------------------------------------------------------------------------------


def test_the_sample_itself_can_be_returned():
    pipe = tiny_pipeline()
    sample, image = draw(pipe, output_type="latent"), draw(pipe)
    assert sample.shape == (1, 3, 32, 32)
    np.testing.assert_allclose((sample / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy(), image, atol=1e-6)
