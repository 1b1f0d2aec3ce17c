import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from trainings import assert_equal, make_config, run

from glide_pipelines.training.averages import Average
from glide_pipelines.training.power_averages import SIGMA_RELS, exponent, power, reconstruct, save_snapshot


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory):
    """A run of 2000 steps on a noisy loss, and its weights after each."""
    folder = tmp_path_factory.mktemp("averages")
    generator = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.zeros(50))
    averages, weights = {width: Average({"weight": weight}, power(width)) for width in SIGMA_RELS}, []
    for step in range(1, 2001):
        with torch.no_grad():
            weight += 0.01 * (1 - weight) + 0.02 * torch.randn(50, generator=generator)
        for average in averages.values():
            average.step(step)
        weights.append(weight.detach().clone())
        if step % 25 == 0:
            save_snapshot(folder, step, averages)
    return folder, torch.stack(weights).double()


def tracked(weights, sigma_rel):
    """As section 3.1 defines it: in proportion to tau^gamma, here over the time of each step."""
    edges = (np.arange(len(weights) + 1) / len(weights)) ** (exponent(sigma_rel) + 1)
    return (torch.from_numpy(np.diff(edges))[:, None] * weights).sum(0)


@pytest.mark.parametrize("sigma_rel", [0.05, 0.06, 0.08, 0.1, 0.12])
@pytest.mark.parametrize("step", [None, 1000])
def test_an_average_made_afterwards_is_the_one_that_was_tracked(snapshots, sigma_rel, step):
    folder, weights = snapshots
    expected = tracked(weights[:step], sigma_rel)
    got = reconstruct(folder, sigma_rel, step)["weight"].double()
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)


def test_the_width_is_the_standard_deviation_of_the_steps():
    """Relative to their number; those of the paper's table: 0.05 is gamma 16.97, 0.1 is 6.94."""
    assert exponent(0.05) == pytest.approx(16.97, abs=0.01) and exponent(0.1) == pytest.approx(6.94, abs=0.01)
    time = (np.arange(100_000) + 0.5) / 100_000
    density = time ** exponent(0.2)
    mean = np.average(time, weights=density)
    assert np.sqrt(np.average((time - mean) ** 2, weights=density)) == pytest.approx(0.2, rel=1e-4)


def test_a_run_keeps_them_and_its_width_is_chosen_at_the_end(tmp_path):
    """Also a run that was stopped and resumed between two snapshots."""
    config = {"post_hoc_ema_steps": 2, "max_train_steps": 5}
    run(make_config(tmp_path / "unbroken", **config))
    run(make_config(tmp_path / "resumed", **config | {"max_train_steps": 3}))
    with pytest.raises(ValueError, match="`post_hoc_ema_steps`: the run to resume keeps averages for it"):
        run(make_config(tmp_path / "resumed", max_train_steps=5, resume_from_checkpoint="latest"))
    run(make_config(tmp_path / "resumed", **config, resume_from_checkpoint="latest"))
    for name in ("step-00000002", "step-00000004", "step-00000005"):
        one, other = (
            load_file(tmp_path / folder / "averages" / f"{name}.safetensors") for folder in ("unbroken", "resumed")
        )
        assert_equal(one, other)
    narrow, wide = (
        run(make_config(tmp_path / "unbroken", **config, ema_sigma_rel=width, resume_from_checkpoint="latest"))[0]
        for width in (0.05, 0.1)
    )
    for model, width in ((narrow, "0.05"), (wide, "0.1")):
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.detach(), one[f"{width}/{name}"], atol=1e-5, rtol=1e-4)


def test_snapshots_of_a_run_that_left_no_checkpoint_are_not_mixed_in(tmp_path, caplog):
    config = {"post_hoc_ema_steps": 1, "checkpointing_steps": 2}
    run(make_config(tmp_path / "killed", **config, seed=1))
    run(make_config(tmp_path / "clean", **config))
    for step in (2, 4):
        shutil.rmtree(tmp_path / "killed" / f"checkpoint-{step}")
    (tmp_path / "killed" / "averages" / "step-00000004-kept.safetensors").write_bytes(b"somebody's own")
    with pytest.raises(ValueError, match=r"`output_dir` holds snapshots of another run in .*averages: go on"):
        run(make_config(tmp_path / "killed", **config | {"post_hoc_ema_steps": 2}))
    run(make_config(tmp_path / "killed", **config | {"post_hoc_ema_steps": 2, "resume_from_checkpoint": "latest"}))
    assert "4 snapshots after step 0 in" in caplog.text
    names = sorted(path.name for path in (tmp_path / "killed" / "averages").iterdir())
    assert names == [f"step-0000000{name}.safetensors" for name in ("2", "4-kept", "4")]
    # Those up to the checkpoint belong to the run that goes on, and a run that is only exported loses none.
    shutil.rmtree(tmp_path / "clean" / "checkpoint-4")
    again = {"resume_from_checkpoint": "latest", **config}
    run(make_config(tmp_path / "clean", **again | {"max_train_steps": 2}))
    assert len(list((tmp_path / "clean" / "averages").iterdir())) == 4
    run(make_config(tmp_path / "clean", **again | {"post_hoc_ema_steps": 2}))
    names = sorted(path.name for path in (tmp_path / "clean" / "averages").iterdir())
    assert names == [f"step-0000000{step}.safetensors" for step in (1, 2, 4)]


@pytest.mark.parametrize("sigma_rel", [0, 0.3])
def test_a_width_out_of_range_is_named(tmp_path, sigma_rel):
    with pytest.raises(ValueError, match=r"`ema_sigma_rel` must lie between 0 and 0\.289"):
        reconstruct(tmp_path, sigma_rel)
    with pytest.raises(ValueError, match="needs snapshots of the averages, and there is none"):
        reconstruct(tmp_path, 0.1)
