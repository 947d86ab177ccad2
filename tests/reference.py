"""Naive twins of every formula: Python loops over floats, written from the formulas and not from the code they check.

Layers are flat lists of floats, or lists of rows where a neuron matters; random inputs are lists of floats too.
"""

import itertools
import math
from statistics import NormalDist

MASK32 = 0xFFFFFFFF
MASK64 = 0xFFFFFFFFFFFFFFFF
SMALLEST_RATE = 1e-3
ADULT_DIVERSITY = 0.25


# Layer statistics


def mean(values):
    return math.fsum(values) / len(values)


def mean_abs(values):
    return mean([abs(value) for value in values])


def std(values):
    centre = mean(values)
    return math.sqrt(mean([(value - centre) ** 2 for value in values]))


def clamp(value, low, high):
    return low if value < low else high if value > high else value


# Noise: CRC-32 names the stream, SplitMix64 makes the key, two rounds of a 32-bit bijection make the bits


def crc32(data, start=0):
    register = start ^ MASK32
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = (register >> 1) ^ (0xEDB88320 if register & 1 else 0)
    return register ^ MASK32


def stream(*parts):
    return crc32("\0".join(parts).encode())


def splitmix64(state):
    """The first output of the SplitMix64 generator in this state."""
    z = (state + 0x9E3779B97F4A7C15) & MASK64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK64
    return z ^ (z >> 31)


def triple32(x, second=0):
    """Wellons' hash; ``second`` is a key that comes in after the first multiplication."""
    x ^= x >> 17
    x = (x * 0xED5AD4BB + second) & MASK32
    x ^= x >> 11
    x = (x * 0xAC4C1B51) & MASK32
    x ^= x >> 15
    x = (x * 0x31848BAB) & MASK32
    return x ^ (x >> 14)


def noise_keys(seed, stream, step):
    """The 32 bits added at first and those added after the first multiplication."""
    key = splitmix64(seed & MASK64)
    key = splitmix64(key ^ stream)
    key = splitmix64(key ^ (step & MASK64))
    return key & MASK32, key >> 32


def noise_bits(seed, stream, step, index):
    """32 bits as an unsigned integer."""
    first, second = noise_keys(seed, stream, step)
    return triple32((index + first) & MASK32, second)


def uniform_from_bits(bits):
    return ((bits >> 9) + 0.5) / 2**23


def normal_from_bits(bits):
    """Written out in powers of the distance of x**2 from a quarter."""
    fields = [(bits >> shift) & (2**16 - 1) for shift in (0, 5, 11, 16)]
    x = sum(fields) / (2 * (2**16 - 1)) - 1.0
    coefficients = [3.39154124, 0.532376885, 0.0704490468, 1.8523128, 4.77244282, -18.9325066, 19.6335182]
    return x * sum(c * (x**2 - 0.25) ** power for power, c in enumerate(coefficients))


def element_index(shape, full_shape, start):
    """Flat list of the row-major indices that a piece has in the whole."""
    result = []
    for position in itertools.product(*(range(size) for size in shape)):
        index = 0
        for place, first, size in zip(position, start, full_shape, strict=True):
            index = index * size + first + place
        result.append(index)
    return result


# Quantiles


def interpolate(table, position):
    if position <= 0:
        return table[0]
    if position >= len(table) - 1:
        return table[-1]
    low = math.floor(position)
    return table[low] + (position - low) * (table[low + 1] - table[low])


def quantile_table(values, points):
    ordered = sorted(values)
    return [interpolate(ordered, k / (points - 1) * (len(ordered) - 1)) for k in range(points)]


def from_quantiles(uniform, table):
    return interpolate(table, uniform * (len(table) - 1))


def gamma_cdf(x, shape):
    """Regularised lower incomplete gamma function by its power series."""
    term = total = 1.0
    k = 0
    while term > 1e-17 * total:
        k += 1
        term *= x / (shape + k)
        total += term
    return total * math.exp(shape * math.log(x) - x - math.lgamma(shape + 1.0))


def gamma_quantile(probability, nu):
    """Gamma with mean 1 and standard deviation nu, so shape 1 / nu^2 and scale nu^2."""
    shape = 1.0 / nu**2
    low, high = 1e-12, 1.0
    while gamma_cdf(high * shape, shape) < probability:
        high *= 2.0
    for _ in range(60):
        middle = math.sqrt(low * high)
        if gamma_cdf(middle * shape, shape) < probability:
            low = middle
        else:
            high = middle
    return math.sqrt(low * high)


def beta22_quantile(probability):
    """Beta(2, 2) has the distribution function 3 b^2 - 2 b^3."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2.0
        if 3.0 * middle**2 - 2.0 * middle**3 < probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2.0


# Fuzzy learning rates


def spread_uniform(uniform, nu):
    """U[1 - nu, 1 + nu]."""
    return (1.0 - nu) + uniform * 2.0 * nu


def layer_half_width(nu, depth):
    """From nu in the first layer (depth 0) linearly to nu / 2 in the last (depth 1)."""
    return nu + depth * (nu / 2.0 - nu)


def weight_half_widths(weights, nu):
    average = mean_abs(weights)
    widths = []
    for weight in weights:
        relative = 1.0 if average == 0.0 else abs(weight) / average
        widths.append(nu * clamp(2.0 - relative, 0.5, 1.5))
    return widths


def activity_half_widths(rates, nu):
    """One half-width per neuron."""
    average = mean(rates)
    widths = []
    for rate in rates:
        relative = 1.0 if average == 0.0 else rate / average
        widths.append(nu * (2.0 - clamp(relative, 0.5, 1.5)))
    return widths


def temporal(birth, decay, age):
    return 1.0 + (birth - 1.0) * max(decay**age, ADULT_DIVERSITY)


def draw(distribution, uniforms, normals, nu, *, weights, rates_per_weight=None, depth=0.0, decay=0.97, age=0.0):
    """Factors before clamping. ``rates_per_weight`` are those of each weight's neuron, equally often each."""
    if distribution == "baseline":
        return [1.0 for _ in uniforms]
    if distribution == "uniform":
        return [spread_uniform(u, nu) for u in uniforms]
    if distribution == "normal":
        return [1.0 + nu * z for z in normals]
    if distribution == "lognormal":
        return [math.exp(-(nu**2) / 2.0 + nu * z) for z in normals]
    if distribution == "gamma":
        return [gamma_quantile(NormalDist().cdf(z), nu) for z in normals]
    if distribution == "beta":
        return [1.0 + nu * math.sqrt(5.0) * (2.0 * beta22_quantile(u) - 1.0) for u in uniforms]
    if distribution == "layer_adaptive":
        return [spread_uniform(u, layer_half_width(nu, depth)) for u in uniforms]
    if distribution == "temporal":
        return [temporal(spread_uniform(u, nu), decay, age) for u in uniforms]
    if distribution == "weight_adaptive":
        widths = weight_half_widths(weights, nu)
    else:
        widths = activity_half_widths(rates_per_weight, nu)
    return [spread_uniform(u, width) for u, width in zip(uniforms, widths, strict=True)]


def clamp_and_normalize(factors, low, high):
    clamped = [clamp(factor, low, high) for factor in factors]
    average = mean(clamped)
    return [factor / average for factor in clamped]


# Volume-dependent learning rates


def volume_dependent_lr(weights, normals, *, base_lr, stability_factor, lr_variability, reference, normalize):
    half = mean_abs(weights) if reference == "layer_mean" else 1.0
    expected = []
    for weight in weights:
        size = abs(weight)
        volume = 0.0 if size + half == 0.0 else size / (size + half)
        expected.append(math.exp(-stability_factor * volume))
    scale = 1.0 / mean(expected) if normalize else base_lr
    means = [scale * value for value in expected]
    return [abs(mu + lr_variability * mu * z) for mu, z in zip(means, normals, strict=True)]


# Synaptic scaling


def scaling_factor(rate, target, *, strength, low, high):
    ratio = max(target, SMALLEST_RATE) / max(rate, SMALLEST_RATE)
    return clamp(ratio**strength, low, high)


def scale_grad(rows, rates, *, target, strength, low, high):
    """``target`` None: the mean rate of the layer."""
    wanted = mean(rates) if target is None else target
    result = []
    for row, rate in zip(rows, rates, strict=True):
        factor = scaling_factor(rate, wanted, strength=strength, low=low, high=high)
        result.append([grad * factor for grad in row])
    return result


def tetzlaff_change(weight, rate, target, *, step_size, max_change):
    change = step_size * (target - rate) * weight**2
    return clamp(change, -max_change * abs(weight), max_change * abs(weight))


# Crystallization


def settled_or_strong(weights, grads, *, crystal_thresh, ignore_zero_grad):
    average = mean_abs(weights)
    result = []
    for weight, grad in zip(weights, grads, strict=True):
        settled = abs(grad) < crystal_thresh * abs(weight)
        if grad == 0.0 and ignore_zero_grad:
            settled = False
        strong = average > 0.0 and abs(grad) > average
        result.append(math.isfinite(grad) and (settled or strong))
    return result


def frequently_used(pre_rates, post_rates, use_thresh):
    """Rows of postsynaptic neurons, columns of presynaptic ones."""
    pre_limit = use_thresh * mean(pre_rates)
    post_limit = use_thresh * mean(post_rates)
    return [[pre > pre_limit and post > post_limit for pre in pre_rates] for post in post_rates]


def crystallize(crystal, hit, *, dampening_factor, floor, recovery):
    if hit:
        return max(crystal * dampening_factor, floor)
    return crystal + recovery * (1.0 - crystal)


# Weight rejuvenation


def replacement_probability(weight, dre, scale):
    return math.exp(-dre * abs(weight) / scale)


def lognormal_magnitudes(weights, normals):
    logs = [math.log(abs(weight)) for weight in weights if weight != 0.0]
    if not logs:
        return [0.0 for _ in normals]
    centre, spread = mean(logs), std(logs)
    return [math.exp(centre + spread * z) for z in normals]


def rejuvenate_weights(weights, uniforms, fresh, *, dre, scale, shrinkage):
    result, replaced = [], []
    for weight, uniform, new in zip(weights, uniforms, fresh, strict=True):
        dies = uniform < replacement_probability(weight, dre, scale)
        replaced.append(dies)
        result.append(new if dies else weight * (1.0 - shrinkage))
    return result, replaced


# Dale's principle


def random_signs(uniforms, excitatory_fraction):
    """The neurons with the smallest draws are excitatory."""
    count = round(excitatory_fraction * len(uniforms))
    order = sorted(range(len(uniforms)), key=lambda neuron: uniforms[neuron])
    signs = [-1.0] * len(uniforms)
    for neuron in order[:count]:
        signs[neuron] = 1.0
    return signs


def dalian_network_initialization(rows, signs, balanced):
    """One sign per column."""
    signed = [[abs(weight) * sign for weight, sign in zip(row, signs, strict=True)] for row in rows]
    if not balanced:
        return signed
    flat = [weight for row in signed for weight in row]
    excitation = math.fsum(weight for weight in flat if weight > 0.0)
    inhibition = math.fsum(-weight for weight in flat if weight < 0.0)
    gain = excitation / inhibition
    scaled = [[weight * gain if weight < 0.0 else weight for weight in row] for row in signed]
    old_norm = math.sqrt(math.fsum(weight**2 for weight in flat))
    new_norm = math.sqrt(math.fsum(weight**2 for row in scaled for weight in row))
    return [[weight * old_norm / new_norm for weight in row] for row in scaled]


def enforce_dales_principle(rows, signs):
    """w <- relu(w s) s, one sign per column, and which weights had the wrong sign."""
    new = [[max(0.0, weight * sign) * sign for weight, sign in zip(row, signs, strict=True)] for row in rows]
    wrong = [[weight * sign < 0.0 for weight, sign in zip(row, signs, strict=True)] for row in rows]
    return new, wrong


# Weight splitting


def split_weights(weights, uniforms_by_synapse):
    """Raw shares 0.5 + u, divided by their sum over the synapses of a connection."""
    parts = [[] for _ in uniforms_by_synapse]
    for position, weight in enumerate(weights):
        raw = [0.5 + uniforms[position] for uniforms in uniforms_by_synapse]
        total = math.fsum(raw)
        for part, share in zip(parts, raw, strict=True):
            part.append(weight * share / total)
    return parts


def sum_groups(units, gamma):
    result = []
    for position in range(len(units)):
        first = position // gamma * gamma
        result.append(math.fsum(units[first : first + gamma]))
    return result
