import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from bio_lightning.functional import Draw, Noise, element_index, noise, stream
from bio_lightning.functional.noise import Noises
from tests import reference
from tests.checks import assert_pure, floats

SIZE = 1 << 15
DRAW = torch.empty(SIZE)
KEYS = [(0, 0, 0), (1, 2, 3), (-5, 3316293165, 10**6), (2**70 + 1, 7, 2**40)]
# Keys that differ in one part only: what two layers, two steps or two runs see.
NEIGHBOURS = [
    pytest.param(Noise(3, 5, 7), Noise(3, 5, 8), id="step"),
    pytest.param(Noise(3, 5, 7), Noise(4, 5, 7), id="seed"),
    pytest.param(Noise(3, 5, 7), Noise(3, 6, 7), id="stream"),
    pytest.param(Noise(3, 5, 7), Noise(3, 5, 7).derive("sign"), id="purpose"),
    pytest.param(Noise(3, 5, 7).derive("sign"), Noise(3, 6, 7).derive("sign"), id="purpose of another stream"),
    pytest.param(Noise(3, 5, 7), Noise(3, 7, 5), id="stream and step exchanged"),
    pytest.param(Noise(3, 5, 7), Noise(5, 3, 7), id="seed and stream exchanged"),
    pytest.param(Noise(3, 5, 0), Noise(3, 5, 1 << 32), id="step beyond 32 bits"),
    pytest.param(Noise(0, 5, 7), Noise(1 << 32, 5, 7), id="seed beyond 32 bits"),
    pytest.param(Noise(1, 5, 7), Noise(-1, 5, 7), id="sign of the seed"),
]
# Some two hundred p-values are looked at here, so one in a thousand is to be expected; a defect gives 0.
NOT_SIGNIFICANT = 1e-5
FAR_CORRELATION = 4.0 / math.sqrt(SIZE)  # four standard errors of what independent draws show


def correlation(x, y):
    return torch.corrcoef(torch.stack([x.double(), y.double()]))[0, 1].item()


# Known values


def test_reference_hash_agrees_with_published_values():
    assert reference.splitmix64(0) == 0xE220A8397B1DCDAF
    assert reference.splitmix64(0x9E3779B97F4A7C15) == 0x6E789E6AA1B965F4
    assert reference.crc32(b"123456789") == 0xCBF43926


def test_known_values():
    draw = torch.empty(4)
    bits = Noise(seed=1, stream=2, step=3).bits(torch.arange(3))
    assert [value & 0xFFFFFFFF for value in floats(bits)] == [0x64D57B70, 0x2F69F19C, 0x48492E98]
    assert floats(Noise().uniform(draw)) == [
        0.3878781199455261,
        0.2012447714805603,
        0.2982040047645569,
        0.2384083867073059,
    ]
    assert floats(Noise().normal(draw)) == pytest.approx([0.2548202, -0.7066673, -0.5563065, -0.8885539], abs=1e-6)
    assert stream("volume_dependent_lr", "net.0.weight") == 3316293165


@pytest.mark.parametrize("key", KEYS)
def test_bits_match_the_reference(key):
    index = torch.tensor([0, 1, 2, 77, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32 + 5])
    actual = [value & 0xFFFFFFFF for value in floats(Noise(*key).bits(index))]
    assert actual == [reference.noise_bits(*key, i) for i in floats(index)]


@pytest.mark.parametrize("key", KEYS)
def test_uniform_and_normal_match_the_reference(key):
    noise, size = Noise(*key), 2000
    bits = [reference.noise_bits(*key, i) for i in range(size)]
    uniforms = [reference.uniform_from_bits(b) for b in bits]
    normals = [reference.normal_from_bits(b) for b in bits]
    assert floats(noise.uniform(DRAW[:size])) == uniforms
    assert floats(noise.normal(DRAW[:size])) == pytest.approx(normals, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("seed", [0, -1, 7, 1 << 32, (1 << 64) + 3])
@pytest.mark.parametrize("step", [0, 1, 1 << 31, 1 << 40])
def test_several_weights_have_the_keys_that_each_has(seed, step):
    streams = tuple(stream("a", str(layer)) for layer in range(50))
    noises = Noises(seed, streams, step)
    assert [tuple(row) for row in noises.keys().tolist()] == [Noise(seed, one, step).keys() for one in streams]
    assert noises.first() == Noise(seed, streams[0], step)


def test_streams_and_purposes_match_the_reference():
    assert stream("a", "b") == reference.stream("a", "b")
    assert stream("crystallization", "ä.weight") == reference.stream("crystallization", "ä.weight")
    assert Noise(1, 42, 3).derive("sign") == Noise(1, reference.crc32(b"sign", 42), 3)


def test_streams_are_distinct():
    names = ["ab", "a", "b", "0.weight", "0.bias", "10.weight"]
    streams = {stream(first, second) for first in names for second in names}
    assert len(streams) == len(names) ** 2
    assert stream("ab", "c") != stream("a", "bc")


# Distribution


@pytest.mark.parametrize("key", KEYS)
def test_uniform_is_uniform(key):
    u = Noise(*key).uniform(DRAW)
    assert u.dtype == torch.float32
    assert 0.0 < u.min() < 1e-3
    assert 1.0 - 1e-3 < u.max() < 1.0
    assert stats.kstest(u.numpy(), "uniform").pvalue > NOT_SIGNIFICANT
    counts = torch.histc(u, 256, 0.0, 1.0)
    assert stats.chisquare(counts.numpy()).pvalue > NOT_SIGNIFICANT


@pytest.mark.parametrize("key", KEYS)
def test_every_byte_of_the_bits_is_uniform(key):
    bits = Noise(*key).bits(torch.arange(SIZE))
    assert bits.dtype == torch.int32
    for shift in (0, 8, 16, 24):
        counts = torch.bincount((bits >> shift) & 0xFF, minlength=256)
        assert stats.chisquare(counts.numpy()).pvalue > NOT_SIGNIFICANT


@pytest.mark.parametrize("shift", [0, 8, 16, 24])
def test_over_many_keys_the_counts_scatter_as_chance_makes_them(shift):
    index, p_values = torch.arange(1 << 12), []
    for key in range(200):
        byte = (Noise(key % 7, 1000 + 37 * key, key * key).bits(index) >> shift) & 0xFF
        p_values.append(stats.chisquare(torch.bincount(byte, minlength=256).numpy()).pvalue)
    assert stats.kstest(p_values, "uniform").pvalue > NOT_SIGNIFICANT


@pytest.mark.parametrize("key", KEYS)
def test_normal_is_normal(key):
    z = Noise(*key).normal(DRAW)
    assert z.dtype == torch.float32
    assert stats.kstest(z.numpy(), "norm").pvalue > NOT_SIGNIFICANT
    assert abs(z.mean().item()) < 4.0 / math.sqrt(SIZE)
    assert z.std().item() == pytest.approx(1.0, abs=4.0 / math.sqrt(2 * SIZE))
    assert stats.kurtosis(z.double().numpy()) == pytest.approx(0.0, abs=4.0 * math.sqrt(24 / SIZE))


def test_the_ends_of_the_uniform_stay_finite(monkeypatch):
    ends = torch.tensor([0, -1], dtype=torch.int32)  # no bit set, all bits set
    monkeypatch.setattr(Draw, "bits", lambda _self: ends)
    draw = torch.empty(2)
    assert floats(Noise().uniform(draw)) == [2.0**-24, 1.0 - 2.0**-24]
    assert floats(Noise().normal(draw)) == pytest.approx([-5.1235, 5.1235], abs=1e-4)


def test_the_exact_distribution_of_the_normal_is_normal():
    """Over all 2**32 values of the bits: each adds a number of its own to the sum of the fields, or nothing."""
    steps = [sum(1 << (bit - first) for first in (0, 5, 11, 16) if first <= bit < first + 16) for bit in range(32)]
    probability = np.ones(1)
    for step in steps:
        zeros = np.zeros(step)
        probability = (np.append(probability, zeros) + np.append(zeros, probability)) / 2
    assert probability.sum() == pytest.approx(1.0, abs=1e-12)
    total = torch.arange(len(probability))
    z = noise._polynomial((total - total.max() // 2).to(torch.float32)).double().numpy()
    assert (np.diff(z) > 0).all()
    below = probability.cumsum()
    assert np.abs(below - stats.norm.cdf(z)).max() < 3e-5
    assert np.abs(below - probability - stats.norm.cdf(z)).max() < 3e-5
    moments = [(probability * z**power).sum() for power in (1, 2, 3, 4, 6)]
    assert moments == pytest.approx([0.0, 1.0, 0.0, 3.0, 15.0], rel=1e-4, abs=1e-6)
    for size, tolerance in ((1.0, 1e-3), (2.0, 2e-3), (3.0, 5e-3), (4.0, 0.03)):
        assert probability[z > size].sum() == pytest.approx(stats.norm.sf(size), rel=tolerance)


# Independence


@pytest.mark.parametrize("lag", [1, 2, 3, 16, 28 * 28, 1024])
def test_elements_are_independent_of_their_neighbours(lag):
    z = Noise(3, 5, 7).normal(DRAW)
    assert abs(correlation(z[:-lag], z[lag:])) < FAR_CORRELATION
    assert abs(correlation(z[:-lag].abs(), z[lag:].abs())) < FAR_CORRELATION


def test_pairs_of_neighbours_fill_the_square_evenly():
    cell = (Noise(3, 5, 7).uniform(DRAW) * 16).to(torch.int64)
    counts = torch.bincount(cell[0::2] * 16 + cell[1::2], minlength=256)
    assert stats.chisquare(counts.numpy()).pvalue > NOT_SIGNIFICANT


@pytest.mark.parametrize(("one", "other"), NEIGHBOURS)
def test_keys_that_differ_in_one_part_draw_independently(one, other):
    x, y = one.normal(DRAW), other.normal(DRAW)
    assert abs(correlation(x, y)) < FAR_CORRELATION
    assert abs(correlation(x.abs(), y.abs())) < FAR_CORRELATION
    cell = (one.uniform(DRAW) * 16).to(torch.int64) * 16 + (other.uniform(DRAW) * 16).to(torch.int64)
    assert stats.chisquare(torch.bincount(cell, minlength=256).numpy()).pvalue > NOT_SIGNIFICANT


@pytest.mark.parametrize(("one", "other"), NEIGHBOURS)
@pytest.mark.parametrize("block", [256, SIZE])
def test_keys_do_not_permute_or_shift_the_same_values(one, other, block):
    index = torch.arange(block)
    shared = torch.isin(one.bits(index), other.bits(index)).sum().item()
    expected = block * block / 2**32  # chance coincidences of 32-bit values
    assert shared <= expected + 6


@pytest.mark.parametrize("half", [0, 1])
def test_keys_that_nearly_agree_in_one_half_draw_independently(half):
    # Were only this half of the key in use, one draw would be a shift or a permutation of the other.
    keys = sorted((reference.noise_keys(3, 5, step)[half], step) for step in range(3000))
    gap, one, other = min((high[0] - low[0], high[1], low[1]) for low, high in itertools.pairwise(keys))
    assert gap < SIZE // 4
    index = torch.arange(SIZE)
    x, y = Noise(3, 5, one), Noise(3, 5, other)
    assert torch.isin(x.bits(index), y.bits(index)).sum().item() <= 6
    for shift in (0, gap):
        u, v = x.uniform(DRAW)[: SIZE - shift], y.uniform(DRAW)[shift:]
        assert abs(correlation(u, v)) < 4.0 / math.sqrt(SIZE - shift)
        cell = (u * 16).to(torch.int64) * 16 + (v * 16).to(torch.int64)
        assert stats.chisquare(torch.bincount(cell, minlength=256).numpy()).pvalue > NOT_SIGNIFICANT


@pytest.mark.parametrize("shift", [0, 8])
def test_spacings_between_birthdays_repeat_as_often_as_chance_makes_them(shift):
    """Marsaglia's test: in a year of 2**32 or 2**24 days, as many equal spacings as a Poisson draw has."""
    birthdays, days = 1 << (12 if shift == 0 else 9), 1 << (32 - shift)
    expected = birthdays**3 / (4 * days)
    for draws in (
        [Noise(3, 5, step).bits(torch.arange(birthdays)) for step in range(40)],  # neighbours in one draw
        list(torch.stack([Noise(3, 5, step).bits(torch.arange(40)) for step in range(birthdays)], 1)),  # over the steps
        list(torch.stack([Noise(3, s, 5).bits(torch.arange(40)) for s in range(birthdays)], 1)),  # over the layers
    ):
        repeats = 0
        for bits in draws:
            day = (bits.to(torch.int64) & 0xFFFFFFFF) >> shift
            spacing = day.sort().values.diff().sort().values
            repeats += int((spacing.diff() == 0).sum())
        assert stats.poisson.cdf(repeats, 40 * expected) > NOT_SIGNIFICANT
        assert stats.poisson.sf(repeats - 1, 40 * expected) > NOT_SIGNIFICANT


def test_one_element_over_many_steps_is_uniform_and_serially_independent():
    element = torch.tensor([12])
    values = torch.cat([Noise(0, 9, step).uniform(element, element) for step in range(2000)])
    assert stats.kstest(values.numpy(), "uniform").pvalue > NOT_SIGNIFICANT
    assert abs(correlation(values[:-1], values[1:])) < 4.0 / math.sqrt(len(values))


def test_one_element_over_many_streams_and_seeds_is_uniform():
    element = torch.tensor([0])
    for noises in ([Noise(0, s, 0) for s in range(2000)], [Noise(s, 0, 0) for s in range(2000)]):
        values = torch.cat([noise.uniform(element, element) for noise in noises])
        assert stats.kstest(values.numpy(), "uniform").pvalue > NOT_SIGNIFICANT


# Elements, shards and memory formats


def test_element_index_worked_example():
    index = element_index((2, 2), full_shape=(3, 4), start=(1, 2))
    assert index.tolist() == [[6, 7], [10, 11]]
    assert index.dtype == torch.int64


@pytest.mark.parametrize(
    ("shape", "full_shape", "start"),
    [
        ((), (), ()),
        ((5,), (9,), (3,)),
        ((2, 3), (2, 3), (0, 0)),
        ((1, 3, 2), (4, 5, 2), (2, 1, 0)),
        ((2, 2, 3, 1), (4, 2, 3, 3), (1, 0, 0, 2)),
    ],
)
def test_element_index_matches_the_reference(shape, full_shape, start):
    index = element_index(shape, full_shape=full_shape, start=start)
    assert index.shape == shape
    assert floats(index) == reference.element_index(shape, full_shape, start)


def test_element_index_defaults_to_the_whole_tensor():
    assert torch.equal(element_index((3, 4, 5)), torch.arange(60).view(3, 4, 5))


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 2)])
def test_no_elements_draw_no_numbers(shape):
    assert element_index(shape).shape == shape
    assert Noise().normal(torch.empty(shape)).shape == shape


def test_element_index_rejects_a_start_of_another_rank():
    with pytest.raises(ValueError, match="zip"):
        element_index((2, 2), start=(1,))


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_a_shard_draws_the_bits_of_its_place_in_the_whole(dim):
    noise, full = Noise(1, 2, 3), (4, 6, 8)
    whole = noise.uniform(torch.empty(full))
    size, parts = full[dim] // 2, []
    for first in (0, size):
        shape = tuple(size if d == dim else n for d, n in enumerate(full))
        start = tuple(first if d == dim else 0 for d in range(3))
        index = element_index(shape, full_shape=full, start=start)
        parts.append(noise.uniform(torch.empty(shape), index))
        normal = noise.normal(torch.empty(shape), index)
        assert torch.equal(normal, noise.normal(torch.empty(full)).narrow(dim, first, size))
    assert torch.equal(torch.cat(parts, dim), whole)
    assert not torch.equal(parts[0], parts[1])


def test_memory_format_does_not_change_the_logical_numbers():
    plain = torch.empty(4, 3, 5, 5)
    channels_last = plain.to(memory_format=torch.channels_last)
    noise = Noise(1, 2, 3)
    assert channels_last.stride() != plain.stride()
    assert torch.equal(noise.uniform(channels_last), noise.uniform(plain))
    assert torch.equal(noise.normal(channels_last), noise.normal(plain))
    assert torch.equal(noise.uniform(plain.transpose(0, 1)), noise.uniform(torch.empty(3, 4, 5, 5)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int32])
def test_the_dtype_of_the_tensor_does_not_change_the_numbers(dtype):
    noise = Noise(1, 2, 3)
    drawn = noise.uniform(torch.zeros(100, dtype=dtype))
    assert drawn.dtype == torch.float32
    assert torch.equal(drawn, noise.uniform(torch.empty(100)))


def test_the_default_dtype_does_not_change_the_numbers():
    expected = Noise(1, 2, 3).normal(DRAW)
    torch.set_default_dtype(torch.float64)
    try:
        actual = Noise(1, 2, 3).normal(DRAW)
    finally:
        torch.set_default_dtype(torch.float32)
    assert actual.dtype == torch.float32
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("method", [Noise.uniform, Noise.normal])
def test_a_draw_touches_neither_its_input_nor_the_random_state(method):
    assert_pure(lambda like: method(Noise(1, 2, 3), like), torch.ones(10, 10))


def test_derive_keeps_seed_and_step():
    assert Noise(1, 2, 3).derive("sign")._replace(stream=2) == Noise(1, 2, 3)
    assert Noise(1, 2, 3).derive("sign") != Noise(1, 2, 3).derive("value")
