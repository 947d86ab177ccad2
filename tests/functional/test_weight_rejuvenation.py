import math

import pytest
import torch
from scipy import stats

from bio_lightning.functional import Noise, fresh_synapses, rejuvenate_weights, turnover_mask
from bio_lightning.functional.quantiles import quantile_table
from tests import reference
from tests.checks import assert_matches, assert_pure, floats, random_weight

DTYPES = [torch.float32, torch.float64]
NOISE = Noise(seed=1, stream=2, step=3)
SOURCES = ["init", "lognormal", "zero"]
SETTINGS = {"dre": 3.0, "shrinkage": 0.1, "scale": 0.7}
MANY = 20000
NOT_SIGNIFICANT = 1e-3
# The log-normal goes through a float32 normal.
DRAW_TOLERANCE = 2e-6


def table_of(initial):
    return quantile_table(initial, 257)


def column_signs(columns):
    return torch.tensor([1.0, -1.0]).repeat(columns)[:columns].view(1, columns)


def twin_of_fresh_synapses(weight, source, table, signs):
    """What a new synapse is, from the draws that belong to it; ``signs`` flat or None."""
    if source == "zero":
        return [0.0] * weight.numel()
    value, sign = NOISE.derive("value"), floats(NOISE.derive("sign").uniform(weight))
    if source == "init":
        new = [reference.from_quantiles(u, floats(table)) for u in floats(value.uniform(weight))]
    else:
        sizes = reference.lognormal_magnitudes(floats(weight), floats(value.normal(weight)))
        new = [-size if u < 0.5 else size for size, u in zip(sizes, sign, strict=True)]
    return new if signs is None else [abs(w) * s for w, s in zip(new, signs, strict=True)]


# Which synapses


def test_worked_example_of_the_turnover(monkeypatch):
    monkeypatch.setattr(Noise, "uniform", lambda _self, like, _index=None: torch.full(like.shape, 0.25))
    weight = torch.tensor([0.0, 0.5, -1.0, 2.0])
    # Probabilities 1, 1/2, 1/4 and 1/16: the last two are not above 1/4.
    assert turnover_mask(weight, NOISE, dre=math.log(16.0), scale=2.0).tolist() == [True, True, False, False]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("dre", "scale"), [(8.0, 1.0), (3.0, 0.7), (3.0, torch.tensor(0.1))])
def test_turnover_matches_the_reference(dre, scale, dtype):
    weight = random_weight(30, 20, dtype=dtype)
    mask = turnover_mask(weight, NOISE, dre=dre, scale=scale)
    assert (mask.dtype, mask.shape) == (torch.bool, weight.shape)
    uniforms, number = floats(NOISE.uniform(weight)), float(scale)
    probabilities = [reference.replacement_probability(w, dre, number) for w in floats(weight)]
    assert_matches(mask, [u < p for u, p in zip(uniforms, probabilities, strict=True)])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_decides_as_single_precision_does(dtype):
    weight = random_weight(300, 200).to(dtype)
    for scale in (1.0, torch.tensor([[1.0]])):
        mask = turnover_mask(weight, NOISE, dre=3.0, scale=scale)
        assert torch.equal(mask, turnover_mask(weight.float(), NOISE, dre=3.0, scale=scale))


@pytest.mark.parametrize("size", [0.0, 0.1, 0.25, 0.5])
def test_the_share_of_replaced_synapses_falls_exponentially_with_their_size(size):
    share = turnover_mask(torch.full((MANY,), size), NOISE, dre=8.0, scale=2.0).float().mean().item()
    expected = math.exp(-4.0 * size)
    error = math.sqrt(expected * (1.0 - expected) / MANY)
    assert share == pytest.approx(expected, abs=4.0 * error)


def test_the_turnover_does_not_depend_on_sign_or_unit():
    weight = random_weight(1000)
    mask = turnover_mask(weight, NOISE, scale=1.0)
    assert torch.equal(turnover_mask(-weight, NOISE, scale=1.0), mask)
    assert torch.equal(turnover_mask(weight * 0.125, NOISE, scale=0.125), mask)


def test_infinite_selectivity_replaces_nothing():
    assert not turnover_mask(torch.tensor([0.0, 1e-30, 1.0]), NOISE, dre=math.inf, scale=1.0).any()


# What compiled code computes instead of the exponential function


def test_compiled_code_decides_alike_but_within_rounding(monkeypatch):
    weight = random_weight(500, 400) * 2.0
    probability = torch.exp(-3.0 * weight.abs().double())
    settled = (NOISE.uniform(weight) / probability - 1.0).abs() > 1e-5
    assert settled.float().mean() > 0.999
    eager = turnover_mask(weight, NOISE, dre=3.0, scale=torch.tensor(1.0))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    compiled = turnover_mask(weight, NOISE, dre=3.0, scale=torch.tensor(1.0))
    assert torch.equal(compiled[settled], eager[settled])


class _Smallest:
    def uniform(self, like):
        return torch.full_like(like, 2.0**-24)


@pytest.mark.parametrize("compiling", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_smallest_draw_replaces_no_strong_synapse(monkeypatch, dtype, compiling):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    weight = torch.tensor([0.0, 16.6, 16.63, 16.64, 17.0, 1000.0, math.inf, math.nan], dtype=dtype)
    mask = turnover_mask(weight, _Smallest(), dre=1.0, scale=torch.tensor(1.0))
    assert mask.tolist() == [True] * 3 + [False] * 5
    assert not turnover_mask(weight, _Smallest(), dre=math.inf, scale=torch.tensor(1.0)).any()


# New synapses


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_signs", [False, True])
@pytest.mark.parametrize("source", SOURCES)
def test_fresh_synapses_match_the_reference(source, with_signs, dtype):
    weight = random_weight(30, 20, dtype=dtype)
    weight[::7] = 0.0  # silent synapses have no logarithm
    table = table_of(random_weight(30, 20, seed=1, dtype=dtype))
    signs = column_signs(20) if with_signs else None
    new = fresh_synapses(weight, NOISE, source=source, table=table, signs=signs)
    assert (new.dtype, new.shape) == (dtype, weight.shape)
    flat = floats(signs.expand(30, 20)) if with_signs else None
    assert_matches(new, twin_of_fresh_synapses(weight, source, table, flat), DRAW_TOLERANCE)


@pytest.mark.parametrize(
    "initial",
    [
        pytest.param(random_weight(400, 40, scale=0.1), id="normal"),
        pytest.param(torch.rand(16000, generator=torch.Generator().manual_seed(1)) - 0.5, id="uniform"),
        pytest.param(random_weight(16000).abs() + 1.0, id="positive"),
    ],
)
def test_replaced_weights_have_the_distribution_of_the_table(initial):
    weight = random_weight(MANY, dtype=torch.float32)
    new, replaced = rejuvenate_weights(weight, NOISE, scale=1.0, dre=1.0, table=table_of(initial))
    assert replaced.sum() > MANY / 3
    assert stats.ks_2samp(new[replaced].numpy(), initial.flatten().numpy()).pvalue > NOT_SIGNIFICANT
    positive = (initial > 0).double().mean().item()
    assert (new[replaced] > 0).double().mean().item() == pytest.approx(positive, abs=0.02)


def test_lognormal_synapses_have_the_fit_of_the_layer_and_both_signs():
    generator = torch.Generator().manual_seed(0)
    size = torch.exp(0.7 * torch.randn(MANY, generator=generator, dtype=torch.float64) - 2.0)
    weight = torch.where(random_weight(MANY, seed=1) > 0, size, -size)
    new = fresh_synapses(weight, NOISE, source="lognormal")
    assert stats.kstest(new.abs().numpy(), stats.lognorm(s=0.7, scale=math.exp(-2.0)).cdf).pvalue > NOT_SIGNIFICANT
    assert (new > 0).double().mean().item() == pytest.approx(0.5, abs=4.0 * 0.5 / math.sqrt(MANY))
    signs_and_sizes = torch.stack([new.sign(), new.abs().log()])
    assert abs(torch.corrcoef(signs_and_sizes)[0, 1].item()) < 4.0 / math.sqrt(MANY)


@pytest.mark.parametrize("source", ["init", "lognormal"])
def test_the_new_value_has_nothing_to_do_with_what_decided_the_replacement(source):
    weight = torch.full((MANY,), 0.1) * torch.tensor([1.0, 2.0]).repeat(MANY // 2)
    table = table_of(random_weight(5000))
    new, replaced = rejuvenate_weights(weight, NOISE, scale=1.0, source=source, table=table)
    everywhere = fresh_synapses(weight, NOISE, source=source, table=table)
    assert 0.2 < replaced.double().mean().item() < 0.5
    assert stats.ks_2samp(everywhere[replaced].numpy(), everywhere[~replaced].numpy()).pvalue > NOT_SIGNIFICANT
    assert torch.equal(new[replaced], everywhere[replaced])


@pytest.mark.parametrize("source", ["init", "lognormal"])
def test_imposed_signs_are_obeyed_and_the_sizes_stay(source):
    weight, signs = random_weight(30, 20, dtype=torch.float32), column_signs(20)
    table = table_of(random_weight(30, 20, seed=1))
    free = fresh_synapses(weight, NOISE, source=source, table=table)
    signed = fresh_synapses(weight, NOISE, source=source, table=table, signs=signs)
    assert torch.equal(signed, free.abs() * signs)
    assert torch.equal(signed.sign(), signs.expand(30, 20))


@pytest.mark.parametrize("signs", [None, column_signs(4)])
def test_a_layer_without_a_living_synapse_has_no_lognormal_fit(signs):
    new = fresh_synapses(torch.zeros(3, 4), NOISE, source="lognormal", signs=signs)
    assert torch.equal(new, torch.zeros(3, 4))


def test_a_layer_of_equal_sizes_draws_that_size():
    new = fresh_synapses(torch.full((100,), -0.25, dtype=torch.float64), NOISE, source="lognormal")
    assert floats(new.abs()) == pytest.approx([0.25] * 100)


def test_init_without_its_table_is_an_error():
    with pytest.raises(ValueError, match="quantile table"):
        fresh_synapses(torch.zeros(3), NOISE)
    with pytest.raises(ValueError, match="quantile table"):
        rejuvenate_weights(torch.zeros(3), NOISE, scale=1.0, source="init")


# The event


def test_worked_example():
    weight = torch.tensor([0.0, 10.0, -20.0, 0.0])
    signs, table = torch.tensor([1.0, 1.0, 1.0, -1.0]), torch.tensor([-0.5, -0.5])
    new, replaced = rejuvenate_weights(weight, NOISE, scale=0.1, shrinkage=0.1, table=table, signs=signs)
    assert replaced.tolist() == [True, False, False, True]  # probabilities 1, exp(-800), exp(-1600), 1
    assert floats(new) == [0.5, 9.0, -18.0, -0.5]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_signs", [False, True])
@pytest.mark.parametrize("source", SOURCES)
def test_rejuvenation_matches_the_reference(source, with_signs, dtype):
    weight = random_weight(30, 20, dtype=dtype)
    table = table_of(random_weight(30, 20, seed=1, dtype=dtype))
    signs = column_signs(20) if with_signs else None
    flat = floats(signs.expand(30, 20)) if with_signs else None
    new, replaced = rejuvenate_weights(weight, NOISE, source=source, table=table, signs=signs, **SETTINGS)
    assert (new.dtype, new.shape) == (dtype, weight.shape)
    expected, died = reference.rejuvenate_weights(
        floats(weight),
        floats(NOISE.derive("replace").uniform(weight)),
        twin_of_fresh_synapses(weight, source, table, flat),
        **SETTINGS,
    )
    assert_matches(replaced, died)
    assert_matches(new, expected, DRAW_TOLERANCE)
    assert 0.1 < reference.mean(died) < 0.5


def test_by_default_nothing_shrinks_and_the_selectivity_is_eight():
    weight, table = random_weight(30, 20), table_of(random_weight(30, 20, seed=1))
    new, replaced = rejuvenate_weights(weight, NOISE, scale=0.7, table=table)
    assert torch.equal(new[~replaced], weight[~replaced])
    assert torch.equal(replaced, turnover_mask(weight, NOISE.derive("replace"), dre=8.0, scale=0.7))
    assert torch.equal(turnover_mask(weight, NOISE, scale=0.7), turnover_mask(weight, NOISE, scale=0.7, dre=8.0))


@pytest.mark.parametrize("source", SOURCES)
def test_neutral_settings_change_no_bit(source):
    weight, table = random_weight(30, 20, dtype=torch.float32), table_of(random_weight(30, 20, seed=1))
    weight[0] = 0.0
    new, replaced = rejuvenate_weights(weight, NOISE, scale=1.0, dre=math.inf, source=source, table=table)
    assert torch.equal(new, weight)
    assert not replaced.any()


def test_shrinkage_brings_large_weights_up_for_turnover():
    weight, table = torch.full((500,), 3.0), table_of(random_weight(2000, scale=0.1))
    for shrinkage, replaced_in_the_end in ((0.0, False), (0.1, True)):
        now, ever = weight, torch.zeros(500, dtype=torch.bool)
        for step in range(60):
            now, replaced = rejuvenate_weights(
                now, NOISE._replace(step=step), scale=0.1, dre=3.0, shrinkage=shrinkage, table=table
            )
            ever |= replaced
        assert bool(ever.all()) == bool(ever.any()) == replaced_in_the_end


def test_other_steps_replace_other_synapses():
    weight = torch.full((1000,), 0.1)
    one = turnover_mask(weight, NOISE, scale=1.0)
    other = turnover_mask(weight, NOISE._replace(step=4), scale=1.0)
    probability = math.exp(-0.8)
    agreement = probability**2 + (1.0 - probability) ** 2
    assert (one == other).double().mean().item() == pytest.approx(agreement, abs=4.0 * 0.5 / math.sqrt(1000))


# Edges


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("shape", [(), (1,), (0,), (0, 3), (3, 0), (2, 3, 4, 4)])
def test_layers_of_every_shape_and_of_zeros(shape, source):
    new, replaced = rejuvenate_weights(
        torch.zeros(shape), NOISE, scale=0.5, source=source, table=torch.tensor([-1.0, 1.0])
    )
    assert new.shape == replaced.shape == shape
    assert bool(torch.isfinite(new).all())
    assert bool(replaced.all())


@pytest.mark.parametrize("scale", [0.0, torch.tensor(0.0)])
def test_a_scale_of_zero_yields_no_nan(scale):
    weight = torch.tensor([0.0, 1.0])
    new, _ = rejuvenate_weights(weight, NOISE, scale=scale, source="zero")
    assert torch.equal(new, weight)


def test_a_weight_that_is_nan_is_not_hidden():
    new, replaced = rejuvenate_weights(torch.tensor([math.nan, 0.0]), NOISE, scale=1.0, source="zero", shrinkage=0.1)
    assert math.isnan(new[0])
    assert replaced.tolist() == [False, True]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("source", SOURCES)
def test_half_precision_is_kept(source, dtype):
    weight, table = random_weight(20, 20, dtype=dtype), table_of(random_weight(20, 20, seed=1, dtype=dtype))
    new, _ = rejuvenate_weights(weight, NOISE, source=source, table=table, signs=column_signs(20), **SETTINGS)
    assert new.dtype == dtype
    assert bool(torch.isfinite(new).all())


@pytest.mark.parametrize("source", SOURCES)
def test_nothing_is_modified(source):
    weight, table = random_weight(6, 5), table_of(random_weight(30, seed=1))
    assert_pure(
        lambda w, t, s: rejuvenate_weights(w, NOISE, source=source, table=t, signs=s, **SETTINGS),
        weight,
        table,
        column_signs(5),
    )
