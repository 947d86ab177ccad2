"""The tables of the benchmark, one function each."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence

import lightning.pytorch as pl

from bio_lightning import BioMonitor, bio_callbacks
from driving import event_step, step_time, watched_time
from isolated import STATUS, isolated
from measure import PASS_BYTES, Table, Timings, available_memory, interleave, milliseconds, ratio, significant
from networks import Workload, chain, gpt, mlp, resnet18, weight_count
from passes import (
    LIMIT,
    PREDECESSOR,
    Measure,
    Setup,
    Variants,
    broken_down,
    event_in_fit,
    memory_limit,
    operations,
    pass_in_fit,
    predecessor_calls,
    update_in_fit,
)
from variants import (
    ALL_MECHANISMS,
    GRADIENT_MECHANISMS,
    PredecessorCalls,
    callbacks_for,
    has_predecessor,
    predecessor_passes,
)

__all__ = ["TABLES"]

ALL_GRADIENT = "all gradient mechanisms"
#: An event reads and writes weights and both moments of Adam.
EVENT_BYTES = 24
#: Bytes per weight that a sweep may need at its peak: weights, gradients, state, temporaries of one layer.
SWEEP_BYTES = 24


def gradient_pass(setup: Setup) -> Table:
    """Every gradient mechanism alone and all of them, over the memory limit and the predecessor's three calls."""
    workload = resnet18(8 if setup.quick else 64, batch=2)
    network = workload.build()
    variants = {
        **memory_limit(setup, weight_count(network), PASS_BYTES),
        **predecessor_calls(setup, workload, predecessor_passes),
    }
    for kernel in setup.kernels:
        alone = () if setup.quick and kernel == "compiled" else GRADIENT_MECHANISMS  # each would be compiled anew
        for name in alone:
            variants[f"{name}, {kernel}"] = pass_in_fit(setup, network, workload, kernel, (name,))
        variants[f"{ALL_GRADIENT}, {kernel}"] = pass_in_fit(setup, network, workload, kernel, GRADIENT_MECHANISMS)
        variants[f"the same, update mode, {kernel}"] = update_in_fit(setup, network, workload, kernel)
    asked = {
        f"{ALL_GRADIENT}, compiled": "2 x limit, 0.1 x predecessor",
        f"{ALL_GRADIENT}, eager": "0.5 x predecessor",
    }
    timings = interleave(variants, setup.rounds(9))
    note = (
        f"ResNet-18-shaped weights, {weight_count(network) / 1e6:.1f} M. Limit: copying {PASS_BYTES} bytes per weight."
        " Predecessor: `volume_dependent_lr`, `fuzzy_learning_rates`, `crystallize`. Update mode: under Adam, less the"
        " time of Adam's own step."
    )
    return _compared("Gradient pass", timings, asked, note)


def rejuvenation(setup: Setup) -> Table:
    """An event with Adam's moments present, over the predecessor's."""
    workload = resnet18(8 if setup.quick else 64, batch=2)
    network = workload.build()
    calls = predecessor_calls(setup, workload, lambda converted: converted.rejuvenate_weights())
    variants = {**memory_limit(setup, weight_count(network), EVENT_BYTES), **calls}
    asked = {}
    for kernel in setup.kernels:
        sets = {"rejuvenation": ("weight_rejuvenation",), "with all mechanisms": ALL_MECHANISMS}
        for name, mechanisms in sets.items():
            variants[f"{name}, {kernel}"] = event_in_fit(setup, network, workload, kernel, mechanisms)
        asked["rejuvenation, compiled"] = "0.05 x predecessor"
    timings = interleave(variants, setup.rounds(9))
    note = (
        f"{weight_count(network) / 1e6:.1f} M weights; moments of new synapses are reset. Limit: copying {EVENT_BYTES}"
        " bytes per weight (weight and two moments). Predecessor: `rejuvenate_weights`, which resets nothing. With all"
        " mechanisms: also multipliers are renewed and Dale's principle projects."
    )
    return _compared("Rejuvenation event", timings, asked, note)


def _compared(title: str, timings: Timings, asked: Mapping[str, str], note: str) -> Table:
    rows: list[Sequence[str]] = [
        (
            name,
            milliseconds(timings, name),
            ratio(timings, name, LIMIT),
            ratio(timings, name, PREDECESSOR),
            asked.get(name, ""),
        )
        for name in timings
    ]
    return Table(title, ("variant", "ms", "over limit", "over predecessor", "asked: at most"), rows, note)


def lightning_step(setup: Setup) -> Table:
    """Whole training steps, over plain Lightning."""
    rows: list[Sequence[str]] = []
    for workload, steps, rounds, asked in _step_workloads(setup):
        timings = interleave(_step_variants(setup, workload, steps), setup.rounds(rounds))
        for name in timings:
            cells = (workload.name, name, milliseconds(timings, name), ratio(timings, name, "plain"))
            rows.append((*cells, asked.get(name, "")))
    note = (
        "From the start of one batch to the start of the next. Everything: all but WeightSplitting and the monitor,"
        " with a rejuvenation every 100 steps, of whose extra time a hundredth counts. MLP and ResNet with SGD"
        " (gradient mode), GPT with AdamW (update mode)."
    )
    return Table("Lightning step", ("model", "variant", "ms", "over plain", "asked: at most"), rows, note)


def _step_workloads(setup: Setup) -> list[tuple[Workload, int, int, dict[str, str]]]:
    """What to train, steps per fit, rounds, and what is asked."""
    gradient = {f"{ALL_GRADIENT}, compiled": "1.10"}
    everything = {"everything, compiled": "1.03"}
    if setup.quick:
        small = gpt(layers=2, width=64, vocabulary=512, batch=2, length=32)
        return [(mlp(hidden=256), 6, 1, gradient), (resnet18(8, batch=4), 2, 1, everything), (small, 2, 1, {})]
    if setup.accelerator == "gpu":  # a mean over 100 steps with one event
        big = gpt(layers=12, width=768, vocabulary=50257, batch=8, length=1024)
        on_gpu = {f"{ALL_GRADIENT}, compiled": "1.02", "everything, compiled": "1.02"}
        return [(mlp(), 100, 5, {}), (resnet18(), 100, 5, {}), (big, 100, 2, on_gpu)]
    big = gpt(layers=12, width=768, vocabulary=50257, batch=1, length=128)
    return [(mlp(), 40, 9, gradient), (resnet18(), 6, 5, everything), (big, 4, 3, {})]


def _step_variants(setup: Setup, workload: Workload, steps: int) -> Variants:
    def plain() -> float:
        return step_time(workload, [], steps, accelerator=setup.accelerator)

    def predecessor() -> float:
        return step_time(workload, [PredecessorCalls()], steps, accelerator=setup.accelerator, predecessor=True)

    def ours(kernel: str, mechanisms: Sequence[str]) -> Measure:
        def measure() -> float:
            settings = {"weight_rejuvenation": {"every_n_steps": event_step(steps)}}
            callbacks = callbacks_for(kernel, mechanisms, settings)
            share = 0.01 if "weight_rejuvenation" in mechanisms else 0.0
            return step_time(workload, callbacks, steps, event_share=share, accelerator=setup.accelerator)

        return measure

    variants: Variants = {"plain": plain}
    for kernel in setup.kernels:
        variants[f"{ALL_GRADIENT}, {kernel}"] = ours(kernel, GRADIENT_MECHANISMS)
        variants[f"everything, {kernel}"] = ours(kernel, ALL_MECHANISMS)
    if has_predecessor():
        variants[f"{PREDECESSOR}, three calls"] = predecessor
    return variants


def monitor(setup: Setup) -> Table | None:
    """What a run pays for being watched, logs and histograms included; ranks fall due later."""
    if setup.accelerator != "cpu":
        print("monitor is left out: it is measured on the CPU")
        return None
    workload, stretch, pairs = (mlp(hidden=256), 50, 2) if setup.quick else (mlp(), 100, 40)
    kernel = setup.kernels[-1]

    def default() -> Sequence[pl.Callback]:
        return bio_callbacks("default", ["bio_monitor.enabled=false"])

    def everything() -> Sequence[pl.Callback]:
        return callbacks_for(kernel, ALL_MECHANISMS)

    rows: list[Sequence[str]] = []
    for name, mechanisms, bare in (
        ("preset default", default, True),
        ("preset default, in a usual run", default, False),
        (f"everything, {kernel}", everything, True),
    ):
        unwatched: list[float] = []
        watched: list[float] = []
        for _ in range(setup.rounds(3)):
            watching = BioMonitor(histogram_every_n_steps=2000)  # every 1000 of the steps in which it is there
            runs = watched_time(workload, mechanisms(), watching, stretch=stretch, pairs=pairs, bare=bare)
            for seconds, more in zip((unwatched, watched), runs, strict=True):
                seconds += more
        cost = sum(watched) / sum(unwatched)
        surprises = [seconds - cost * before for seconds, before in zip(watched, unwatched, strict=True)]
        error = statistics.stdev(surprises) / len(unwatched) ** 0.5 / statistics.mean(unwatched)
        times = (significant(1000 * statistics.mean(seconds)) for seconds in (unwatched, watched))
        rows.append((name, *times, f"{cost:.3f}", f"{error:.3f}", "1.05" if mechanisms is default else ""))
    columns = ("run", "ms per step", "watched", "over unwatched", "standard error", "asked: at most")
    note = (
        f"Means over stretches of {stretch} steps of runs on {workload.name}, with the monitor in every other stretch,"
        " TensorBoard, and the defaults of `BioMonitor`: logs and histograms included, no ranks. A usual run draws and"
        " collates samples one by one and has the Trainer's defaults; the others have one batch at hand and no progress"
        " bar."
    )
    return Table("Monitor", columns, rows, note)


def small_layers(setup: Setup) -> Table:
    """What a layer costs where there is hardly a weight in it."""
    count = 100 if setup.quick else 1000
    workload = chain(count, 8)
    network = workload.build()
    variants = predecessor_calls(setup, workload, predecessor_passes)
    for kernel in setup.kernels:
        variants[f"{ALL_GRADIENT}, {kernel}"] = pass_in_fit(setup, network, workload, kernel, GRADIENT_MECHANISMS)
    timings = interleave(variants, setup.rounds(9))
    rows: list[Sequence[str]] = []
    for name, seconds in timings.items():
        asked = "15 us" if name == f"{ALL_GRADIENT}, compiled" else ""
        cells = (name, significant(1e6 * statistics.median(seconds) / count), ratio(timings, name, PREDECESSOR))
        rows.append((*cells, asked))
    columns = ("variant", "us per layer", "over predecessor", "asked: at most")
    return Table("Small layers", columns, rows, f"Gradient pass on {workload.name}.")


def sweep(setup: Setup) -> Table:
    """Cost per weight from small networks to large ones."""
    width = 316 if setup.quick else 1000
    rows: list[Sequence[str]] = []
    medians: dict[tuple[str, int], float] = {}
    counts = [count for count in ((1, 3, 10) if setup.quick else (1, 3, 10, 30, 100, 300)) if _fits(count * width**2)]
    workloads = {count: chain(count, width) for count in counts}
    variants: Variants = {}
    for count, workload in workloads.items():
        variants[f"{LIMIT} {count}"] = memory_limit(setup, count * width**2, PASS_BYTES)[LIMIT]
        for kernel in setup.kernels:
            variants[f"{kernel} {count}"] = _built_for_each(setup, workload, kernel)
    timings = interleave(variants, setup.rounds(3))
    for kernel in setup.kernels:
        for count in counts:
            name = f"{kernel} {count}"
            cost = medians[kernel, count] = statistics.median(timings[name]) / (count * width**2)
            asked = "1.3 over 3 M" if (kernel, count) == ("compiled", 300) else ""
            over = significant(cost / medians[kernel, 3]) if (kernel, 3) in medians else "-"
            size = f"{count * width**2 / 1e6:.3g} M"
            rows.append((size, kernel, significant(1e9 * cost), over, ratio(timings, name, f"{LIMIT} {count}"), asked))
    columns = ("weights", "kernel", "ns per weight", "over 3 layers", "over limit", "asked: at most")
    note = f"{ALL_GRADIENT.capitalize()}, layers of {width * width / 1e6:.3g} M weights, more and more of them."
    return Table("Sweep over sizes", columns, rows, note)


def _built_for_each(setup: Setup, workload: Workload, kernel: str) -> Measure:
    """The pass on a network that lives no longer than the measurement."""
    return lambda: pass_in_fit(setup, workload.build(), workload, kernel, GRADIENT_MECHANISMS)()


def _fits(weights: int) -> bool:
    available = available_memory()
    fits = available is None or SWEEP_BYTES * weights < available
    if not fits:
        print(f"{weights / 1e6:.0f} M weights are left out: they need {SWEEP_BYTES * weights / 1e9:.0f} GB of memory")
    return fits


def memory(setup: Setup) -> Table | None:
    """Resident memory that the callbacks add, and what a step takes on top at its peak."""
    if not STATUS.exists() or setup.accelerator != "cpu":
        print("memory is left out: it is read from /proc, on the CPU")
        return None
    layers = (1, 4) if setup.quick else (8, 40)
    rows: list[Sequence[str]] = []
    for name, mechanisms, optimizer, asked in (
        ("gradient mode", GRADIENT_MECHANISMS, "sgd", "2.1"),
        ("gradient mode, without fuzzy factors", GRADIENT_MECHANISMS[1:], "sgd", "1.1"),
        ("gradient mode, with rejuvenation", (*GRADIENT_MECHANISMS, "weight_rejuvenation"), "sgd", "2.1"),
        ("update mode", GRADIENT_MECHANISMS, "adam", ""),
    ):
        for kernel in setup.kernels:
            arguments = {"kernel": kernel, "mechanisms": mechanisms, "optimizer": optimizer, "layers": layers}
            # every tensor a mapping of its own, so that what is freed is no longer resident
            found = isolated("memory", arguments, {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"})
            peaks = (f"{found[key] / 2**20:.0f}" for key in ("temporaries_small", "temporaries_large"))
            rows.append((f"{name}, {kernel}", f"{found['bytes_per_weight'] / 4:.2f}", asked, *peaks))
        if setup.quick:
            break
    small, large = (f"peak MiB at {count} M" for count in layers)
    note = (
        f"{ALL_GRADIENT.capitalize()}. From VmRSS and VmHWM of a process of its own, less a plain run's; the cost per"
        f" weight from {layers[0]} M and {layers[1]} M weights. Peak: what a step needs on top."
    )
    return Table("Memory", ("variant", "over 4 bytes per weight", "asked: at most", small, large), rows, note)


def compilation(setup: Setup) -> Table | None:
    """Compilation with an empty cache and with a full one."""
    kernels = [kernel for kernel in setup.kernels if kernel != "eager"]
    if not kernels:
        print("compilation is left out: nothing is compiled")
        return None
    rows: list[Sequence[str]] = []
    for kernel in kernels:
        with tempfile.TemporaryDirectory() as folder:
            for name, asked in (("cold", "40"), ("warm", "5")):
                found = isolated("compilation", {"kernel": kernel}, {"TORCHINDUCTOR_CACHE_DIR": folder})
                others = (f"{found[network]:.1f}" for network in ("second", "small"))
                rows.append((f"{name}, {kernel}", f"{found['first']:.1f}", asked, *others))
    columns = ("cache on disk", "s", "asked: at most", "s for other sizes", "s for small layers")
    note = "What two steps of three layers with all mechanisms take more than with the eager kernel, in a new process."
    return Table("Compilation", columns, rows, note)


def profile(setup: Setup) -> Table | None:
    """Where the time goes that is not spent on moving memory."""
    if "compiled" not in setup.kernels or setup.accelerator != "cpu":
        print("profile is left out: it is taken of compiled code on the CPU")
        return None
    large = resnet18(8 if setup.quick else 64, batch=2)
    event = {"weight_rejuvenation": {"every_n_steps": 1}}
    rows: list[Sequence[str]] = []
    for name, workload, mechanisms, settings, traffic in (
        ("gradient pass, ResNet-18", large, GRADIENT_MECHANISMS, {}, PASS_BYTES),
        ("rejuvenation event, ResNet-18", large, ("weight_rejuvenation",), event, EVENT_BYTES),
        ("gradient pass, MLP", mlp(hidden=256 if setup.quick else 1000), GRADIENT_MECHANISMS, {}, PASS_BYTES),
        ("gradient pass, small layers", chain(100 if setup.quick else 1000, 8), GRADIENT_MECHANISMS, {}, PASS_BYTES),
    ):
        network = workload.build()
        limit = memory_limit(setup, weight_count(network), traffic)[LIMIT]()
        callbacks = callbacks_for("compiled", mechanisms, settings)
        spent = broken_down(network, workload, callbacks, event=bool(settings))
        times = (significant(1000 * seconds) for seconds in (limit, spent.total, spent.compiled))
        rest = significant(1000 * (spent.total - spent.compiled))
        rows.append((name, *times, str(spent.calls), rest))
    columns = ("what", "memory limit, ms", "all, ms", "in compiled code, ms", "calls", "outside, ms")
    note = (
        "Outside: Python, torch's way into compiled code (guards, wrappers; about 100 us a call while other work passes"
        " through the caches), and layers too small to compile."
    )
    return Table("Where the time goes", columns, rows, note)


def eager_operations(setup: Setup) -> Table | None:
    """What an eager gradient pass consists of."""
    workload = resnet18(8 if setup.quick else 64, batch=2)
    callbacks = callbacks_for("eager", GRADIENT_MECHANISMS)
    found = operations(workload.build(), workload, callbacks)
    whole = sum(seconds for _name, _count, seconds in found)
    rows: list[Sequence[str]] = [
        (name, str(count), significant(1000 * seconds), significant(seconds / whole)) for name, count, seconds in found
    ]
    note = "Gradient pass of ResNet-18 with the eager kernel, as torch's profiler sees it; the longest operations."
    return Table("Eager operations", ("operation", "calls", "ms", "share"), rows[:16], note)


#: By the name for ``--only``.
TABLES: dict[str, Callable[[Setup], Table | None]] = {
    "pass": gradient_pass,
    "rejuvenation": rejuvenation,
    "step": lightning_step,
    "monitor": monitor,
    "layers": small_layers,
    "sweep": sweep,
    "memory": memory,
    "compilation": compilation,
    "profile": profile,
    "operations": eager_operations,
}
