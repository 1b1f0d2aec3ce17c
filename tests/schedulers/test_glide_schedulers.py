"""The two schedulers: the original's arithmetic, the hooks, and what diffusers promises of a scheduler."""

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import glide_pipelines
from glide_pipelines import GLIDEDDIMScheduler, GLIDEDDPMScheduler
from glide_pipelines.schedulers import scheduling_glide_ddim, scheduling_glide_ddpm


CLASSES = [GLIDEDDPMScheduler, GLIDEDDIMScheduler]
STOCK = [
    "DDPMScheduler",
    "DDIMScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "DEISMultistepScheduler",
    "PNDMScheduler",
]


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def scheduler(cls, spacing="10", **config):
    built = cls(**{"beta_schedule": "squaredcos_cap_v2"} | config)
    built.set_timesteps(timesteps=spacing)
    return built


# -- the original's numbers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("schedule", "spacing"), [("linear", "fast27"), ("squaredcos_cap_v2", "100")])
@pytest.mark.parametrize("clip", [True, False])
def test_every_step_equals_the_original(recordings, monkeypatch, schedule, spacing, clip):
    recorded = load_file(recordings / f"steps-{schedule}-{spacing}.safetensors")
    ddpm = scheduler(GLIDEDDPMScheduler, spacing, beta_schedule=schedule, clip_sample=clip)
    ddim = scheduler(GLIDEDDIMScheduler, spacing, beta_schedule=schedule, clip_sample=clip)
    assert ddpm.timesteps.tolist() == recorded["timesteps"].tolist()[::-1]

    for row, timestep in enumerate(recorded["timesteps"].tolist()):
        at = {name: tensor[row : row + 1] for name, tensor in recorded.items()}
        for module in (scheduling_glide_ddpm, scheduling_glide_ddim):
            monkeypatch.setattr(module, "randn_tensor", lambda *_, noise=at["noise"], **__: noise)
        given = (at["model_output"], timestep, at["sample"])

        def check(result, name, at=at, timestep=timestep):
            torch.testing.assert_close(
                result, at[name], atol=2e-4, rtol=0, msg=lambda text: f"{name} at timestep {timestep}: {text}"
            )

        check(ddpm.step(*given).prev_sample, f"ddpm_prev_clip{clip:d}")
        check(ddpm.step(*given).pred_original_sample, f"pred_x0_clip{clip:d}")
        check(ddim.step(*given).prev_sample, f"ddim_prev_clip{clip:d}")
        if clip:
            check(ddpm.step(*given, cond_grad=at["guidance_grad"]).prev_sample, "ddpm_prev_guided")
            check(ddim.step(*given, cond_grad=at["guidance_grad"]).prev_sample, "ddim_prev_guided")
            check(ddim.step(*given, eta=1.0).prev_sample, "ddim_eta1_prev")


# -- the steps --------------------------------------------------------------------------------------------------------


def perfect_output(process, x_start, x_t, step):
    """What a model that knows x_0 predicts, with the variance in the middle of its range."""
    noise = process.predict_noise(x_t, x_start, step)
    return torch.cat([noise, torch.zeros_like(noise)], dim=1)


@pytest.mark.parametrize("cls", CLASSES)
def test_a_model_that_knows_the_picture_draws_it(cls):
    built = scheduler(cls, "fast27")
    x_start = randn(2, 3, 8, 8).clamp(-1, 1)
    sample = randn(2, 3, 8, 8, seed=1)
    for timestep in built.timesteps:
        step = built.step_index_of(timestep)
        output = perfect_output(built.process, x_start, sample, step)
        sample = built.step(output, timestep, sample).prev_sample
    torch.testing.assert_close(sample, x_start, atol=1e-3, rtol=0)


@pytest.mark.parametrize("cls", CLASSES)
def test_known_pixels_end_in_the_picture(cls):
    """`denoised_fn` sees x_0 before the clip, and what it returns is what the step uses."""
    built = scheduler(cls, "5")
    known = randn(1, 3, 8, 8).clamp(-1, 1)
    sample = randn(1, 3, 8, 8, seed=1)
    output = 3 * randn(1, 6, 8, 8, seed=2)
    seen = []

    def put_back(x_start):
        seen.append(x_start.abs().max().item())
        return torch.cat([x_start[..., :4], known[..., 4:]], dim=-1)

    for timestep in built.timesteps:
        sample = built.step(output, timestep, sample, denoised_fn=put_back).prev_sample
    torch.testing.assert_close(sample[..., 4:], known[..., 4:], atol=1e-5, rtol=0)
    assert max(seen) > 1


@pytest.mark.parametrize("cls", CLASSES)
def test_a_score_gradient_moves_the_sample_its_way(cls):
    built = scheduler(cls, clip_sample=False)
    sample, output, gradient = randn(1, 3, 8, 8), randn(1, 6, 8, 8, seed=1), randn(1, 3, 8, 8, seed=2)
    timestep = built.timesteps[3]
    plain = built.step(output, timestep, sample, generator=torch.Generator().manual_seed(0)).prev_sample
    shifted = built.step(
        output, timestep, sample, generator=torch.Generator().manual_seed(0), cond_grad=gradient
    ).prev_sample
    assert torch.nn.functional.cosine_similarity((shifted - plain).flatten(), gradient.flatten(), dim=0) > 0.9


@pytest.mark.parametrize("cls", CLASSES)
def test_clipping_and_thresholding(cls):
    sample, output = randn(1, 3, 8, 8), 2 * randn(1, 6, 8, 8, seed=1)

    def x_start(**config):
        built = scheduler(cls, **config)
        return built.step(output, built.timesteps[0], sample).pred_original_sample

    assert x_start(clip_sample=False).abs().max() > 1
    assert x_start(clip_sample=True).abs().max() == 1
    assert x_start(clip_sample_range=0.5).abs().max() == 0.5
    # Dynamic thresholding brings the percentile to 1 by scaling; with a limit of 1 it is the clip.
    assert torch.equal(x_start(thresholding=True, sample_max_value=1.0), x_start())
    dynamic = x_start(thresholding=True, dynamic_thresholding_ratio=0.5, sample_max_value=1e6)
    assert dynamic.abs().max() == 1
    assert not torch.allclose(dynamic, x_start())


def test_fixed_variances_need_no_variance_channels():
    sample, output = randn(1, 3, 64, 64), randn(1, 3, 64, 64, seed=1)
    spreads = {}
    for variance_type in ("fixed_small", "fixed_large"):
        built = scheduler(GLIDEDDPMScheduler, variance_type=variance_type)
        timestep, step = built.timesteps[5], built.step_index_of(built.timesteps[5])
        result = built.step(output, timestep, sample)
        mean = built.process.posterior_mean(result.pred_original_sample, sample, step)
        spreads[variance_type] = (result.prev_sample - mean).var().item()
        expected = {"fixed_small": built.process.posterior_variance, "fixed_large": built.process.betas}
        assert spreads[variance_type] == pytest.approx(expected[variance_type][step].item(), rel=0.05)
    with pytest.raises(ValueError, match="`model_output`"):
        scheduler(GLIDEDDPMScheduler).step(output, 0, sample)


def test_eta_one_has_the_noise_of_ancestral_sampling():
    built = scheduler(GLIDEDDIMScheduler)
    sample, output = randn(1, 3, 64, 64), randn(1, 6, 64, 64, seed=1)
    timestep, step = built.timesteps[5], built.step_index_of(built.timesteps[5])
    drawn = torch.stack([built.step(output, timestep, sample, eta=1.0).prev_sample for _ in range(8)])
    assert drawn.var(dim=0).mean().item() == pytest.approx(built.process.posterior_variance[step].item(), rel=0.05)
    still = [built.step(output, timestep, sample).prev_sample for _ in range(2)]
    assert torch.equal(*still)


def test_ancestral_noise_is_drawn_once_a_step_also_at_the_last():
    built = scheduler(GLIDEDDPMScheduler)
    sample, output = randn(1, 3, 8, 8), randn(1, 6, 8, 8, seed=1)
    for timestep in (built.timesteps[0], built.timesteps[-1]):
        generator, expected = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)
        built.step(output, timestep, sample, generator=generator)
        torch.randn(sample.shape, generator=expected)
        assert torch.equal(generator.get_state(), expected.get_state())
    first, second = (built.step(output, 0, sample).prev_sample for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_are_kept_and_stay_finite(cls, dtype):
    built = scheduler(cls, "100")
    sample = randn(1, 3, 8, 8).to(dtype)
    for timestep in built.timesteps:
        sample = built.step(randn(1, 6, 8, 8, seed=1).to(dtype), timestep, sample).prev_sample
    assert sample.dtype == dtype and sample.isfinite().all()


@pytest.mark.parametrize("cls", CLASSES)
def test_tuple_equals_output(cls):
    built = scheduler(cls)
    given = (randn(1, 6, 8, 8), 0, randn(1, 3, 8, 8, seed=1))
    prev_sample, x_start = built.step(*given, return_dict=False)
    output = built.step(*given)
    assert torch.equal(prev_sample, output.prev_sample) and torch.equal(x_start, output.pred_original_sample)


@pytest.mark.parametrize("cls", CLASSES)
def test_step_refuses_what_does_not_fit(cls):
    built = scheduler(cls)
    with pytest.raises(ValueError, match=r"`timestep` .* got 5"):
        built.step(randn(1, 6, 8, 8), 5, randn(1, 3, 8, 8))
    with pytest.raises(ValueError, match=r"`model_output` .* got \[1, 4, 8, 8\]"):
        built.step(randn(1, 4, 8, 8), 0, randn(1, 3, 8, 8))


def test_eta_outside_its_range_is_named():
    with pytest.raises(ValueError, match="`eta`"):
        scheduler(GLIDEDDIMScheduler).step(randn(1, 6, 8, 8), 0, randn(1, 3, 8, 8), eta=1.5)


# -- timesteps --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", CLASSES)
def test_numbers_lists_and_strings_choose_timesteps(cls):
    built = cls()
    assert built.timesteps.tolist() == list(range(1000))[::-1]
    built.set_timesteps(4)
    assert built.timesteps.tolist() == [999, 666, 333, 0]
    built.set_timesteps(timesteps=[900, 10])
    assert built.timesteps.tolist() == [900, 10] and built.num_inference_steps == 2
    built.set_timesteps(timesteps="10,10,3,2,2")
    assert len(built.timesteps) == 27
    built.set_timesteps(np.int64(4))
    assert built.timesteps.tolist() == [999, 666, 333, 0]
    built.set_timesteps(timesteps=[np.int64(900), 10])
    assert built.timesteps.tolist() == [900, 10]


def test_a_student_is_asked_where_it_was_trained(caplog, tmp_path):
    GLIDEDDIMScheduler(trained_timesteps=[999, 640, 200]).save_pretrained(tmp_path)
    scheduler = GLIDEDDIMScheduler.from_pretrained(tmp_path)
    scheduler.set_timesteps(3)
    assert scheduler.timesteps.tolist() == [999, 640, 200] and not caplog.records
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == [999, 666, 333, 0]
    assert "distilled for 3 steps, at the timesteps [999, 640, 200]" in caplog.text


def test_recommended_timesteps_are_what_as_many_steps_stand_for(caplog, tmp_path):
    GLIDEDDIMScheduler(default_timesteps=[999, 500]).save_pretrained(tmp_path)
    scheduler = GLIDEDDIMScheduler.from_pretrained(tmp_path)
    scheduler.set_timesteps(2)
    assert scheduler.timesteps.tolist() == [999, 500]
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == [999, 666, 333, 0] and not caplog.records


@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler"])
def test_v_means_what_it_does_in_diffusers(name):
    config = GLIDEDDIMScheduler(prediction_type="v_prediction", variance_type="fixed_small").config
    x_t, v = randn(1, 3, 8, 8), randn(1, 3, 8, 8)
    stock = getattr(diffusers, name).from_config(config)
    for scheduler in (stock, own := getattr(glide_pipelines, f"GLIDE{name[:4]}Scheduler").from_config(config)):
        scheduler.set_timesteps(4)
    timestep = own.timesteps[1]
    expected = stock.step(v, timestep, x_t, generator=torch.manual_seed(0))
    given = own.step(v, timestep, x_t, generator=torch.manual_seed(0))
    torch.testing.assert_close(given.pred_original_sample, expected.pred_original_sample, atol=2e-5, rtol=0)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_other_spacings_are_those_of_diffusers(spacing):
    built = GLIDEDDPMScheduler(timestep_spacing=spacing)
    stock = diffusers.DDPMScheduler(timestep_spacing=spacing)
    for count in (7, 50):
        built.set_timesteps(count)
        stock.set_timesteps(count)
        assert built.timesteps.tolist() == stock.timesteps.tolist()
        built.step(randn(1, 6, 8, 8), built.timesteps[-1], randn(1, 3, 8, 8))


def test_trailing_takes_no_step_too_many():
    """As diffusers does for some numbers, by rounding: the last timestep would be -1."""
    built, stock = (kind(timestep_spacing="trailing") for kind in (GLIDEDDPMScheduler, diffusers.DDPMScheduler))
    stock.set_timesteps(61)
    assert stock.timesteps.tolist()[60:] == [15, -1]
    built.set_timesteps(61)
    assert built.timesteps.tolist() == stock.timesteps.tolist()[:61]


@pytest.mark.parametrize(("offset", "count"), [(5, 1000), (-1, 10)])
def test_an_offset_that_leaves_the_training_steps_is_an_error(offset, count):
    scheduler = GLIDEDDPMScheduler(timestep_spacing="leading", steps_offset=offset)
    with pytest.raises(ValueError, match="`timesteps` must lie between 0 and 999"):
        scheduler.set_timesteps(count)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "exactly one"),
        ({"num_inference_steps": 5, "timesteps": [1, 0]}, "exactly one"),
        ({"num_inference_steps": 1001}, "`num_inference_steps` .* got 1001"),
        ({"num_inference_steps": 0}, "`num_inference_steps` .* got 0"),
        ({"num_inference_steps": 2.5}, "`num_inference_steps` .* got 2.5"),
        ({"timesteps": [1, 2]}, "`timesteps` .* descending"),
        ({"timesteps": [5, 5]}, "`timesteps` .* descending"),
        ({"timesteps": []}, "`timesteps` .* non-empty"),
        ({"timesteps": [1000, 0]}, "`timesteps` .* between 0 and 999"),
        ({"timesteps": [5, -1]}, "`timesteps` .* between 0 and 999"),
        ({"timesteps": [5.5, 1]}, "`timesteps` must be integers"),
        ({"timesteps": "quick"}, "timesteps='quick'"),
    ],
)
def test_bad_choices_are_named(given, message):
    with pytest.raises(ValueError, match=message):
        GLIDEDDPMScheduler().set_timesteps(**given)


# -- what diffusers promises ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", CLASSES)
def test_save_and_load(cls, tmp_path):
    built = cls(beta_schedule="squaredcos_cap_v2", clip_sample_range=2.0)
    built.save_pretrained(tmp_path)
    loaded = cls.from_pretrained(tmp_path)
    assert dict(loaded.config) == dict(built.config)
    assert torch.equal(loaded.betas, built.betas)


@pytest.mark.parametrize("cls", CLASSES)
def test_trained_betas(cls):
    built = cls(trained_betas=[0.1, 0.2, 0.3], num_train_timesteps=3)
    assert built.betas.tolist() == [0.1, 0.2, 0.3]
    with pytest.raises(ValueError, match="`trained_betas` must hold one for each of `num_train_timesteps` 1000, got 2"):
        cls(trained_betas=[0.1, 0.3])


def test_add_noise_is_the_forward_process():
    built = GLIDEDDPMScheduler()
    x_start, noise, timesteps = randn(2, 3, 8, 8), randn(2, 3, 8, 8, seed=1), torch.tensor([0, 999])
    noised = built.add_noise(x_start, noise, timesteps)
    stock = diffusers.DDPMScheduler().add_noise(x_start, noise, timesteps)
    torch.testing.assert_close(noised, stock, atol=1e-4, rtol=0)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("name", STOCK)
def test_switching_to_diffusers_and_back_loses_nothing(cls, name):
    """No setting is lost, not even one that was left at a default which the other class does not share."""
    built = cls(beta_schedule="squaredcos_cap_v2", thresholding=True, sample_max_value=1.5)
    stock = getattr(diffusers, name).from_config(built.config)
    for setting in ("beta_schedule", "num_train_timesteps", "timestep_spacing", "clip_sample", "thresholding"):
        assert stock.config[setting] == built.config[setting]
    back = cls.from_config(stock.config)
    assert {key: back.config[key] for key in built.config} == dict(built.config)
    assert torch.equal(back.betas, built.betas)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("name", STOCK)
def test_switching_from_diffusers_and_back_loses_nothing(cls, name, tmp_path):
    """A stock scheduler's own defaults are settings too: another schedule would draw other pictures, silently."""
    getattr(diffusers, name)().save_pretrained(tmp_path)
    stock = getattr(diffusers, name).from_pretrained(tmp_path)
    built = cls.from_config(stock.config)
    torch.testing.assert_close(built.betas.float(), stock.betas.float(), atol=1e-6, rtol=0)
    back = getattr(diffusers, name).from_config(built.config)
    for setting, value in stock.config.items():
        if not setting.startswith("_"):
            assert back.config[setting] == value, setting
            assert built.config.get(setting, value) == value, setting


def test_what_stock_schedulers_need_on_the_cosine_schedule_is_carried():
    config = GLIDEDDPMScheduler(beta_schedule="squaredcos_cap_v2").config
    assert diffusers.DPMSolverMultistepScheduler.from_config(config).config.lambda_min_clipped == -5.1
    assert diffusers.PNDMScheduler.from_config(config).config.skip_prk_steps


def test_compatibles_hold_the_stock_schedulers():
    names = {cls.__name__ for cls in GLIDEDDPMScheduler().compatibles}
    assert set(STOCK) <= names and "GLIDEDDPMScheduler" in names


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"prediction_type": "sample"}, "`prediction_type`"),
        ({"variance_type": "learned"}, "`variance_type`"),
        ({"timestep_spacing": np.ones(0)}, "`timestep_spacing`"),
        ({"beta_schedule": np.ones(2)}, "`beta_schedule`"),
        ({"trained_timesteps": [5, 900]}, "`trained_timesteps`: .* descending"),
        ({"trained_timesteps": 4}, "`trained_timesteps`: .* list of integers"),
        ({"default_timesteps": [5, 900]}, "`default_timesteps`: .* descending"),
    ],
)
def test_settings_that_no_glide_model_has_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        GLIDEDDPMScheduler(**config)
