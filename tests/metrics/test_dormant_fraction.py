import pytest
import torch

from bio_lightning.metrics import DormantFraction


def test_a_unit_that_one_batch_excites_is_not_silent():
    metric = DormantFraction(units=2, tau=0.0)
    metric.update(torch.tensor([[1.0, 0.0]]).expand(50, 2))
    assert metric.compute() == {"tau_0": 0.5}
    metric.update(torch.tensor([[0.0, -1e-3]]))
    assert metric.compute() == {"tau_0": 0.0}


def test_a_score_equal_to_tau_is_dormant():
    activity = torch.tensor([0.5, 1.5])
    for tau, share in ((0.5, 0.5), (0.499, 0.0)):
        metric = DormantFraction(units=2, tau=tau)
        metric.update(activity)
        assert metric.compute()[f"tau_{tau}"] == share


def test_all_units_of_a_silent_layer_are_dormant():
    metric = DormantFraction(units=(3, 1))
    metric.update(torch.zeros(2, 3), torch.ones(2, 1))
    assert {value.item() for value in metric.compute().values()} == {0.75}


def test_every_layer_has_a_mean_of_its_own():
    metric = DormantFraction(units=(2, 2), tau=0.1)
    metric.update(torch.tensor([1.0, 1.0]), torch.tensor([100.0, 100.0]))
    assert metric.compute() == {"tau_0.1": 0.0}


def test_a_layer_without_samples_is_not_dormant():
    metric = DormantFraction(units=(2, 2), tau=0.1)
    metric.update(torch.empty(0, 2), torch.tensor([0.0, 1.0]))
    assert metric.compute() == {"tau_0.1": 0.25}


def test_images_have_their_units_on_axis_one():
    images = torch.zeros(2, 3, 4, 5)
    images[1, 2, 3, 4] = 1.0
    metric = DormantFraction(units=3, tau=0.0, axis=1)
    metric.update(images)
    assert metric.compute()["tau_0"] == pytest.approx(2 / 3)


def test_neurons_are_counted_by_firing_rates_too():
    metric = DormantFraction(units=4)
    metric.update(torch.tensor([0.0, 0.01, 0.5, 0.5]))
    assert [value.item() for value in metric.compute().values()] == [0.25, 0.25, 0.5]


def test_many_samples_in_half_precision():
    metric = DormantFraction(units=2, tau=0.1)
    metric.update(torch.tensor([[40.0, 100.0]], dtype=torch.float16).expand(5000, 2))  # the sum is beyond float16
    assert metric.compute() == {"tau_0.1": 0.0}


@pytest.mark.parametrize("units", [0, -1, 2.5, True, "4", (3, 0), ()])
def test_units_out_of_range(units):
    with pytest.raises(ValueError, match="units: got "):
        DormantFraction(units=units)


@pytest.mark.parametrize("tau", [-0.1, (0.0, -1.0), float("nan"), ()])
def test_tau_out_of_range(tau):
    with pytest.raises(ValueError, match="tau: got "):
        DormantFraction(units=2, tau=tau)


@pytest.mark.parametrize("shape", [(2, 4), (3, 2), (), (3, 1)])
def test_activations_of_another_size(shape):
    with pytest.raises(ValueError, match=r"activation: got shape .* allowed: 3 units on axis -1"):
        DormantFraction(units=3).update(torch.zeros(shape))


def test_activations_of_another_number_of_layers():
    with pytest.raises(ValueError, match="activations: got 1; allowed: 2"):
        DormantFraction(units=(3, 3)).update(torch.zeros(1, 3))
