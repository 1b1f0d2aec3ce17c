"""The diffusion process: tables, and the identities that the formulas must satisfy."""

import pytest
import torch
from devices import OnlyTheCPUHasFloat64

from glide_pipelines.schedulers import GaussianDiffusion, make_betas


@pytest.fixture(params=["linear", "squaredcos_cap_v2", "scaled_linear", "sigmoid"])
def process(request):
    return GaussianDiffusion.from_betas(make_betas(request.param, 1000))


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_schedules_are_those_of_the_papers():
    linear = make_betas("linear", 1000)
    assert (linear[0].item(), linear[-1].item()) == (1e-4, 0.02)
    cosine = make_betas("squaredcos_cap_v2", 1000)
    assert cosine.max().item() == 0.999
    # Improved DDPM, equation 17: alpha_bar is cos^2, up to the clip of the last beta.
    alpha_bar = torch.cumprod(1 - cosine, 0)
    time = torch.tensor([100, 500, 900], dtype=torch.float64) / 1000

    def f(t):
        return torch.cos((t + 0.008) / 1.008 * torch.pi / 2) ** 2

    torch.testing.assert_close(alpha_bar[[99, 499, 899]], f(time) / f(torch.zeros(1).double()))


def test_unknown_schedule_is_named():
    with pytest.raises(ValueError, match=r"`beta_schedule` .* got 'cosine'"):
        make_betas("cosine", 1000)


def test_prediction_undoes_noising(process):
    x_start, noise = randn(3, 2, 4, 4), randn(3, 2, 4, 4, seed=1)
    steps = torch.tensor([0, 500, 900])
    x_t = process.q_sample(x_start, noise, steps)
    torch.testing.assert_close(process.predict_x_start(x_t, noise, steps), x_start)
    torch.testing.assert_close(process.predict_noise(x_t, x_start, steps), noise)


def test_a_step_of_numbers_equals_a_step_of_tensors(process):
    x_start, x_t = randn(2, 3, 4, 4), randn(2, 3, 4, 4, seed=1)
    both = process.posterior_mean(x_start, x_t, torch.tensor([7, 300]))
    torch.testing.assert_close(both[:1], process.posterior_mean(x_start[:1], x_t[:1], 7))
    torch.testing.assert_close(both[1:], process.posterior_mean(x_start[1:], x_t[1:], 300))


def test_tables_go_to_a_device_in_the_dtype_of_the_sample(process):
    step, sample = torch.tensor([7, 300], device="meta"), torch.zeros(2, 3, 4, 4, device="meta")
    with OnlyTheCPUHasFloat64():
        assert process.q_sample(sample, sample, step).dtype == torch.float32
        assert process.learned_log_variance(sample, step).dtype == torch.float32


def test_posterior_follows_from_bayes(process):
    """q(x_{t-1} | x_t, x_0) is the product of q(x_t | x_{t-1}) and q(x_{t-1} | x_0): precisions add."""
    alpha_bar, beta = process.alphas_cumprod[1:], process.betas[1:]
    alpha_bar_prev = process.alphas_cumprod[:-1]
    precision = (1 - beta) / beta + 1 / (1 - alpha_bar_prev)
    torch.testing.assert_close(process.posterior_variance[1:], 1 / precision)
    torch.testing.assert_close(process.posterior_mean_coef_xt[1:], (1 - beta).sqrt() / beta / precision)
    torch.testing.assert_close(
        process.posterior_mean_coef_x0[1:], alpha_bar_prev.sqrt() / (1 - alpha_bar_prev) / precision
    )
    assert (process.posterior_mean_coef_x0[0].item(), process.posterior_mean_coef_xt[0].item()) == (1, 0)
    torch.testing.assert_close(alpha_bar, alpha_bar_prev * (1 - beta))


def test_learned_variance_spans_the_two_bounds(process):
    ends = torch.tensor([-1.0, 1.0], dtype=torch.float64).reshape(2, 1, 1, 1)
    low, high = process.learned_log_variance(ends, 500).flatten()
    torch.testing.assert_close(low, process.posterior_variance[500].log())
    torch.testing.assert_close(high, process.betas[500].log())
    assert process.posterior_log_variance[0] == process.posterior_log_variance[1]


def test_respacing_keeps_the_noise_levels(process):
    kept = process.respaced(torch.tensor([0, 250, 999]))
    assert kept.timesteps.tolist() == [0, 250, 999]
    assert torch.equal(kept.alphas_cumprod, process.alphas_cumprod[[0, 250, 999]])
    torch.testing.assert_close(torch.cumprod(1 - kept.betas, 0), kept.alphas_cumprod)


def test_a_process_of_one_step_is_finite(process):
    single = process.respaced(torch.tensor([500]))
    assert single.learned_log_variance(torch.zeros(1, 1, 1, 1), 0).isfinite().all()
