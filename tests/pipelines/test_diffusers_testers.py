"""What diffusers' and transformers' own testers ask of every pipeline and model, each demand once, over all of ours.

What a test of one class says already (tests/pipelines, tests/models, tests/schedulers) is not said again.
"""

import inspect

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from editing import quiet
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from tiny import (
    CONTEXT,
    WIDTH,
    tiny_call,
    tiny_clip,
    tiny_clip_pipeline,
    tiny_inpaint_pipeline,
    tiny_pipeline,
    tiny_text_encoder,
    tiny_unet,
)
from transformers import AutoModel

from glide_pipelines import (
    CLIPGuidedPipeline,
    GLIDEDDIMScheduler,
    GLIDEDDPMScheduler,
    GLIDEImg2ImgPipeline,
    GLIDEInpaintPipeline,
    GLIDEPipeline,
    GLIDESuperResolutionPipeline,
)


def sketch(seed):
    return np.random.default_rng(seed).random((32, 32, 3), dtype=np.float32)


MASK = np.kron(np.eye(2, dtype=np.float32), np.ones((16, 16), np.float32))


# Each pipeline, and what its call needs besides the prompt: for one image, by a number that tells images apart.
PIPELINES = {
    GLIDEPipeline: (tiny_pipeline, lambda seed: {}),
    GLIDEImg2ImgPipeline: (
        lambda: quiet(GLIDEImg2ImgPipeline.from_pipe(tiny_pipeline())),
        lambda seed: {"image": sketch(seed)},
    ),
    GLIDEInpaintPipeline: (tiny_inpaint_pipeline, lambda seed: {"image": sketch(seed), "mask_image": MASK}),
    GLIDESuperResolutionPipeline: (
        lambda: quiet(GLIDESuperResolutionPipeline.from_pipe(tiny_pipeline())),
        lambda seed: {"image": sketch(seed)[::4, ::4]},
    ),
    CLIPGuidedPipeline: (tiny_clip_pipeline, lambda seed: {}),
}
PROMPTS = ["a red circle", "a blue square"]


@pytest.fixture(params=PIPELINES, ids=lambda cls: cls.__name__)
def cls(request):
    return request.param


@pytest.fixture
def pipe(cls):
    return PIPELINES[cls][0]()


def call(pipe, seeds=(0,), **changes):
    """Images for the first prompts, each from its own seed."""
    inputs = [PIPELINES[type(pipe)][1](seed) for seed in seeds]
    given = {name: [each[name] for each in inputs] for name in inputs[0]}
    arguments = {
        "prompt": [PROMPTS[seed] for seed in seeds],
        "generator": [torch.Generator().manual_seed(seed) for seed in seeds],
        **given,
        **changes,
    }
    arguments = tiny_call(**arguments)
    if isinstance(pipe, GLIDESuperResolutionPipeline):
        del arguments["num_inference_steps"]
    return pipe(**arguments)


# -- pipelines --------------------------------------------------------------------------------------------------------


def test_the_call_takes_what_all_pipelines_take(cls):
    taken = {
        name for base in cls.__mro__ if "__call__" in vars(base) for name in inspect.signature(base.__call__).parameters
    }
    assert {
        "prompt",
        "num_images_per_prompt",
        "num_inference_steps",
        "generator",
        "latents",
        "prompt_embeds",
        "output_type",
        "return_dict",
        "callback_on_step_end",
        "callback_on_step_end_tensor_inputs",
    } <= taken


def test_a_batch_with_a_list_of_generators_equals_single_calls(pipe):
    batch = call(pipe, seeds=(0, 1)).images
    for seed in (0, 1):
        np.testing.assert_allclose(call(pipe, seeds=(seed,)).images[0], batch[seed], atol=1e-4)


def test_images_of_each_prompt(pipe):
    images = call(pipe, seeds=(0, 1), num_images_per_prompt=2, generator=torch.manual_seed(0)).images
    assert images.shape == (4, 32, 32, 3) and np.isfinite(images).all()
    assert not np.allclose(images[0], images[1]) and not np.allclose(images[0], images[2])


def test_a_tuple_holds_what_the_output_holds(pipe):
    (images,) = call(pipe, return_dict=False)
    np.testing.assert_array_equal(images, call(pipe).images)


def test_a_call_changes_none_of_its_inputs(pipe):
    given = PIPELINES[type(pipe)][1](0)
    before = {name: value.copy() for name, value in given.items()}
    call(pipe, **given)
    for name, value in before.items():
        np.testing.assert_array_equal(given[name], value)


@pytest.mark.parametrize("opener", [None, DiffusionPipeline], ids=["its class", "DiffusionPipeline"])
def test_save_and_load(pipe, tmp_path, opener):
    pipe.save_pretrained(tmp_path)
    loaded = quiet((opener or type(pipe)).from_pretrained(tmp_path))
    assert type(loaded) is type(pipe)
    np.testing.assert_allclose(call(loaded).images, call(pipe).images, atol=5e-4)


def test_optional_components_stay_none(pipe, tmp_path):
    for name in pipe._optional_components:
        setattr(pipe, name, None)
    pipe.save_pretrained(tmp_path)
    for opener in (type(pipe), DiffusionPipeline):
        loaded = opener.from_pretrained(tmp_path)
        assert {name for name, part in loaded.components.items() if part is None} == set(pipe._optional_components)


def test_a_dtype_for_each_component(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    name = "super_res_unet"
    loaded = type(pipe).from_pretrained(tmp_path, dtype={name: torch.bfloat16, "default": torch.float32})
    dtypes = {key: part.dtype for key, part in loaded.components.items() if isinstance(part, torch.nn.Module)}
    assert dtypes.pop(name) == torch.bfloat16 and set(dtypes.values()) == {torch.float32}
    assert np.isfinite(call(quiet(loaded)).images).all()


def test_a_variant_that_is_missing_is_named(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="variant=fp16"):
        type(pipe).from_pretrained(tmp_path, variant="fp16")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_finite_and_close(pipe, dtype):
    exact = call(pipe).images
    half = call(pipe.to(dtype)).images
    assert np.isfinite(half).all() and np.abs(half - exact).mean() < 0.05


def test_callbacks_see_what_they_ask_for(pipe):
    seen = []

    def look(pipe, step, timestep, tensors):
        seen.append((step, set(tensors)))
        return tensors

    names = pipe._callback_tensor_inputs
    call(pipe, callback_on_step_end=look, callback_on_step_end_tensor_inputs=names)
    assert [step for step, _ in seen] == list(range(pipe.num_timesteps))
    assert all(tensors == set(names) for _, tensors in seen)
    seen.clear()
    call(pipe, callback_on_step_end=look, callback_on_step_end_tensor_inputs=names[:1])
    assert all(tensors == set(names[:1]) for _, tensors in seen)


def test_zeros_in_the_last_callback_give_zeros(pipe):
    def zero(pipe, step, timestep, tensors):
        return {"latents": torch.zeros_like(tensors["latents"])} if step == pipe.num_timesteps - 1 else {}

    sample = call(pipe, callback_on_step_end=zero, output_type="latent").images
    if isinstance(pipe, GLIDEInpaintPipeline) and not isinstance(pipe, CLIPGuidedPipeline):
        sample = sample * torch.from_numpy(MASK)  # what the mask keeps is the image's own
    assert sample.abs().max() == 0


def test_progress_bars_can_be_switched_off(pipe, capsys):
    pipe.set_progress_bar_config(disable=False)
    call(pipe)
    assert "it/s" in capsys.readouterr().err
    pipe.set_progress_bar_config(disable=True)
    call(pipe)
    assert "it/s" not in capsys.readouterr().err


def test_encode_prompt_gives_arguments_of_the_call(pipe):
    names = ("prompt_embeds", "negative_prompt_embeds", "super_res_prompt_embeds")
    embeds = dict(zip(names, pipe.encode_prompt(PROMPTS[:1]), strict=True))
    given = {name: value for name, value in embeds.items() if value is not None}
    if isinstance(pipe, GLIDESuperResolutionPipeline):
        assert set(given) == {"super_res_prompt_embeds"}
    if isinstance(pipe, CLIPGuidedPipeline):
        given |= {"clip_prompt_embeds": pipe.encode_clip_prompt(PROMPTS[:1])}
    right = call(pipe).images
    for name in ("tokenizer", "text_encoder", "super_res_text_encoder", "clip_tokenizer"):
        if name in pipe.components:
            setattr(pipe, name, None)
    np.testing.assert_allclose(call(pipe, prompt=None, **given).images, right, atol=1e-4)


@pytest.mark.parametrize("way", ["model", "group", "layerwise"])
def test_ways_to_save_memory_change_nothing(pipe, way):
    right = call(pipe).images
    if way == "model":
        pipe.enable_model_cpu_offload(device="cpu")
    elif way == "group":
        pipe.enable_group_offload(onload_device=torch.device("cpu"), offload_type="leaf_level")
    else:  # weights rest in bfloat16
        pipe.super_res_unet.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
    for _ in range(2):
        difference = np.abs(call(pipe).images - right)
        assert difference.mean() < 0.05 if way == "layerwise" else difference.max() < 1e-4


# -- LoRA -------------------------------------------------------------------------------------------------------------


def lora(pipe, seed):
    """Adapter weights of the pipeline's UNet, in the format of diffusers."""
    name = pipe.unet_name
    unet = getattr(PIPELINES[type(pipe)][0](), name)
    torch.manual_seed(seed)
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"], init_lora_weights=False))
    return {f"{name}.{key}": 0.5 + value for key, value in get_peft_model_state_dict(unet).items()}


def test_several_adapters(pipe):
    """Alone, together, weighted, switched off and on, deleted."""
    plain = call(pipe).images
    images = {}
    for seed, name in enumerate(("one", "two")):
        pipe.load_lora_weights(lora(pipe, seed), adapter_name=name)
        pipe.set_adapters(name)
        images[name] = call(pipe).images
        assert pipe.get_active_adapters() == [name]
    pipe.set_adapters(["one", "two"], [1.0, 0.5])
    both = call(pipe).images
    assert all(not np.allclose(both, other, atol=1e-3) for other in (plain, *images.values()))
    pipe.set_adapters(["one", "two"], [1.0, 0.0])
    np.testing.assert_allclose(call(pipe).images, images["one"], atol=1e-4)
    pipe.disable_lora()
    np.testing.assert_allclose(call(pipe).images, plain, atol=1e-4)
    pipe.enable_lora()
    pipe.delete_adapters("two")
    pipe.set_adapters("one")
    np.testing.assert_allclose(call(pipe).images, images["one"], atol=1e-4)
    pipe.delete_adapters("one")
    np.testing.assert_allclose(call(pipe).images, plain, atol=1e-4)


def test_nan_is_not_fused(pipe):
    weights = lora(pipe, 0)
    weights[next(iter(weights))].fill_(torch.nan)
    pipe.load_lora_weights(weights)
    with pytest.raises(ValueError, match="NaN"):
        pipe.fuse_lora(components=[pipe.unet_name], safe_fusing=True)


# -- schedulers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", [GLIDEDDPMScheduler, GLIDEDDIMScheduler])
def test_schedulers_have_what_pipelines_of_diffusers_use(scheduler):
    made = scheduler()
    sample = torch.randn(2, 3, 4, 4)
    assert made.order == 1 and made.init_noise_sigma == 1.0
    assert torch.equal(made.scale_model_input(sample, 5), sample)
    made.set_timesteps(5, device="cpu")
    assert len(made.timesteps) == made.num_inference_steps == 5
    for timestep in made.timesteps:
        sample = made.step(torch.randn(2, 6, 4, 4), timestep, sample).prev_sample
    assert sample.shape == (2, 3, 4, 4) and sample.isfinite().all()


# -- models -----------------------------------------------------------------------------------------------------------


def text(batch=2):
    torch.manual_seed(0)
    return torch.randint(0, 257, (batch, CONTEXT)), torch.arange(CONTEXT)[None].expand(batch, -1) < 5


def clip_inputs():
    input_ids, attention_mask = text()
    torch.manual_seed(1)
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "sample": torch.randn(2, 3, 8, 8),
        "timesteps": torch.tensor([3, 700]),
    }


def tower_inputs(*names):
    return {name: value for name, value in clip_inputs().items() if name in names}


def unet_inputs():
    torch.manual_seed(0)
    return {
        "sample": torch.randn(2, 3, 8, 8),
        "timestep": torch.tensor(500),
        "encoder_hidden_states": torch.randn(2, CONTEXT, WIDTH),
    }


MODELS = {
    "unet": (tiny_unet, unet_inputs),
    "text encoder": (tiny_text_encoder, lambda: dict(zip(("input_ids", "attention_mask"), text(), strict=True))),
    "noised CLIP": (tiny_clip, clip_inputs),
    "text tower": (lambda: tiny_clip().text_model, lambda: tower_inputs("input_ids", "attention_mask")),
    "image tower": (lambda: tiny_clip().vision_model, lambda: tower_inputs("sample", "timesteps")),
}


@pytest.fixture(params=MODELS.values(), ids=MODELS)
def model_and_inputs(request):
    make, inputs = request.param
    return make(), inputs()


def tensors(output):
    """Of a model: a tensor, a tuple or an output."""
    if isinstance(output, torch.Tensor):
        return [output]
    values = output if isinstance(output, tuple) else output.to_tuple()
    return [value for value in values if isinstance(value, torch.Tensor)]


@torch.no_grad()
def run(model, inputs, **options):
    return tensors(model(**inputs, **options))


def assert_equal(left, right, atol=5e-5):
    assert len(left) == len(right) > 0
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a.float(), b.float(), atol=atol, rtol=0)


def test_a_model_repeats_itself(model_and_inputs):
    assert_equal(run(*model_and_inputs), run(*model_and_inputs), atol=0)


def test_a_model_gives_tuples_too(model_and_inputs):
    model, inputs = model_and_inputs
    if "return_dict" in inspect.signature(model.forward).parameters:
        assert isinstance(model(**inputs, return_dict=False), tuple)
        assert_equal(run(model, inputs, return_dict=False), run(model, inputs), atol=0)


def test_a_model_saves_and_loads(model_and_inputs, tmp_path):
    model, inputs = model_and_inputs
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert loaded.training is False
    assert_equal(run(loaded, inputs), run(model, inputs))
    half = type(model).from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16


def test_a_tower_opens_the_folder_of_the_whole_model(tmp_path):
    clip = tiny_clip()
    clip.save_pretrained(tmp_path)
    for tower, names in (
        (clip.text_model, ("input_ids", "attention_mask")),
        (clip.vision_model, ("sample", "timesteps")),
    ):
        inputs = tower_inputs(*names)
        assert_equal(run(type(tower).from_pretrained(tmp_path), inputs), run(tower, inputs))


def test_a_model_trains(model_and_inputs):
    """Every weight gets a gradient, but what the inputs do not use."""
    model, inputs = model_and_inputs
    model.train()
    loss = sum((tensor.float() ** 2).mean() for tensor in tensors(model(**inputs)))
    loss.backward()
    without = {name for name, weight in model.named_parameters() if weight.grad is None}
    assert without <= {"logit_scale"}
    assert all(weight.grad.isfinite().all() for weight in model.parameters() if weight.grad is not None)


def test_a_new_model_is_finite_and_of_ordinary_size(model_and_inputs):
    model, _ = model_and_inputs
    torch.manual_seed(0)
    fresh = type(model)(model.config) if hasattr(model, "post_init") else type(model).from_config(model.config)
    for name, weight in fresh.named_parameters():
        assert weight.isfinite().all() and weight.abs().mean() < 10, name


def test_hidden_states_of_the_text_encoder():
    model, (input_ids, attention_mask) = tiny_text_encoder(), text()
    output = model(input_ids, attention_mask, output_hidden_states=True)
    assert len(output.hidden_states) == model.config.num_hidden_layers + 1
    assert torch.equal(model.final_layer_norm(output.hidden_states[-1]), output.last_hidden_state)
    assert model(input_ids, attention_mask).hidden_states is None
    as_tuple = model(input_ids, attention_mask, output_hidden_states=True, return_dict=False)
    assert torch.equal(as_tuple[1][0], output.hidden_states[0])
    model.config.output_hidden_states = True
    assert len(model(input_ids, attention_mask).hidden_states) == len(output.hidden_states)


def test_transformers_finds_the_embeddings():
    model = tiny_text_encoder()
    assert model.get_input_embeddings() is model.token_embedding
    model.resize_token_embeddings(300)
    assert model.token_embedding.weight.shape == (300, WIDTH) and model.config.vocab_size == 300


def test_transformers_opens_the_text_encoder_by_its_config(tmp_path):
    model = tiny_text_encoder()
    model.save_pretrained(tmp_path)
    assert type(AutoModel.from_pretrained(tmp_path)) is type(model)
