import sys

import pytest
import torch
from trainings import assert_equal, make_config, read_checkpoint, run

from glide_pipelines.training.optimizers import evaluation_weights, make_optimizer, optimizer_class


ADAM = {"betas": (0.5, 0.9), "weight_decay": 0.1, "eps": 1e-4}


def make(name, **options):
    return make_optimizer(name, [torch.nn.Parameter(torch.ones(2, 2))], 0.1, ADAM, options)


@pytest.mark.parametrize("name", ["AdamW", "sgd", "RMSprop", "adafactor", "muon"])
def test_torch_s_optimizers_by_name(name):
    optimizer = make(name)
    assert type(optimizer).__name__.lower() == name.lower() and optimizer.param_groups[0]["lr"] == 0.1
    # What Adam's options are called means something else elsewhere.
    assert (optimizer.param_groups[0]["weight_decay"] == 0.1) == (name in ("AdamW", "muon"))
    assert (optimizer.param_groups[0].get("betas") == (0.5, 0.9)) == (name == "AdamW")


def test_settings_of_its_own():
    assert make("sgd", momentum=0.9, nesterov=True).param_groups[0]["nesterov"]
    assert make("adamw", eps=1e-3).param_groups[0]["eps"] == 1e-3
    with pytest.raises(ValueError, match=r"`optimizer_args`: adamw takes .*amsgrad.*; got momentum\."):
        make("adamw", momentum=0.9)
    with pytest.raises(ValueError, match="`optimizer` sgd: Invalid momentum"):
        make("sgd", momentum=-1)
    with pytest.raises(ValueError, match=r"`optimizer` muon: .*2D"):
        make_optimizer("muon", [torch.nn.Parameter(torch.ones(3))], 0.1, ADAM, {})


def test_what_is_not_there_is_named(monkeypatch):
    with pytest.raises(ValueError, match=r"`optimizer` must be one of .*adafactor, .*sgd, .*got 'lion'"):
        optimizer_class("lion")
    for package in ("bitsandbytes", "bitsandbytes.optim", "schedulefree"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        ImportError, match="`optimizer` adamw8bit needs the package bitsandbytes: pip install bitsandbytes"
    ):
        optimizer_class("adamw8bit")
    with pytest.raises(ImportError, match="AdamW_ScheduleFree needs the package schedulefree"):
        optimizer_class("AdamW_ScheduleFree")


@pytest.mark.parametrize(
    ("name", "options", "package"),
    [
        ("sgd", {"momentum": 0.9}, None),
        ("adafactor", {}, None),
        ("adamw8bit", {"min_8bit_size": 64}, "bitsandbytes"),
        ("adamwschedulefree", {}, "schedulefree"),
    ],
)
def test_a_resumed_run_equals_an_unbroken_one_to_the_bit(tmp_path, name, options, package):
    if package is not None:
        pytest.importorskip(package)
    changes = {"optimizer": name, "optimizer_args": options}
    run(make_config(tmp_path / "unbroken", **changes))
    run(make_config(tmp_path / "resumed", max_train_steps=2, **changes))
    run(make_config(tmp_path / "resumed", resume_from_checkpoint="latest", **changes))
    one, other = (read_checkpoint(tmp_path / folder / "checkpoint-4") for folder in ("unbroken", "resumed"))
    assert_equal(one, other)
    assert one["optimizer"]


def test_a_run_keeps_its_optimizer(tmp_path):
    run(make_config(tmp_path, max_train_steps=1))
    with pytest.raises(ValueError, match="`optimizer` of the run to resume is AdamW, got SGD"):
        run(make_config(tmp_path, optimizer="sgd", resume_from_checkpoint="latest"))


def test_the_average_is_over_the_weights_that_are_used():
    """A schedule-free optimizer's gradients are taken elsewhere."""
    schedulefree = pytest.importorskip("schedulefree")
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = make_optimizer("adamwschedulefree", [weight], 0.1, ADAM, {})
    assert isinstance(optimizer, schedulefree.AdamWScheduleFree)
    for _ in range(3):
        weight.square().sum().backward()
        optimizer.step()
    at_gradient = weight.detach().clone()
    with evaluation_weights(optimizer):
        assert not torch.allclose(weight, at_gradient)
    torch.testing.assert_close(weight, at_gradient)
