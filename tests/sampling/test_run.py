"""One step with known pixels and a score gradient: in which order, by GLIDE's schedulers and by diffusers' own."""

import inspect
from types import SimpleNamespace

import diffusers
import pytest
import torch
from denoising import take_step
from tiny import CONTEXT, WIDTH, tiny_unet

import glide_pipelines
from glide_pipelines import GLIDEDDIMScheduler, GLIDEDDPMScheduler
from glide_pipelines.sampling import Denoiser, KnownPixels, SchedulerRun, classifier_free_guidance, denoise


STOCK = [
    "DDPMScheduler",
    "DDIMScheduler",
    "DDIMParallelScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
    "HeunDiscreteScheduler",
    "LCMScheduler",
]
TIMESTEPS = [900, 600, 300, 0]


def randn(seed: int) -> torch.Tensor:
    return torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


X_T, NOISE_PRED, VARIANCE, GRADIENT = randn(0), 3 * randn(1), randn(2).clamp(-1, 1), randn(3)
KNOWN = 2 * randn(4)  # beyond the range, so that the order of known pixels and clip shows


def put_back(x_start: torch.Tensor) -> torch.Tensor:
    return torch.cat([KNOWN[..., :4], x_start[..., 4:]], dim=-1)


def first_step(scheduler, **hooks) -> torch.Tensor:
    takes_timesteps = isinstance(scheduler, GLIDEDDPMScheduler | GLIDEDDIMScheduler)
    steps = {"timesteps": TIMESTEPS} if takes_timesteps else {"num_inference_steps": len(TIMESTEPS)}
    run = SchedulerRun(scheduler, generator=torch.Generator().manual_seed(5), **steps)
    return take_step(run, 0, NOISE_PRED, VARIANCE, X_T * run.init_noise_sigma, **hooks)


@pytest.mark.parametrize("name", ["GLIDEDDIMScheduler", "GLIDEDDPMScheduler", *STOCK])
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_a_model_that_predicts_v_is_sampled_as_one_that_predicts_noise(name, scale):
    """By every scheduler, with guidance too: here v and noise are predictions of the same x_0."""
    kind = getattr(glide_pipelines if name.startswith("GLIDE") else diffusers, name)
    samples = []
    for prediction_type in ("epsilon", "v_prediction"):
        scheduler = kind.from_config(GLIDEDDPMScheduler(prediction_type=prediction_type).config)
        run = SchedulerRun(scheduler, num_inference_steps=4, generator=torch.Generator().manual_seed(0))

        def predict(sample, timestep, encoder_hidden_states, run=run, kind=prediction_type, **kwargs):
            alpha_bar = float(run.scheduler.alphas_cumprod[int(timestep)])
            x_start = KNOWN + encoder_hidden_states.mean((1, 2)).reshape(-1, 1, 1, 1)
            eps = (sample - alpha_bar**0.5 * x_start) / (1 - alpha_bar) ** 0.5
            v = alpha_bar**0.5 * eps - (1 - alpha_bar) ** 0.5 * x_start
            prediction = eps if kind == "epsilon" else v
            return SimpleNamespace(sample=torch.cat([prediction, torch.zeros_like(prediction)], dim=1))

        predict.dtype = torch.float32
        guided = (torch.zeros(1, 1, 1), classifier_free_guidance(scale)) if scale != 1 else ()
        denoiser = Denoiser(predict, run, torch.ones(1, 1, 1), *guided)
        *_, last = denoise(denoiser, run, X_T * run.init_noise_sigma)
        samples.append(last.sample)
    torch.testing.assert_close(samples[1], samples[0], atol=2e-4, rtol=0)


def set_timesteps(scheduler, **steps):
    """A scheduler whose tables are those of the run."""
    scheduler.set_timesteps(**steps)
    return scheduler


def unclipped(alpha_bar: torch.Tensor) -> torch.Tensor:
    """x_0 with the known pixels put back."""
    return put_back((X_T - (1 - alpha_bar).sqrt() * NOISE_PRED) / alpha_bar.sqrt())


def estimate(alpha_bar: torch.Tensor) -> torch.Tensor:
    """And then clipped."""
    return unclipped(alpha_bar).clamp(-1, 1)


def test_ancestral_steps_move_the_mean():
    """GLIDE, section 2.3: by variance times gradient, after x_0 got its known pixels and was clipped."""
    scheduler = set_timesteps(GLIDEDDPMScheduler(), timesteps=TIMESTEPS)
    guided = first_step(scheduler, denoised_fn=put_back, cond_grad=GRADIENT)
    process, step = scheduler.process, len(TIMESTEPS) - 1
    mean = process.posterior_mean(estimate(process.alphas_cumprod[step].float()), X_T, step)
    variance = process.learned_log_variance(VARIANCE, step).exp()
    noise = torch.randn(X_T.shape, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(guided, mean + variance * GRADIENT + variance.sqrt() * noise, atol=1e-4, rtol=0)


def test_deterministic_steps_move_the_score():
    """Dhariwal and Nichol, algorithm 2: the noise prediction moves; what x_0 becomes by it is not clipped again."""
    scheduler = set_timesteps(GLIDEDDIMScheduler(), timesteps=TIMESTEPS)
    guided = first_step(scheduler, denoised_fn=put_back, cond_grad=GRADIENT)
    alpha_bar, alpha_bar_prev = (scheduler.process.alphas_cumprod[step].float() for step in (3, 2))
    noise_pred = (X_T - alpha_bar.sqrt() * estimate(alpha_bar)) / (1 - alpha_bar).sqrt()
    noise_pred = noise_pred - (1 - alpha_bar).sqrt() * GRADIENT
    x_start = (X_T - (1 - alpha_bar).sqrt() * noise_pred) / alpha_bar.sqrt()
    assert x_start.abs().max() > 2
    expected = alpha_bar_prev.sqrt() * x_start + (1 - alpha_bar_prev).sqrt() * noise_pred
    torch.testing.assert_close(guided, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "config",
    [{}, {"thresholding": True, "sample_max_value": 3.0, "dynamic_thresholding_ratio": 0.9}],
    ids=["clip", "threshold"],
)
@pytest.mark.parametrize("name", STOCK)
def test_stock_schedulers_step_the_same_prediction(name, config):
    """They get a noise prediction that is known pixels, clip and gradient already, and clip it no more."""
    cls, config = getattr(diffusers, name), dict(GLIDEDDPMScheduler().config) | config
    scheduler = cls.from_config(config)
    guided = first_step(scheduler, denoised_fn=put_back, cond_grad=GRADIENT)
    assert scheduler.config.clip_sample and scheduler.config.thresholding == config["thresholding"]  # as they were

    plain = cls.from_config(config, clip_sample=False, thresholding=False)
    generator = torch.Generator().manual_seed(5)
    plain.set_timesteps(len(TIMESTEPS))
    if hasattr(plain, "set_begin_index"):
        plain.set_begin_index(0)
    timestep = plain.timesteps[0]
    alpha_bar = plain.alphas_cumprod[int(timestep)].float()
    x_start = estimate(alpha_bar)
    if config["thresholding"] and name != "HeunDiscreteScheduler":  # which has none, and clips
        x_start = plain._threshold_sample(unclipped(alpha_bar))
        assert x_start.abs().max() == 1 and not torch.allclose(x_start, estimate(alpha_bar))
    noise_pred = (X_T - alpha_bar.sqrt() * x_start) / (1 - alpha_bar).sqrt()
    noise_pred = noise_pred - (1 - alpha_bar).sqrt() * GRADIENT
    takes_variance = isinstance(plain, diffusers.DDPMScheduler) and plain.config.variance_type == "learned_range"
    output = torch.cat([noise_pred, VARIANCE], dim=1) if takes_variance else noise_pred
    sample = X_T * plain.init_noise_sigma
    plain.scale_model_input(sample, timestep)
    taken = inspect.signature(plain.step).parameters
    offered = {"generator": generator, "use_clipped_model_output": True}
    options = {name: value for name, value in offered.items() if name in taken}
    expected = plain.step(output, timestep, sample, **options, return_dict=False)[0]
    torch.testing.assert_close(guided, expected, atol=1e-2, rtol=2e-3)  # at the noisy end float32 is coarse


def test_a_list_of_timesteps_counts_as_its_steps():
    """Whatever run was before it: diffusers' DDPM does not keep the number of a list of timesteps."""
    scheduler = diffusers.DDPMScheduler.from_config(GLIDEDDPMScheduler().config)
    given = {"timesteps": [999, 750, 500, 250, 0]}
    assert SchedulerRun(scheduler, **given).timesteps.tolist() == given["timesteps"]
    scheduler.set_timesteps(10)
    assert SchedulerRun(scheduler, **given, strength=0.5).timesteps.tolist() == [250, 0]


@pytest.mark.parametrize("name", ["GLIDEDDPMScheduler", "DDPMScheduler", "UniPCMultistepScheduler", "PNDMScheduler"])
def test_a_run_leaves_its_scheduler_as_it_is(name):
    """Which other runs, in other threads, may step at the same time."""
    cls = getattr(diffusers, name)
    scheduler = cls.from_config(GLIDEDDPMScheduler().config)
    before = {name: repr(value) for name, value in vars(scheduler).items()}
    first_step(scheduler, cond_grad=GRADIENT) if name.startswith("GLIDE") else take_step(
        SchedulerRun(scheduler, num_inference_steps=4), 0, NOISE_PRED, VARIANCE, X_T, cond_grad=GRADIENT
    )
    assert {name: repr(value) for name, value in vars(scheduler).items()} == before


def test_timesteps_that_are_not_numbers_are_refused():
    """diffusers makes them for some schedulers on the cosine schedule."""
    config = GLIDEDDPMScheduler(beta_schedule="squaredcos_cap_v2").config
    scheduler = diffusers.KDPM2AncestralDiscreteScheduler.from_config(config)
    with pytest.raises(ValueError, match="`super_res_num_inference_steps`: KDPM2AncestralDiscreteScheduler makes"):
        SchedulerRun(scheduler, num_inference_steps=2, prefix="super_res_")


# -- PNDM, which counts its calls -------------------------------------------------------------------------------------


def pndm(**config) -> diffusers.PNDMScheduler:
    return diffusers.PNDMScheduler.from_config(GLIDEDDPMScheduler().config, **config)


@pytest.mark.parametrize(
    ("strength", "expected"),
    [
        (1.0, [999, 888, 888, 777, 666, 555, 444, 333, 222, 111, 0]),
        (0.9, [888, 777, 777, 666, 555, 444, 333, 222, 111, 0]),
        (0.5, [444, 333, 333, 222, 111, 0]),
        (0.2, [111, 0, 0]),
        (0.1, [0]),
    ],
)
def test_a_run_of_pndm_repeats_its_second_timestep(strength, expected):
    run = SchedulerRun(pndm(), num_inference_steps=10, strength=strength)
    assert run.timesteps.tolist() == expected


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DDIMScheduler"])
def test_a_cut_run_knows_its_noise_levels(name):
    """The estimate of a model that knows the picture is the picture, at each step of what is left of the run."""
    picture, seen = randn(6).clamp(-1, 1), []
    scheduler = getattr(diffusers, name).from_config(GLIDEDDPMScheduler().config)
    run = SchedulerRun(scheduler, num_inference_steps=10, strength=0.5)
    assert len(run) == 5
    for i in range(len(run)):
        sample = run.add_noise(picture, randn(7), i)
        take_step(run, i, randn(7), None, sample, denoised_fn=lambda x_start: seen.append(x_start) or x_start)
        torch.testing.assert_close(seen[-1], picture, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
@pytest.mark.parametrize("spacing", ["use_karras_sigmas", "use_exponential_sigmas"])
def test_noise_levels_between_the_training_ones_are_the_scheduler_s_own(name, spacing):
    """On the cosine schedule several of them round to one timestep; known pixels and clip are at the true one."""
    config = GLIDEDDPMScheduler(beta_schedule="squaredcos_cap_v2").config
    scheduler = getattr(diffusers, name).from_config(config, **{spacing: True})
    run = SchedulerRun(scheduler, num_inference_steps=20)
    for i in range(4):
        take_step(run, i, NOISE_PRED, None, X_T, denoised_fn=put_back)
        x_start = run.scheduler.model_outputs[-1]
        # In float32, at noise 20,000 times as strong as the picture.
        torch.testing.assert_close(x_start[..., :4], KNOWN[..., :4].clamp(-1, 1), atol=0.02, rtol=0)
        assert x_start.abs().max() < 1.02


def test_variance_channels_that_a_scheduler_only_cuts_off_are_not_given_to_it():
    assert first_step(diffusers.SASolverScheduler.from_config(GLIDEDDPMScheduler().config)).shape == X_T.shape


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("UnCLIPScheduler", "it is made for one pipeline of its own"),
        ("RePaintScheduler", "its `step` needs original_image, mask"),
    ],
)
def test_schedulers_that_need_more_are_refused(name, message):
    with pytest.raises(ValueError, match=f"`scheduler` must step by .*; {name}: {message}"):
        SchedulerRun(getattr(diffusers, name)(num_train_timesteps=1000), num_inference_steps=4)


def test_a_cut_run_of_pndm_knows_its_noise_levels():
    """A model that knows the picture is asked at the noise level that the sample has."""
    scheduler, picture = pndm(timestep_spacing="leading"), randn(6).clamp(-1, 1)
    run = SchedulerRun(scheduler, num_inference_steps=10, strength=0.5)
    sample = run.add_noise(picture, randn(7), 0)
    for i in range(len(run)):
        alpha_bar = scheduler.alphas_cumprod[run.timesteps[i]]
        noise = (sample - alpha_bar.sqrt() * picture) / (1 - alpha_bar).sqrt()
        torch.testing.assert_close(noise, randn(7), atol=1e-3, rtol=0)
        sample = take_step(run, i, noise, None, sample)


def test_the_runge_kutta_start_of_pndm_is_not_cut():
    scheduler = pndm(skip_prk_steps=False)
    assert len(SchedulerRun(scheduler, num_inference_steps=10)) == 19
    with pytest.raises(ValueError, match=r"`strength` 0.5 cannot cut .* `skip_prk_steps=True`"):
        SchedulerRun(scheduler, num_inference_steps=10, strength=0.5)


@pytest.mark.parametrize("name", [*STOCK, "PNDMScheduler", "EulerDiscreteScheduler", "GLIDEDDPMScheduler"])
@torch.no_grad()
def test_no_step_waits_for_the_device(name):
    # Tensors on "meta" have no values: asking them for one, for which an accelerator would be waited for, is an error.
    glide = GLIDEDDPMScheduler(beta_schedule="squaredcos_cap_v2")
    scheduler = glide if name == "GLIDEDDPMScheduler" else getattr(diffusers, name).from_config(glide.config)
    run = SchedulerRun(scheduler, 4, device="meta")
    text, image, mask = (
        torch.empty(*shape, device="meta") for shape in ((1, CONTEXT, WIDTH), (1, 3, 8, 8), (1, 1, 8, 8))
    )
    denoiser = Denoiser(tiny_unet().to("meta"), run, text, text, classifier_free_guidance(3.0))
    for step in denoise(denoiser, run, image, KnownPixels(image, mask)):
        assert step.timestep.device == step.sample.device == torch.device("meta")
