import numpy as np
import pytest
import torch
from devices import OnlyTheCPUHasFloat64

from glide_pipelines import GLIDEDDPMScheduler
from glide_pipelines.training import HybridLoss, TimestepWeighting


def draw(weighting, number, seed=0, first=0):
    return np.array([weighting.draw(index, seed) for index in range(first, first + number)])


def test_uniform_by_default_in_every_run_of_examples():
    weighting = TimestepWeighting(1000)
    for first in (0, 12_345_678_901):
        drawn = draw(weighting, 10_000, first=first)
        counts = np.bincount(drawn, minlength=1000)
        assert len(counts) == 1000 and counts.min() >= 8 and counts.max() <= 12
    assert draw(weighting, 8, seed=1).tolist() != draw(weighting, 8, seed=2).tolist()


def test_noisy_share_moves_timesteps_to_the_noisier_half():
    drawn = draw(TimestepWeighting(1000, noisy_share=0.3), 10_000)
    assert (drawn >= 500).mean() == pytest.approx(0.3 + 0.7 / 2, abs=0.002)
    assert np.bincount(drawn // 100).tolist() == pytest.approx([700] * 5 + [1300] * 5, abs=10)
    drawn = draw(TimestepWeighting(1000, noisy_share=-0.5), 10_000)
    assert np.bincount(drawn // 100).tolist() == pytest.approx([1500] * 5 + [500] * 5, abs=10)


@pytest.mark.parametrize("noisy_share", [0.3, -0.3])
def test_the_bound_stays_the_same_bound(noisy_share):
    process = GLIDEDDPMScheduler().train_process
    weighting = TimestepWeighting(1000, noisy_share, snr_weight_range=(1, 5))
    timesteps = torch.from_numpy(draw(weighting, 20_000))
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


def test_weights_go_to_a_device_in_float32():
    loss = HybridLoss(mse=torch.ones(3, device="meta"), vb=torch.ones(3, device="meta"), vb_scale=1.0)
    timesteps, weighting = torch.tensor([10, 600, 990], device="meta"), TimestepWeighting(1000, snr_weight_range=(1, 5))
    with OnlyTheCPUHasFloat64():
        assert weighting.apply(loss, GLIDEDDPMScheduler().train_process, timesteps).dtype == torch.float32


@pytest.mark.parametrize("change", [{"noisy_share": 1.0}, {"noisy_share": -1.0}, {"snr_weight_range": (5, 1)}])
def test_values_out_of_range_are_named(change):
    with pytest.raises(ValueError, match=f"`{next(iter(change))}`"):
        TimestepWeighting(1000, **change)
