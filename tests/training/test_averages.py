"""The average that is the trained model."""

import pytest
import torch
from diffusers.training_utils import EMAModel

from glide_pipelines.training.averages import Average, moving


@pytest.mark.parametrize("decay", [0.0, 0.6, 0.9999])
def test_the_moving_average_is_that_of_diffusers(decay):
    model = torch.nn.Linear(3, 4)
    average = Average(dict(model.named_parameters()), moving(decay))
    expected = EMAModel(model.parameters(), decay=decay, foreach=True)
    for number in range(1, 40):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += torch.randn_like(parameter)
        average.step(number)
        expected.step(model.parameters())
        torch.testing.assert_close(list(average.tensors().values()), expected.shadow_params, atol=1e-6, rtol=1e-5)


def test_it_is_in_the_model_for_a_while():
    model = torch.nn.Linear(3, 4)
    before = model.weight.clone()
    average = Average({"weight": model.weight}, moving(0.9))
    with torch.no_grad():
        model.weight += 1
    with average.in_model(model):
        assert torch.equal(model.weight, before) and not model.training
    assert torch.equal(model.weight, before + 1) and model.training
