import numpy as np
import pytest
import torch
from devices import OnlyTheCPUHasFloat64
from diffusers.training_utils import compute_snr

from glide_pipelines import GLIDEDDPMScheduler
from glide_pipelines.training import HybridLoss, TimestepWeighting


def sample(weighting, number, seed=0, first=0):
    return np.array([weighting.sample(index, seed) for index in range(first, first + number)])


def test_uniform_by_default_in_every_run_of_examples():
    weighting = TimestepWeighting(1000)
    for first in (0, 12_345_678_901):
        sampled = sample(weighting, 10_000, first=first)
        counts = np.bincount(sampled, minlength=1000)
        assert len(counts) == 1000 and counts.min() >= 8 and counts.max() <= 12
    assert sample(weighting, 8, seed=1).tolist() != sample(weighting, 8, seed=2).tolist()


@pytest.mark.parametrize(
    ("strategy", "multiplier", "portion", "counts"),
    [
        ("later", 3, 0.5, [500] * 5 + [1500] * 5),
        ("earlier", 3, 0.5, [1500] * 5 + [500] * 5),
        ("later", 6, 0.2, [500] * 8 + [3000] * 2),
        ("earlier", 0.5, 0.2, [500 / 0.9] * 2 + [1000 / 0.9] * 8),
    ],
)
def test_a_bias_samples_a_portion_so_many_times_more_often(strategy, multiplier, portion, counts):
    """As the weights of diffusers' SDXL script do: multiplied there, and normalised."""
    sampled = sample(TimestepWeighting(1000, strategy, multiplier, portion), 10_000)
    assert np.bincount(sampled // 100).tolist() == pytest.approx(counts, abs=10)


@pytest.mark.parametrize(("strategy", "multiplier", "portion"), [("later", 2, 0.5), ("earlier", 4, 0.3)])
def test_the_bound_stays_the_same_bound(strategy, multiplier, portion):
    process = GLIDEDDPMScheduler().train_process
    weighting = TimestepWeighting(1000, strategy, multiplier, portion, snr_weight_range=(1, 5))
    timesteps = torch.from_numpy(sample(weighting, 20_000))
    bound = timesteps.float() ** 2
    loss = HybridLoss(mse=torch.zeros_like(bound), vb=bound, vb_scale=1.0)
    uniform = torch.arange(1000.0).square().mean()
    assert weighting.apply(loss, process, timesteps).mean().item() == pytest.approx(uniform.item(), rel=2e-3)


def test_snr_weight_touches_the_noise_prediction_only():
    scheduler = GLIDEDDPMScheduler(beta_schedule="squaredcos_cap_v2")
    timesteps = torch.tensor([10, 600, 990])
    alpha_bar = scheduler.alphas_cumprod[timesteps].float()
    loss = HybridLoss(mse=torch.ones(3), vb=torch.full((3,), 7.0), vb_scale=1.0)
    weighted = TimestepWeighting(1000, snr_weight_range=(1, 5)).apply(loss, scheduler.train_process, timesteps)
    expected = torch.tensor([1.0, (1 - alpha_bar[1]) / alpha_bar[1], 5.0])
    torch.testing.assert_close(weighted, expected + 7)


def test_min_snr_weights_the_noise_prediction_as_diffusers_scripts_do():
    scheduler = GLIDEDDPMScheduler(beta_schedule="squaredcos_cap_v2")
    timesteps = torch.tensor([10, 400, 990])
    snr = compute_snr(scheduler, timesteps)
    loss = HybridLoss(mse=torch.ones(3), vb=torch.full((3,), 7.0), vb_scale=1.0)
    weighted = TimestepWeighting(1000, snr_gamma=5.0).apply(loss, scheduler.train_process, timesteps)
    torch.testing.assert_close(weighted, torch.stack([snr, 5.0 * torch.ones(3)]).amin(0) / snr + 7, rtol=1e-4, atol=0)
    assert weighted[0] < 7.01 and weighted[1:].tolist() == [8, 8]
    with pytest.raises(ValueError, match="Pass only one of `snr_gamma` and `snr_weight_range`"):
        TimestepWeighting(1000, snr_gamma=5.0, snr_weight_range=(1, 5))


def test_weights_go_to_a_device_in_float32():
    loss = HybridLoss(mse=torch.ones(3, device="meta"), vb=torch.ones(3, device="meta"), vb_scale=1.0)
    timesteps, weighting = torch.tensor([10, 600, 990], device="meta"), TimestepWeighting(1000, snr_weight_range=(1, 5))
    with OnlyTheCPUHasFloat64():
        assert weighting.apply(loss, GLIDEDDPMScheduler().train_process, timesteps).dtype == torch.float32


@pytest.mark.parametrize(
    "change",
    [
        {"timestep_bias_strategy": "range", "timestep_bias_multiplier": 2.0},
        {"timestep_bias_multiplier": -1.0, "timestep_bias_strategy": "later"},
        {"timestep_bias_multiplier": 2.0},
        {"timestep_bias_portion": 1.0},
        {"snr_weight_range": (5, 1)},
        {"snr_gamma": 0.0},
    ],
)
def test_values_out_of_range_are_named(change):
    with pytest.raises(ValueError, match=f"`{next(iter(change))}`"):
        TimestepWeighting(1000, **change)


def test_a_strategy_without_a_multiplier_is_no_silent_choice():
    with pytest.raises(ValueError, match="`timestep_bias_strategy` and `timestep_bias_multiplier` go together"):
        TimestepWeighting(1000, "later")
