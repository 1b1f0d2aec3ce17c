"""`GLIDEPipeline`: what a user of diffusers expects of a pipeline."""

import inspect

import diffusers
import numpy as np
import PIL.Image
import pytest
import torch
import torch.nn.functional as F
from denoising import take_step
from diffusers.callbacks import PipelineCallback
from diffusers.guiders import (
    AdaptiveProjectedGuidance,
    ClassifierFreeGuidance,
    SkipLayerGuidance,
)
from safetensors.torch import load_file
from tiny import CONTEXT, WIDTH, tiny_call, tiny_components, tiny_pipeline, tiny_unet

from glide_pipelines import (
    GLIDEDDIMScheduler,
    GLIDEDDPMScheduler,
    GLIDEImg2ImgPipeline,
    GLIDEPipeline,
    GLIDEPipelineOutput,
)
from glide_pipelines.sampling import SchedulerRun


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


@pytest.fixture(scope="module")
def base_only():
    return tiny_pipeline(upsampler=False)


def draw(pipe, **changes):
    return pipe(**tiny_call(**changes)).images


# -- what comes out ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompts", [1, 2])
@pytest.mark.parametrize("num_images", [1, 2])
def test_number_and_size_of_pictures(pipe, prompts, num_images):
    prompt = "a red circle" if prompts == 1 else ["a red circle", "a blue square"]
    images = draw(pipe, prompt=prompt, num_images_per_prompt=num_images)
    assert images.shape == (prompts * num_images, 32, 32, 3)
    assert images.min() >= 0 and images.max() <= 1


def test_output_types_agree(pipe):
    pil, array, tensor = (draw(pipe, output_type=kind) for kind in ("pil", "np", "pt"))
    assert isinstance(pil[0], PIL.Image.Image) and pil[0].mode == "RGB"
    np.testing.assert_array_equal(np.asarray(pil[0]), (array[0] * 255).round().astype("uint8"))
    np.testing.assert_array_equal(tensor.permute(0, 2, 3, 1).numpy(), array)


def test_tuple_equals_output(pipe):
    output = pipe(**tiny_call())
    assert isinstance(output, GLIDEPipelineOutput)
    np.testing.assert_array_equal(pipe(**tiny_call(return_dict=False))[0], output.images)


def test_a_generator_repeats_the_picture(pipe):
    np.testing.assert_array_equal(draw(pipe), draw(pipe))
    assert not np.allclose(draw(pipe), draw(pipe, generator=torch.Generator().manual_seed(1)))


def test_defaults_are_the_released_ones(pipe):
    steps = []
    pipe(
        "a red circle",
        output_type="np",
        callback_on_step_end=lambda pipe, step, timestep, tensors: steps.append((pipe.stage, int(timestep))) or {},
    )
    assert [t for stage, t in steps if stage == "base"] == GLIDE_100
    fast27 = [997, 800, 799, 600, 599, 500, 400, 399, 377, 355, 333, 311, 288, 266]
    fast27 += [244, 222, 200, 199, 177, 155, 133, 111, 88, 66, 44, 22, 0]
    assert [t for stage, t in steps if stage == "super_res"] == fast27
    defaults = {name: p.default for name, p in inspect.signature(pipe.__call__).parameters.items()}
    assert (pipe.default_guidance_scale, defaults["upsample_temperature"]) == (3.0, 0.997)


GLIDE_100 = [round(999 / 99 * i) for i in range(100)][::-1]


def test_without_an_upsampler_the_base_picture_is_returned(base_only):
    assert draw(base_only).shape == (1, 8, 8, 3)


def test_sizes_are_those_of_the_returned_picture(pipe, base_only):
    assert draw(pipe, height=40, width=24).shape == (1, 40, 24, 3)
    assert draw(base_only, height=10, width=12).shape == (1, 10, 12, 3)


def test_a_size_far_from_training_gets_a_warning(base_only, caplog):
    draw(base_only, height=16, width=8)
    assert not caplog.records
    draw(base_only, height=16, width=16)
    assert "trained on images of 8 x 8" in caplog.text


# -- prompts ----------------------------------------------------------------------------------------------------------


def test_prompts_and_negative_prompts_matter(pipe):
    picture = draw(pipe)
    assert not np.allclose(picture, draw(pipe, prompt="blue"))
    assert not np.allclose(picture, draw(pipe, negative_prompt="blue"))
    np.testing.assert_array_equal(picture, draw(pipe, negative_prompt=""))


def test_case_does_not_matter(pipe):
    np.testing.assert_array_equal(draw(pipe), draw(pipe, prompt="A Red CIRCLE"))


def test_a_batch_equals_single_pictures(pipe):
    prompts = ["red", "a blue square", ""]
    seeds = [torch.Generator().manual_seed(i) for i in range(3)]
    together = draw(pipe, prompt=prompts, negative_prompt=["", "x", "y"], generator=seeds)
    for i, (prompt, negative) in enumerate(zip(prompts, ["", "x", "y"], strict=True)):
        single = draw(pipe, prompt=prompt, negative_prompt=negative, generator=torch.Generator().manual_seed(i))
        np.testing.assert_allclose(single[0], together[i], atol=1e-4)


def test_pictures_of_one_prompt_stand_together(pipe):
    generators = [torch.Generator().manual_seed(i) for i in (0, 0, 1, 1)]
    first, second, third, fourth = draw(pipe, prompt=["red", "blue"], num_images_per_prompt=2, generator=generators)
    np.testing.assert_allclose(first, second, atol=1e-5)
    np.testing.assert_allclose(third, fourth, atol=1e-5)
    assert not np.allclose(first, third)


def test_encode_prompt_stands_alone(pipe):
    """Its results may be passed in place of the prompt, to a pipeline that has no text encoders at all."""
    embeds = pipe.encode_prompt("a red circle", negative_prompt="blue")
    names = ("prompt_embeds", "negative_prompt_embeds", "super_res_prompt_embeds")
    components = tiny_components() | dict.fromkeys(("tokenizer", "text_encoder", "super_res_text_encoder"))
    bare = GLIDEPipeline(**components)
    bare.set_progress_bar_config(disable=True)
    given = dict(zip(names, embeds, strict=True))
    assert all(embeds.shape == (1, CONTEXT, WIDTH) for embeds in given.values())
    np.testing.assert_allclose(draw(bare, prompt=None, **given), draw(pipe, negative_prompt="blue"), atol=1e-5)
    np.testing.assert_allclose(draw(pipe, prompt=None, **given), draw(pipe, negative_prompt="blue"), atol=1e-5)
    only_text = GLIDEPipeline(**tiny_components() | dict.fromkeys(("unet", "super_res_unet")))
    for mine, theirs in zip(only_text.encode_prompt("a red circle", negative_prompt="blue"), embeds, strict=True):
        assert torch.equal(mine, theirs)


def test_embeddings_are_repeated_for_each_picture(pipe):
    one = pipe.encode_prompt(["red", "blue"])
    three = pipe.encode_prompt(["red", "blue"], num_images_per_prompt=3)
    for single, repeated in zip(one, three, strict=True):
        assert torch.equal(repeated, single.repeat_interleave(3, dim=0))


def test_without_guidance_nothing_negative_is_encoded(pipe):
    assert pipe.encode_prompt("red", do_classifier_free_guidance=False)[1] is None


def test_a_literal_end_token_is_text(pipe):
    tokens = pipe.tokenize("<|endoftext|>")
    assert tokens.attention_mask.all() and (tokens.input_ids != 257).all()


def test_prompts_are_padded_and_masked(pipe):
    tokens = pipe.tokenize(["", "re"])
    assert tokens.attention_mask.sum(dim=1).tolist() == [0, 1]
    assert (tokens.input_ids[0] == 257).all() and tokens.input_ids.shape == (2, CONTEXT)


def test_a_long_prompt_is_cut_with_a_warning(pipe, caplog):
    tokens = pipe.tokenize("a" * CONTEXT)
    assert not caplog.records
    longer = pipe.tokenize("a" * (CONTEXT + 3))
    assert torch.equal(tokens.input_ids, longer.input_ids)
    assert f"has {CONTEXT + 3} tokens" in caplog.text
    caplog.clear()
    pipe.encode_prompt("a" * (CONTEXT + 3))
    assert len(caplog.records) == 1  # of both text encoders


def test_a_prompt_outside_the_shapes_world_gets_a_warning(caplog):
    pipe = GLIDEPipeline(**tiny_components(), prompt_domain="shapes")
    pipe.encode_prompt("a red circle above a blue square")
    assert "outside" not in caplog.text
    pipe.encode_prompt(["a red circle", "an oil painting of a corgi"])
    assert "'an oil painting of a corgi' is outside it" in caplog.text


@pytest.mark.parametrize("domain", ["__main__", "training", "a world of somebody else's package"])
def test_a_prompt_domain_that_is_no_world_imports_nothing(domain):
    """It comes out of a file; `glide_pipelines.__main__` would run the command."""
    pipe = GLIDEPipeline(**tiny_components(), prompt_domain=domain)
    assert pipe.encode_prompt("a red circle")[0] is not None


def test_a_lora_may_know_prompts_that_its_model_does_not(caplog):
    LoraConfig = pytest.importorskip("peft").LoraConfig
    pipe = GLIDEPipeline(**tiny_components(), prompt_domain="shapes")
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
    pipe.encode_prompt("an oil painting of a corgi")
    assert "outside" not in caplog.text


# -- sampling ---------------------------------------------------------------------------------------------------------


def test_latents_take_the_place_of_noise(pipe):
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 3, 8, 8, generator=generator)
    for _ in range(2):  # the base stage's own draws
        torch.randn(1, 3, 8, 8, generator=generator)
    super_res_latents = torch.randn(1, 3, 32, 32, generator=generator)
    # With the draws in this order, passing them changes nothing.
    rest = torch.Generator().manual_seed(0)
    torch.randn(1, 3, 8, 8, generator=rest)
    given = draw(pipe, latents=latents, super_res_latents=super_res_latents, generator=rest)
    np.testing.assert_array_equal(given, draw(pipe))


def test_guidance_scale_one_skips_the_second_pass(base_only):
    batches = []
    hook = base_only.unet.register_forward_hook(lambda module, args, output: batches.append(len(output.sample)))
    try:
        without = draw(base_only, guidance_scale=1.0)
        draw(base_only, guidance_scale=3.0)
    finally:
        hook.remove()
    assert batches == [1, 1, 2, 2]
    # It is the limit of guidance, not another formula.
    np.testing.assert_allclose(without, draw(base_only, guidance_scale=1.0 + 1e-6), atol=1e-4)


def test_text_is_encoded_once(pipe):
    calls = []
    hooks = [
        encoder.register_forward_hook(lambda *_: calls.append(1))
        for encoder in (pipe.text_encoder, pipe.super_res_text_encoder)
    ]
    try:
        draw(pipe, num_inference_steps=4)
    finally:
        for hook in hooks:
            hook.remove()
    assert len(calls) == 3  # prompt and empty prompt of the base, prompt of the upsampler


def test_numbers_lists_and_strings_of_timesteps(pipe):
    timesteps = GLIDEDDPMScheduler()
    timesteps.set_timesteps(4)
    expected = draw(pipe, num_inference_steps=4)
    np.testing.assert_array_equal(expected, draw(pipe, timesteps=timesteps.timesteps.tolist()))
    # `timesteps` beats `num_inference_steps`.
    np.testing.assert_array_equal(expected, draw(pipe, timesteps="4", num_inference_steps=9))
    np.testing.assert_array_equal(draw(pipe, super_res_timesteps="1,2"), draw(pipe, super_res_timesteps=[999, 500, 0]))
    assert pipe.num_timesteps == 5


def test_numbers_of_numpy_are_numbers(pipe):
    numbers = {"guidance_scale": np.float32(2), "num_images_per_prompt": np.int64(2), "height": np.int64(24)}
    steps = {"num_inference_steps": np.int64(3), "super_res_timesteps": list(np.array([900, 100]))}
    expected = draw(
        pipe,
        guidance_scale=2,
        num_images_per_prompt=2,
        height=24,
        num_inference_steps=3,
        super_res_timesteps=[900, 100],
    )
    np.testing.assert_array_equal(draw(pipe, **numbers, **steps), expected)


def test_eta_reaches_ddim(base_only):
    ddim = GLIDEPipeline.from_pipe(base_only, scheduler=GLIDEDDIMScheduler(beta_schedule="squaredcos_cap_v2"))
    assert not np.allclose(draw(ddim, eta=1.0), draw(ddim, eta=0.0))


def test_upsample_temperature(pipe):
    assert not np.allclose(draw(pipe, upsample_temperature=0.5), draw(pipe))


def test_a_cond_fn_steers_the_base_stage(base_only):
    seen = []

    def towards_white(x_t, timestep):
        seen.append((tuple(x_t.shape), timestep.tolist()))
        return torch.full_like(x_t, 50.0)

    brighter = draw(base_only, cond_fn=towards_white, num_inference_steps=4)
    assert seen[0] == ((1, 3, 8, 8), [999]) and len(seen) == 4
    assert brighter.mean() > draw(base_only, num_inference_steps=4).mean() + 0.05


STOCK = [
    "DDPMScheduler",
    "DDIMScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "UniPCMultistepScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "DEISMultistepScheduler",
    "PNDMScheduler",
]


class KnowsThePicture(torch.nn.Module):
    """A UNet that knows the picture: its noise prediction is the one that leads there."""

    def __init__(self, unet, picture, process):
        super().__init__()
        self.unet, self.picture, self.process = unet, picture, process
        self.config, self.dtype, self.device = unet.config, unet.dtype, unet.device
        self.size_multiple = unet.size_multiple

    def forward(self, sample, timestep, **kwargs):
        # Off the training steps (Karras spacing) the nearest one serves.
        noise = self.process.predict_noise(sample, self.picture, int(torch.as_tensor(timestep).round()))
        return diffusers.models.unets.unet_2d_condition.UNet2DConditionOutput(
            torch.cat([noise, torch.zeros_like(noise)], dim=1)
        )


@pytest.mark.parametrize("name", STOCK)
def test_stock_schedulers_reach_the_picture(base_only, name):
    """In the place of GLIDE's scheduler, made from its config, any of them draws what the model knows."""
    scheduler = getattr(diffusers, name).from_config(base_only.scheduler.config)
    pipe = GLIDEPipeline.from_pipe(base_only, scheduler=scheduler)
    pipe.set_progress_bar_config(disable=True)
    picture = (torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(3)) * 2 - 1) * 0.9
    pipe.unet = KnowsThePicture(base_only.unet, picture, base_only.scheduler.train_process)
    image = draw(pipe, num_inference_steps=20, guidance_scale=1.0, output_type="pt")
    assert (image * 2 - 1 - picture).abs().max() < 0.1


@pytest.mark.parametrize("name", STOCK)
def test_known_pixels_and_gradients_work_with_stock_schedulers(base_only, name):
    """The noise prediction is rewritten for schedulers that have no hook of their own."""
    scheduler = getattr(diffusers, name).from_config(base_only.scheduler.config)
    known = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(3)) * 2 - 1
    alphas_cumprod, results = scheduler.alphas_cumprod.tolist(), {}
    for kind in ("known", "gradient", "plain"):
        run = SchedulerRun(scheduler, num_inference_steps=20, generator=torch.Generator().manual_seed(0))
        generator = torch.Generator().manual_seed(1)
        sample = torch.randn(1, 3, 8, 8, generator=generator) * run.init_noise_sigma
        for i, timestep in enumerate(run.timesteps):
            noise = 0.5 * torch.randn(1, 3, 8, 8, generator=generator)
            hooks = {
                "known": {"denoised_fn": lambda x_start: known},
                # As one of x_0 would be: next to nothing where x_t is all noise.
                "gradient": {"cond_grad": torch.full_like(sample, alphas_cumprod[int(timestep)] ** 0.5)},
                "plain": {},
            }[kind]
            sample = take_step(run, i, noise, torch.zeros_like(noise), sample, **hooks)
        results[kind] = sample
    assert all(result.isfinite().all() for result in results.values())
    torch.testing.assert_close(results["known"], known, atol=0.1, rtol=0)
    assert results["gradient"].mean() > results["plain"].mean() + 0.01


def test_the_steps_that_a_checkpoint_recommends_are_the_default_where_the_prompt_decides(pipe):
    base, upsampler = pipe.scheduler.config, pipe.super_res_scheduler.config
    pipe = GLIDEPipeline.from_pipe(
        pipe,
        scheduler=GLIDEDDIMScheduler.from_config(base, default_timesteps=[900, 400]),
        super_res_scheduler=GLIDEDDIMScheduler.from_config(upsampler, default_timesteps=[700]),
    )
    pipe.set_progress_bar_config(disable=True)
    steps = []

    def keep(pipe, step, timestep, tensors):
        steps.append(int(timestep))
        return {}

    call = {"output_type": "np", "callback_on_step_end": keep}
    pipe("red", **call)
    assert steps == [900, 400, 700]
    steps.clear()
    pipe("red", **call, cond_fn=lambda x_t, timestep: torch.zeros_like(x_t))
    assert steps == [*GLIDE_100, 700], "a gradient needs time"
    steps.clear()
    sketch = GLIDEImg2ImgPipeline.from_pipe(pipe)
    sketch.set_progress_bar_config(disable=True)
    sketch("red", image=PIL.Image.new("RGB", (16, 16)), strength=0.03, **call)
    assert steps == [*GLIDE_100[-3:], 700]
    steps.clear()
    pipe("red", num_inference_steps=3, super_res_num_inference_steps=1, **call)
    assert steps == [999, 500, 0, 700]


def test_stock_schedulers_have_the_default_numbers_of_steps(pipe, caplog):
    own = GLIDEDDIMScheduler.from_config(pipe.scheduler.config, default_timesteps=[900, 400])
    stock = GLIDEPipeline.from_pipe(
        pipe,
        scheduler=diffusers.DDIMScheduler.from_config(own.config),
        super_res_scheduler=diffusers.UniPCMultistepScheduler.from_config(pipe.super_res_scheduler.config),
    )
    stock.set_progress_bar_config(disable=True)
    steps = []
    stock("red", output_type="np", callback_on_step_end=lambda pipe, *_: steps.append(pipe.stage) or {})
    assert (steps.count("base"), steps.count("super_res")) == (100, 27)
    assert not caplog.records, "diffusers warns of settings that it does not know"


def test_a_call_leaves_the_scheduler_as_it_is(base_only):
    """Each call steps a copy: another call may run at the same time."""
    draw(base_only, num_inference_steps=7)
    assert base_only.scheduler.num_inference_steps is None


def test_a_scheduler_for_other_predictions_is_refused(base_only):
    for scheduler in (
        diffusers.FlowMatchEulerDiscreteScheduler(),
        diffusers.DDIMScheduler(prediction_type="sample"),
    ):
        with pytest.raises(ValueError, match="`scheduler` must step predictions of noise or v"):
            draw(GLIDEPipeline.from_pipe(base_only, scheduler=scheduler))


# -- guiders ----------------------------------------------------------------------------------------------------------


def test_the_classifier_free_guider_is_the_default_guidance(base_only):
    np.testing.assert_allclose(
        draw(base_only, guider=ClassifierFreeGuidance(guidance_scale=3.0)), draw(base_only), atol=1e-5
    )


@pytest.mark.parametrize(
    "guider",
    [
        ClassifierFreeGuidance(guidance_scale=3.0, guidance_rescale=0.7),
        ClassifierFreeGuidance(guidance_scale=3.0, start=0.25, stop=0.75),
        AdaptiveProjectedGuidance(guidance_scale=3.0, adaptive_projected_guidance_momentum=-0.5),
    ],
    ids=["rescale", "interval", "APG"],
)
def test_other_guiders_change_the_picture_and_repeat_themselves(base_only, guider):
    picture = draw(base_only, guider=guider, num_inference_steps=4)
    assert np.isfinite(picture).all()
    assert not np.allclose(picture, draw(base_only, num_inference_steps=4))
    np.testing.assert_array_equal(picture, draw(base_only, guider=guider, num_inference_steps=4))


def test_an_interval_guider_saves_passes(base_only):
    batches = []
    hook = base_only.unet.register_forward_hook(lambda module, args, output: batches.append(len(output.sample)))
    try:
        draw(base_only, guider=ClassifierFreeGuidance(3.0, start=0.25, stop=0.75), num_inference_steps=4)
    finally:
        hook.remove()
    assert batches == [1, 2, 2, 1]


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, True), ({"guidance_scale": 1.0}, False), ({"guidance_scale": 1.0, "guider": ClassifierFreeGuidance()}, True)],
)
def test_a_callback_knows_whether_the_call_is_guided(base_only, given, expected):
    seen = []
    keep = lambda pipe, step, timestep, tensors: seen.append(pipe.do_classifier_free_guidance) or {}  # noqa: E731
    draw(base_only, **given, num_inference_steps=2, callback_on_step_end=keep)
    assert seen == [expected] * 2


def test_a_prompt_may_be_changed_in_place(base_only):
    def in_place(pipe, step, timestep, tensors):
        tensors["prompt_embeds"].mul_(-1)
        return {}

    def returned(pipe, step, timestep, tensors):
        return {"prompt_embeds": -tensors["prompt_embeds"]}

    images = [
        draw(
            base_only,
            num_inference_steps=3,
            callback_on_step_end=callback,
            callback_on_step_end_tensor_inputs=["prompt_embeds"],
        )
        for callback in (in_place, returned)
    ]
    np.testing.assert_array_equal(*images)
    assert np.abs(images[0] - draw(base_only, num_inference_steps=3)).max() > 1e-3


def test_a_guider_that_hooks_transformer_layers_is_refused(base_only):
    with pytest.raises(ValueError, match=r"`guider` must only combine .* SkipLayerGuidance"):
        draw(base_only, guider=SkipLayerGuidance(skip_layer_guidance_layers=[0]))
    with pytest.raises(TypeError, match="`guider`"):
        draw(base_only, guider=3.0)


# -- callbacks and progress -------------------------------------------------------------------------------------------


def test_before_the_first_call_there_is_nothing_to_tell():
    pipe = tiny_pipeline()
    assert (pipe.guidance_scale, pipe.num_timesteps, pipe.interrupt, pipe.stage) == (None, 0, False, None)


def test_timesteps_are_evaluations_of_the_model(base_only):
    for name, evaluations in (("HeunDiscreteScheduler", 5), ("PNDMScheduler", 4)):
        scheduler = getattr(diffusers, name).from_config(base_only.scheduler.config)
        pipe, seen = GLIDEPipeline.from_pipe(base_only, scheduler=scheduler), []
        pipe.set_progress_bar_config(disable=True)
        draw(pipe, num_inference_steps=3, callback_on_step_end=lambda p, i, *_, seen=seen: seen.append(i) or {})
        assert seen == list(range(evaluations)) and pipe.num_timesteps == evaluations


def test_callbacks_count_over_both_stages(pipe):
    seen = []

    def callback(pipe, step, timestep, tensors):
        seen.append((step, pipe.stage, sorted(tensors), tuple(tensors["latents"].shape[-2:])))
        return tensors

    names = GLIDEPipeline._callback_tensor_inputs
    draw(pipe, callback_on_step_end=callback, callback_on_step_end_tensor_inputs=names, num_inference_steps=3)
    assert [step for step, *_ in seen] == [0, 1, 2, 3, 4] and pipe.num_timesteps == 5
    assert [stage for _, stage, *_ in seen] == ["base"] * 3 + ["super_res"] * 2
    assert seen[0][2:] == (sorted(names), (8, 8)) and seen[-1][3] == (32, 32)
    assert pipe.stage is None


def test_zeroing_the_sample_in_the_last_callback_gives_gray(pipe):
    def callback(pipe, step, timestep, tensors):
        return {"latents": torch.zeros_like(tensors["latents"])} if step == pipe.num_timesteps - 1 else {}

    assert (draw(pipe, callback_on_step_end=callback) == 0.5).all()


def test_a_change_of_guidance_in_a_callback_counts(base_only):
    def callback(pipe, step, timestep, tensors):
        pipe._guidance_scale = 1.0
        return tensors

    changed = draw(base_only, callback_on_step_end=callback, num_inference_steps=4)
    assert not np.allclose(changed, draw(base_only, num_inference_steps=4))


@pytest.mark.parametrize(
    ("returned", "error", "message"),
    [
        ({"image": torch.zeros(1, 3, 8, 8)}, ValueError, "may return 'latents', .*, got 'image'"),
        (
            {"latents": torch.zeros(1, 3, 4, 4)},
            ValueError,
            r"return 'latents' of the shape \[1, 3, 8, 8\], got \[1, 3, 4",
        ),
        ({"latents": torch.zeros(1, 3, 8, 8, dtype=torch.int64)}, TypeError, "must return floating-point tensors"),
        ({"latents": 0.0}, TypeError, "must return floating-point tensors, got 0.0"),
        ({"negative_prompt_embeds": None}, TypeError, "must return floating-point tensors, got None"),
        ([], TypeError, "must return a dict of tensors or None"),
    ],
)
def test_what_a_callback_returns_is_checked(base_only, returned, error, message):
    with pytest.raises(error, match=f"`callback_on_step_end` {message}" if message.startswith("m") else message):
        draw(base_only, callback_on_step_end=lambda *_: returned)


def test_guidance_cannot_be_switched_on_in_a_callback(base_only):
    def callback(pipe, step, timestep, tensors):
        pipe._guidance_scale = 3.0
        return tensors

    with pytest.raises(ValueError, match="`guidance_scale` was 1"):
        draw(base_only, callback_on_step_end=callback, guidance_scale=1.0)
    assert base_only.stage is None


def test_a_callback_can_interrupt(pipe, base_only):
    seen = []

    def callback(pipe, step, timestep, tensors):
        seen.append(step)
        pipe._interrupt = step == 1
        return tensors

    picture = draw(pipe, callback_on_step_end=callback, num_inference_steps=9, output_type="pt")
    assert seen == [0, 1]
    # What the base stage has got to, and not the noise that the upsampler would have begun with.
    base = draw(base_only, callback_on_step_end=callback, num_inference_steps=9, output_type="pt")
    torch.testing.assert_close(picture, F.interpolate(base, picture.shape[-2:], mode="bilinear"))


def test_pipeline_callbacks_are_accepted(pipe):
    class Gray(PipelineCallback):
        tensor_inputs = ["latents"]

        def callback_fn(self, pipe, step, timestep, tensors):
            return {"latents": torch.zeros_like(tensors["latents"])}

    assert (draw(pipe, callback_on_step_end=Gray(cutoff_step_index=1, cutoff_step_ratio=None)) == 0.5).all()


def test_both_stages_show_a_progress_bar_that_can_be_switched_off(capsys):
    pipe = tiny_pipeline()
    draw(pipe)
    assert not capsys.readouterr().err
    pipe.set_progress_bar_config(disable=False)
    draw(pipe)
    shown = capsys.readouterr().err
    assert "base 8x8" in shown and "super_res 32x32" in shown and "2/2" in shown


# -- dtypes and devices -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_finite_and_close(dtype):
    pipe = tiny_pipeline().to(dtype)
    picture = draw(pipe, num_inference_steps=10)
    assert np.isfinite(picture).all()
    assert np.abs(picture - draw(tiny_pipeline(), num_inference_steps=10)).mean() < 0.05


def test_the_sample_stays_in_float32():
    pipe, dtypes = tiny_pipeline().to(torch.bfloat16), set()
    draw(pipe, callback_on_step_end=lambda p, i, t, tensors: dtypes.add(tensors["latents"].dtype) or {})
    assert dtypes == {torch.float32}


def test_model_cpu_offload():
    pipe = tiny_pipeline()
    expected = draw(pipe)
    pipe.enable_model_cpu_offload(device="cpu")
    networks = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    assert len(networks) == 4 and all(hasattr(network, "_hf_hook") for network in networks)
    np.testing.assert_allclose(draw(pipe), expected, atol=1e-5)
    np.testing.assert_allclose(draw(pipe), expected, atol=1e-5)


def test_wide_networks_are_loaded_in_the_faster_layout(tmp_path):
    """Which changes no picture and no file; and a pipeline leaves the networks that it is given as they are."""
    wide = GLIDEPipeline(**tiny_components(upsampler=False) | {"unet": tiny_unet(block_out_channels=(128, 128))})
    wide.set_progress_bar_config(disable=True)
    assert wide.unet.conv_in.weight.is_contiguous()
    wide.save_pretrained(tmp_path / "first")
    pipe = GLIDEPipeline.from_pretrained(tmp_path / "first")
    pipe.set_progress_bar_config(disable=True)
    assert pipe.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(draw(pipe), draw(wide), atol=1e-4)
    pipe.save_pretrained(tmp_path / "second")
    first, second = (load_file(tmp_path / n / "unet/diffusion_pytorch_model.safetensors") for n in ("first", "second"))
    assert all(torch.equal(second[name], tensor) for name, tensor in first.items())
    tiny_pipeline().save_pretrained(tmp_path / "small")
    assert GLIDEPipeline.from_pretrained(tmp_path / "small").unet.conv_in.weight.is_contiguous()


def test_attention_slicing_does_not_change_the_picture():
    pipe = tiny_pipeline()
    expected = draw(pipe)
    pipe.enable_attention_slicing()
    np.testing.assert_allclose(draw(pipe), expected, atol=1e-4)


def test_a_compiled_unet_serves():
    pipe = tiny_pipeline()
    expected = draw(pipe)
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    np.testing.assert_allclose(draw(pipe), expected, atol=1e-5)
    torch._dynamo.reset()
