import math

import pytest
import torch
from safetensors.torch import load_file
from torch.distributions import Normal, kl_divergence

from glide_pipelines import GLIDEDDIMScheduler, GLIDEDDPMScheduler
from glide_pipelines.training import TimestepWeighting, hybrid_loss


def make_inputs(timesteps):
    torch.manual_seed(0)
    batch = len(timesteps)
    x_start = torch.randint(0, 256, (batch, 3, 8, 8)) / 127.5 - 1
    return torch.randn(batch, 6, 8, 8), x_start, torch.randn(batch, 3, 8, 8), torch.tensor(timesteps)


@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
def test_equals_the_original(recordings, schedule):
    recorded = load_file(recordings / "training-loss.safetensors")
    scheduler = GLIDEDDPMScheduler(beta_schedule=schedule)
    inputs = [recorded[name] for name in ("x_start", "noise", "timesteps")]
    torch.testing.assert_close(scheduler.add_noise(*inputs), recorded[f"{schedule}/x_t"])
    terms = hybrid_loss(scheduler, recorded["model_output"], *inputs)
    for name in ("loss", "mse", "vb"):
        expected = recorded[f"{schedule}/rescaled_mse/{name}"]
        torch.testing.assert_close(getattr(terms, name), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
def test_bound_is_the_divergence_of_the_posteriors(schedule):
    scheduler = GLIDEDDPMScheduler(beta_schedule=schedule)
    model_output, x_start, noise, timesteps = make_inputs([1, 10, 500, 900])
    vb = hybrid_loss(scheduler, model_output, x_start, noise, timesteps).vb

    # Written out with the alphas and betas of DDPM, in float64, independently of the tables under test.
    alpha_bar = scheduler.alphas_cumprod.double()
    at = [table.reshape(-1, 1, 1, 1) for table in (alpha_bar[timesteps], alpha_bar[timesteps - 1])]
    beta = 1 - at[0] / at[1]
    eps, v = model_output.double().chunk(2, dim=1)
    x_t = at[0].sqrt() * x_start + (1 - at[0]).sqrt() * noise
    variance = beta * (1 - at[1]) / (1 - at[0])

    def mean(x_0):
        return (at[1].sqrt() * beta * x_0 + (1 - at[1]) * (1 - beta).sqrt() * x_t) / (1 - at[0])

    learned = ((v + 1) / 2 * beta.log() + (1 - v) / 2 * variance.log()).exp()
    x_0 = (x_t - (1 - at[0]).sqrt() * eps) / at[0].sqrt()
    expected = kl_divergence(Normal(mean(x_start.double()), variance.sqrt()), Normal(mean(x_0), learned.sqrt()))
    torch.testing.assert_close(vb.double(), expected.flatten(1).mean(1) / math.log(2), rtol=1e-3, atol=1e-6)


def test_a_prediction_of_v_is_measured_as_v_and_bounds_as_its_noise_does():
    _, x_start, noise, timesteps = make_inputs([0, 10, 500, 999])
    torch.manual_seed(1)
    noise_pred, variance = torch.randn(2, *noise.shape)
    eps, v = GLIDEDDPMScheduler(), GLIDEDDPMScheduler(prediction_type="v_prediction")
    alpha_bar = eps.alphas_cumprod[timesteps].float().reshape(-1, 1, 1, 1)
    x_t = eps.add_noise(x_start, noise, timesteps)
    x_start_pred = (x_t - (1 - alpha_bar).sqrt() * noise_pred) / alpha_bar.sqrt()
    v_pred = alpha_bar.sqrt() * noise_pred - (1 - alpha_bar).sqrt() * x_start_pred
    true_v = alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * x_start

    by_v = hybrid_loss(v, torch.cat([v_pred, variance], dim=1), x_start, noise, timesteps)
    by_eps = hybrid_loss(eps, torch.cat([noise_pred, variance], dim=1), x_start, noise, timesteps)
    torch.testing.assert_close(by_v.vb, by_eps.vb, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(by_v.mse, (true_v - v_pred).square().flatten(1).mean(1), rtol=1e-4, atol=0)
    perfect = hybrid_loss(v, torch.cat([true_v, variance], dim=1), x_start, noise, timesteps)
    torch.testing.assert_close(perfect.mse, torch.zeros(4))
    # A weight means the error of the noise, whatever the model predicts.
    weighting = TimestepWeighting(1000, snr_gamma=5.0)
    for terms in (by_v, by_eps):
        terms.vb = torch.zeros(4)
    weighted = [weighting.apply(terms, v.train_process, timesteps) for terms in (by_v, by_eps)]
    torch.testing.assert_close(*weighted, rtol=1e-3, atol=1e-4)


def test_first_timestep_counts_the_bits_of_256_levels():
    scheduler = GLIDEDDPMScheduler()
    _, x_start, noise, timesteps = make_inputs([0])
    x_start[..., :4] = 1.0
    spread = Normal(torch.zeros(()), scheduler.train_process.posterior_log_variance[0].exp().sqrt().float())
    perfect = torch.cat([noise, -torch.ones_like(noise)], dim=1)
    vb = hybrid_loss(scheduler, perfect, x_start, noise, timesteps).vb
    # A level's own bin for the left half; everything above the bin's lower edge for the right half, which is at 1.
    inner = spread.cdf(torch.tensor(1 / 255)) - spread.cdf(torch.tensor(-1 / 255))
    outer = 1 - spread.cdf(torch.tensor(-1 / 255))
    expected = -(inner.log2() + outer.log2()) / 2
    assert vb.item() == pytest.approx(expected.item(), rel=0.1)


def test_bound_teaches_only_the_variance():
    model_output, x_start, noise, timesteps = make_inputs([0, 1, 500, 999])
    model_output.requires_grad_()
    terms = hybrid_loss(GLIDEDDPMScheduler(), model_output, x_start, noise, timesteps)
    (vb_gradient,) = torch.autograd.grad(terms.vb.sum(), model_output, retain_graph=True)
    (mse_gradient,) = torch.autograd.grad(terms.mse.sum(), model_output)
    assert not vb_gradient[:, :3].any() and vb_gradient[:, 3:].any()
    assert mse_gradient[:, :3].any() and not mse_gradient[:, 3:].any()


def test_loss_is_a_sum_whose_second_term_grows_with_the_steps():
    model_output, x_start, noise, timesteps = make_inputs([0, 50])
    for steps in (100, 1000):
        terms = hybrid_loss(GLIDEDDIMScheduler(steps), model_output, x_start, noise, timesteps)
        torch.testing.assert_close(terms.loss, terms.mse + terms.vb * steps / 1000)
    torch.testing.assert_close(
        terms.weighted(torch.tensor([2.0, 0.0]), 3.0), terms.mse * torch.tensor([2.0, 0.0]) + 3 * terms.vb
    )


def test_bfloat16_output_is_judged_in_float32():
    model_output, x_start, noise, timesteps = make_inputs([0, 1, 500, 999])
    model_output = model_output.bfloat16()
    terms = hybrid_loss(GLIDEDDPMScheduler(), model_output, x_start, noise, timesteps)
    same = hybrid_loss(GLIDEDDPMScheduler(), model_output.float(), x_start, noise, timesteps)
    assert terms.loss.dtype == torch.float32
    torch.testing.assert_close(terms.loss, same.loss, rtol=0, atol=0)


def test_output_without_variance_is_refused():
    model_output, x_start, noise, timesteps = make_inputs([5])
    with pytest.raises(ValueError, match="`model_output` must have 6 channels"):
        hybrid_loss(GLIDEDDPMScheduler(), model_output[:, :3], x_start, noise, timesteps)
