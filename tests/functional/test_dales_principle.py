import math

import pytest
import torch

from bio_lightning.functional import Noise, dalian_network_initialization, enforce_dales_principle, random_signs
from tests import reference
from tests.checks import assert_matches, assert_pure, floats, random_weight

DTYPES = [torch.float32, torch.float64]
NOISE = Noise(seed=1, stream=2, step=3)
SIGNS = torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0, 1.0, 1.0])


# Signs


@pytest.mark.parametrize(
    ("neurons", "fraction", "excitatory"),
    [(10, 0.8, 8), (7, 0.8, 6), (3, 0.8, 2), (1, 0.8, 1), (1000, 0.8, 800), (10, 0.0, 0), (10, 1.0, 10), (0, 0.8, 0)],
)
def test_the_number_of_excitatory_neurons_is_exact(neurons, fraction, excitatory):
    signs = random_signs(neurons, NOISE, excitatory_fraction=fraction)
    assert (signs.dtype, signs.shape) == (torch.float32, (neurons,))
    assert (signs == 1).sum() == excitatory
    assert (signs == -1).sum() == neurons - excitatory


@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("neurons", [1, 2, 33, 200])
def test_random_signs_match_the_reference(neurons, fraction):
    uniforms = floats(NOISE.uniform(torch.empty(neurons)))
    signs = random_signs(neurons, NOISE, excitatory_fraction=fraction)
    assert floats(signs) == reference.random_signs(uniforms, fraction)


def test_four_of_five_neurons_are_excitatory_by_default():
    assert random_signs(500, NOISE).sum().item() == 400 - 100


def test_every_neuron_is_excitatory_as_often_as_any_other():
    draws = torch.stack([random_signs(20, NOISE._replace(step=step)) for step in range(500)])
    share = (draws == 1).double().mean(dim=0)
    assert (share - 0.8).abs().max().item() < 4.0 * math.sqrt(0.8 * 0.2 / 500)
    assert not torch.equal(draws[0], draws[1])


def test_like_gives_only_the_device():
    like = torch.empty(3, 4, dtype=torch.float64)
    assert torch.equal(random_signs(9, NOISE, like=like), random_signs(9, NOISE))


def test_drawing_signs_touches_no_random_state():
    assert_pure(lambda like: random_signs(9, NOISE, like=like), torch.ones(3))


# Initialisation


def test_worked_example_signs_go_by_column():
    weight, signs = torch.tensor([[1.0, 2.0], [-3.0, -4.0]]), torch.tensor([[1.0, -1.0]])
    assert dalian_network_initialization(weight, signs).tolist() == [[1.0, -2.0], [3.0, -4.0]]


def test_worked_example_of_the_balance():
    weight, signs = torch.tensor([[3.0, 1.0], [3.0, 1.0]]), torch.tensor([[1.0, -1.0]])
    # Excitation 6, inhibition 2: inhibitory weights times 3; the norm goes from sqrt(20) to 6.
    size = 3.0 * math.sqrt(20.0) / 6.0
    balanced = dalian_network_initialization(weight, signs, balanced=True)
    assert floats(balanced) == pytest.approx([size, -size, size, -size])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("shape", [(9, 7), (9, 7, 3, 3)])
def test_initialisation_matches_the_reference(shape, balanced, dtype):
    weight = random_weight(*shape, dtype=dtype)
    signs = SIGNS.view(1, 7, *(1,) * (len(shape) - 2))
    new = dalian_network_initialization(weight, signs, balanced=balanced)
    assert (new.dtype, new.shape) == (dtype, weight.shape)
    by_input = weight.transpose(0, 1).flatten(1).T  # one column per presynaptic neuron
    rows = reference.dalian_network_initialization(by_input.tolist(), floats(SIGNS), balanced)
    assert_matches(new.transpose(0, 1).flatten(1).T, [value for row in rows for value in row])


@pytest.mark.parametrize("balanced", [False, True])
def test_every_column_has_the_sign_of_its_neuron(balanced):
    weight = random_weight(9, 7)
    new = dalian_network_initialization(weight, SIGNS.view(1, 7), balanced=balanced)
    assert torch.equal(new.sign(), SIGNS.double().expand(9, 7))


def test_without_balance_every_size_is_kept():
    weight = random_weight(9, 7, dtype=torch.float32)
    new = dalian_network_initialization(weight, SIGNS.view(1, 7))
    assert torch.equal(new.abs(), weight.abs())
    assert torch.equal(dalian_network_initialization(new, SIGNS.view(1, 7)), new)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0])
def test_a_balanced_layer_sums_to_zero_and_keeps_its_norm(scale, dtype):
    weight = random_weight(50, 7, dtype=dtype, scale=scale)
    new = dalian_network_initialization(weight, SIGNS.view(1, 7), balanced=True)
    assert dalian_network_initialization(weight, SIGNS.view(1, 7)).sum().abs() > weight.abs().sum() / 5
    assert new.double().sum().abs().item() < 1e-6 * weight.double().abs().sum().item()
    assert new.double().norm().item() == pytest.approx(weight.double().norm().item(), rel=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_balancing_scales_every_population_by_one_number(dtype):
    weight, signs = random_weight(50, 7, dtype=dtype), SIGNS.view(1, 7)
    gain = dalian_network_initialization(weight, signs, balanced=True) / dalian_network_initialization(weight, signs)
    for population in (1.0, -1.0):
        column = gain[:, population == SIGNS]
        assert floats(column) == pytest.approx([column[0, 0].item()] * column.numel(), rel=1e-6)


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("columns", [[1.0, -1.0], [1.0, 1.0], [-1.0, -1.0]])
def test_zero_layers_stay_zero(columns, balanced):
    new = dalian_network_initialization(torch.zeros(3, 2), torch.tensor([columns]), balanced=balanced)
    assert torch.equal(new, torch.zeros(3, 2))


def test_balance_without_inhibition_changes_nothing():
    weight = random_weight(3, 2, dtype=torch.float32).abs()
    new = dalian_network_initialization(weight, torch.ones(1, 2), balanced=True)
    assert floats(new) == pytest.approx(floats(weight))


def test_balance_without_excitation_does_not_silence_the_layer():
    weight = random_weight(3, 2, dtype=torch.float32)
    new = dalian_network_initialization(weight, -torch.ones(1, 2), balanced=True)
    assert floats(new) == pytest.approx(floats(-weight.abs()))


@pytest.mark.parametrize("shape", [(0, 2), (3, 0)])
@pytest.mark.parametrize("balanced", [False, True])
def test_initialisation_of_empty_layers(shape, balanced):
    signs = torch.ones(1, shape[1])
    assert dalian_network_initialization(torch.empty(shape), signs, balanced=balanced).shape == shape


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_kept(dtype):
    weight = random_weight(50, 7, dtype=dtype)
    new = dalian_network_initialization(weight, SIGNS.view(1, 7), balanced=True)
    assert new.dtype == dtype
    assert new.double().norm().item() == pytest.approx(weight.double().norm().item(), rel=1e-2)
    assert enforce_dales_principle(weight, SIGNS.view(1, 7))[0].dtype == dtype


# Projection


def test_worked_example_of_the_projection():
    weight, signs = torch.tensor([[1.0, 2.0], [-3.0, -4.0]]), torch.tensor([[1.0, -1.0]])
    new, wrong = enforce_dales_principle(weight, signs)
    assert new.tolist() == [[1.0, 0.0], [0.0, -4.0]]
    assert wrong.tolist() == [[False, True], [True, False]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_projection_matches_the_reference(dtype):
    weight = random_weight(9, 7, dtype=dtype)
    weight[::4] = 0.0
    new, wrong = enforce_dales_principle(weight, SIGNS.view(1, 7))
    rows, mistakes = reference.enforce_dales_principle(weight.tolist(), floats(SIGNS))
    assert (new.dtype, wrong.dtype) == (dtype, torch.bool)
    assert_matches(new, [value for row in rows for value in row])
    assert_matches(wrong, [value for row in mistakes for value in row])
    assert 0.2 < wrong.double().mean().item() < 0.6


def test_the_projection_touches_only_wrong_signs():
    weight = random_weight(9, 7, dtype=torch.float32)
    new, wrong = enforce_dales_principle(weight, SIGNS.view(1, 7))
    assert torch.equal(new[~wrong], weight[~wrong])
    assert torch.equal(new[wrong], torch.zeros(int(wrong.sum())))
    assert not torch.signbit(new[wrong]).any()  # 0 and not -0
    assert bool((new * SIGNS >= 0).all())


def test_the_projection_is_idempotent():
    once, _ = enforce_dales_principle(random_weight(9, 7), SIGNS.view(1, 7))
    twice, wrong = enforce_dales_principle(once, SIGNS.view(1, 7))
    assert torch.equal(twice, once)
    assert not wrong.any()


@pytest.mark.parametrize("balanced", [False, True])
def test_an_initialised_layer_needs_no_projection(balanced):
    weight = dalian_network_initialization(random_weight(9, 7), SIGNS.view(1, 7), balanced=balanced)
    new, wrong = enforce_dales_principle(weight, SIGNS.view(1, 7))
    assert torch.equal(new, weight)
    assert not wrong.any()


def test_a_weight_that_is_nan_is_not_hidden():
    new, wrong = enforce_dales_principle(torch.tensor([[math.nan, math.nan]]), torch.tensor([[1.0, -1.0]]))
    assert bool(new.isnan().all())
    assert not wrong.any()


@pytest.mark.parametrize("shape", [(0, 2), (3, 0)])
def test_projection_of_empty_layers(shape):
    new, wrong = enforce_dales_principle(torch.empty(shape), torch.ones(1, shape[1]))
    assert new.shape == wrong.shape == shape


def test_nothing_is_modified():
    weight, signs = random_weight(9, 7), SIGNS.view(1, 7)
    assert_pure(enforce_dales_principle, weight, signs)
    assert_pure(lambda w, s: dalian_network_initialization(w, s, balanced=True), weight, signs)
