import pytest
import torch
from transformers import get_wsd_schedule

from glide_pipelines.training import LearningRate


def test_warm_up_then_constant():
    rate = LearningRate(2.0, 100, warmup_steps=3)
    assert [rate(step) for step in (0, 1, 2, 3, 50, 99)] == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]


def test_decay_over_the_last_steps():
    linear = LearningRate(1.0, 100, decay="linear", decay_steps=20)
    assert [linear(step) for step in (0, 80, 90, 99, 100, 200)] == pytest.approx([1, 1, 0.5, 0.05, 0, 0])
    cosine = LearningRate(1.0, 100, decay="cosine", decay_steps=20)
    assert [cosine(step) for step in (0, 80, 90, 100)] == pytest.approx([1, 1, 0.5, 0])
    assert LearningRate(1.0, 110, 10, "linear")(60) == pytest.approx(0.5)


@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_it_is_the_warmup_stable_decay_schedule_one_step_ahead(decay):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    schedule = get_wsd_schedule(optimizer, 11, 30, num_stable_steps=59, decay_type=decay)
    rate = LearningRate(2.0, 99, warmup_steps=10, decay=decay, decay_steps=30)
    for step in range(99):
        optimizer.step()
        schedule.step()
        assert rate(step) == pytest.approx(schedule.get_last_lr()[0], abs=1e-9)


def test_the_end_can_be_moved():
    """A run under way at a constant rate is resumed with the decay that begins where it stopped."""
    before, after = LearningRate(1.0, 100_000), LearningRate(1.0, 1500, decay="cosine", decay_steps=500)
    assert before(999) == after(999) == after(1000) == 1.0
    assert after(1001) < 1.0 and after(1500) == 0.0


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"peak": 0.0}, "learning_rate"),
        ({"peak": float("nan")}, "learning_rate"),
        ({"peak": float("inf")}, "learning_rate"),
        ({"max_train_steps": 0}, "max_train_steps"),
        ({"warmup_steps": -1}, "lr_warmup_steps"),
        ({"decay": "step"}, "lr_scheduler"),
        ({"decay_steps": 0}, "lr_decay_steps"),
    ],
)
def test_values_out_of_range_are_named(change, name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        LearningRate(**({"peak": 1.0, "max_train_steps": 10} | change))
