"""scaling: what sharded training costs, measured where it can be here, and projected from that.

Measured: the distinct share of batches, the table's work for a key, all-to-alls and whole steps of
processes on loopback. The model (scaling/model.py) is held against the measured steps, and then,
with what scaling/clusters.py assumes of other machines, gives the figures named "projected". A
simulation of ranks that wait for each other says what unevenness costs. docs/scaling.md has all.
"""

import time
from dataclasses import dataclass, replace

import numpy as np

import embstore as es
from bench.harness import axes_of, figure_of, set_threads
from bench.keys import draw_row_ids, key_of
from bench.machine import has_module
from bench.results import CaseResult, ContenderResult
from bench.scaling import clusters, loopback, model, shares, simulation

N_STEPS = 300  # of a simulation
N_FEATURES = 26
RATIO_UNIT, SHARE_UNIT = "times", "%"


@dataclass(frozen=True)
class Size:
    """How large a run is: rows and ids of a feature's batch, and of the loopback's one table."""

    n_rows: int
    n_ids: int
    n_work: int  # keys of a call whose time is taken
    loopback_rows: int
    loopback_ids: int
    exchange_bytes: tuple[int, ...]
    dims: tuple[int, ...]
    rounds: int


SCALES = {
    "tiny": Size(2000, 64, 500, 2000, 500, (1 << 10, 1 << 16), (16,), 3),
    "quick": Size(100_000, 2048, 20_000, 50_000, 10_000, (1 << 10, 1 << 20), (16, 64), 5),
    "small": Size(1_000_000, 4096, 100_000, 500_000, 53_248, (1 << 10, 1 << 20, 1 << 22), (64,), 9),
    "default": Size(
        1_000_000,
        4096,
        106_496,
        2_000_000,
        106_496,
        (1 << 10, 1 << 16, 1 << 20, 1 << 22),
        (16, 64, 128),
        15,
    ),
}
# What is projected: rows of a feature, its ids a rank, values and slots of a row.
PROJECTED_ROWS, PROJECTED_SAMPLES = 100_000_000, 8192
TEN_TB = 10 * clusters.TB
NOISES = {
    "quiet": simulation.QUIET,
    "5 % of spread": simulation.Noise(0.05),
    "5 % of spread, 0.1 % of stages stall threefold": simulation.Noise(0.05, 0.001, 3.0),
    "one rank slower by 20 %": simulation.Noise(0.05, n_slow=1, slow=1.2),
}


class Log:
    """The cases and figures of a run, each told as it is there."""

    def __init__(self, report):
        self._report = report
        self.cases, self.figures = [], []

    def add(self, name, axes, times_ns, figures, notes=None):
        """Add a case: nanoseconds of one call by contender, figures as (name, values, unit)."""
        contenders = [ContenderResult(n, 1, [round(t) for t in ts]) for n, ts in times_ns.items()]
        rounds = max((len(c.times_ns) for c in contenders), default=1)
        case = CaseResult(name, dict(axes), rounds, contenders, notes or {})
        made = [figure_of(f"{name}: {what}", axes, values, unit) for what, values, unit in figures]
        self.cases.append(case)
        self.figures += made
        self._report(case, made)


def timed(call, rounds):
    """Return the nanoseconds of each of some calls, after two that do not count."""
    found = []
    for i in range(rounds + 2):
        start = time.perf_counter_ns()
        call(i)
        found.append(time.perf_counter_ns() - start)
    return found[2:]


def measure_shares(log, size, seed):
    """Count distinct keys, and what owners are sent."""
    for distribution in ("zipf", "uniform"):
        for n_ids in (size.n_ids // 2, size.n_ids, size.n_ids * 4):
            axes = axes_of(n_rows=size.n_rows, batch=n_ids, distribution=distribution)
            share = shares.unique_share(distribution, size.n_rows, n_ids, seed)
            log.add("distinct keys", axes, {}, [("of a rank's ids", [share * 100], SHARE_UNIT)])
        for n in (8, 64):
            axes = axes_of(
                n_rows=size.n_rows, batch=size.n_ids, distribution=distribution, ranks=n, features=4
            )
            joint, imbalance = shares.owner_shares(
                distribution, size.n_rows, size.n_ids, n, 4, seed
            )
            figures = [
                ("among those sent to an owner", [joint * 100], SHARE_UNIT),
                ("of the busiest owner over the mean", [imbalance], RATIO_UNIT),
            ]
            log.add("owners", axes, {}, figures)


def measure_table(log, size, dim, seed):
    """Time what an owner does for distinct keys that have rows, and the deduplication of ids."""
    n, n_rows = size.n_work, max(size.loopback_rows, size.n_work)
    rng = np.random.default_rng(seed)
    table = es.Table(dim, optimizer=es.Adagrad(lr=0.01), hash_seed=seed)
    table.reserve(n_rows)
    keys = key_of(np.arange(n_rows))
    table.find_or_insert(keys, step=0).close()
    parts = [rng.permutation(keys)[:n] for _ in range(4)]
    drawn = [key_of(draw_row_ids(rng, "zipf", n_rows, n)) for _ in range(4)]
    grads = np.full((n, dim), 1e-3, np.float32)
    counts = np.ones(n, np.uint32)

    def find(i):
        table.find_or_insert(parts[i % 4], step=i + 1, counts=counts).close()

    def step(i):
        with table.find_or_insert(parts[i % 4], step=i + 1, counts=counts) as batch:
            table.apply_gradients(batch, grads, step=i + 1)

    def dedup(i):
        shares.ask(drawn[i % 4], 2) if has_module("torch") else shares.distinct(drawn[i % 4])

    times = {
        "dedup of zipf ids": timed(dedup, size.rounds),
        "find_or_insert": timed(find, size.rounds),
        "find_or_insert and apply": timed(step, size.rounds),
    }
    axes = axes_of(n_rows=n_rows, dim=dim, batch=n, threads=1)
    figures = [(name, [t / n for t in ts], "ns/key") for name, ts in times.items()]
    log.add("table work", axes, times, figures)
    dedup, find_ns, both = (float(np.median(ts)) / n for ts in times.values())
    return model.Costs(dedup, find_ns, max(0.0, both - find_ns), 0.0)


def fitted(exchanges, world_size):
    """Return the `Network` of all-to-alls by bytes: latency of the least, rate of the largest."""
    medians = {int(n): float(np.median(ts)) for n, ts in exchanges.items()}
    latency = medians[min(medians)]
    most = max(medians)
    rate = most / max(1e-9, medians[most] - latency)
    return model.Network("loopback", world_size, world_size, rate, rate, latency)


def measure_loopback(log, size, dim, costs, seed):
    """Time exchanges and steps of two processes, and hold the model against the steps."""
    asked = {
        "n_rows": size.loopback_rows,
        "dim": dim,
        "n_ids": size.loopback_ids,
        "distribution": "zipf",
        "sizes": size.exchange_bytes,
        "rounds": size.rounds,
        "seed": seed,
    }
    found = loopback.measure(2, asked)
    network = fitted(found["exchanges"], 2)
    for n_bytes, seconds in found["exchanges"].items():
        axes = axes_of(ranks=2, sent_bytes=int(n_bytes))
        rates = [int(n_bytes) / s / 1e9 for s in seconds]
        log.add(
            "all-to-all on loopback",
            axes,
            {"gloo": [s * 1e9 for s in seconds]},
            [("gloo, sent by each process", rates, "GB/s")],
        )
    share = shares.unique_share("zipf", size.loopback_rows, size.loopback_ids, seed)
    own = model.Work(size.loopback_ids, dim, share)
    parts = model.stages(own, network, costs)
    names = [name for name in model.STAGES if name != "dense"]
    measured = {n: [s[i] for s in found["steps"]] for i, n in enumerate(names)}
    wholes = [sum(step) for step in found["steps"]]
    expected = sum(parts[name] for name in names)
    axes = axes_of(
        n_rows=size.loopback_rows,
        dim=dim,
        batch=size.loopback_ids,
        distribution="zipf",
        threads=1,
        ranks=2,
    )
    sent = own.sent_bytes(2)
    of_module = {k: n for k, n in found["sent_bytes"].items() if k in sent}
    log.add(
        "sharded step on loopback",
        axes,
        {"ShardedEmbedding": [s * 1e9 for s in found["module_s"]]}
        | {"its verbs": [s * 1e9 for s in wholes]}
        | {f"of them {name}": [s * 1e9 for s in ts] for name, ts in measured.items()},
        [
            ("its verbs over the model", [s / expected for s in wholes], RATIO_UNIT),
            ("module over the model", [s / expected for s in found["module_s"]], RATIO_UNIT),
            (
                "bytes that the module sent, over the model",
                [sum(of_module.values()) / sum(sent.values())],
                RATIO_UNIT,
            ),
        ],
        {"model_ms": {name: round(parts[name] * 1e3, 3) for name in names}}
        | {"model_kb": {kind: round(n / 1e3, 1) for kind, n in sent.items()}}
        | {"sent_kb": {kind: round(n / 1e3, 1) for kind, n in of_module.items()}},
    )


def projected_work(dim, samples, value_bytes):
    """Return a rank's step as it is projected: its distinct share is counted, on Zipf ids."""
    share = shares.unique_share("zipf", PROJECTED_ROWS, samples)
    return model.Work(samples * N_FEATURES, dim, share, value_bytes=value_bytes)


def project(log, network, own, costs, samples):
    """Add what the model and its simulation say of a step on other machines."""
    parts = model.stages(own, network, costs)
    axes = axes_of(dim=own.dim, samples=samples, features=N_FEATURES, ranks=network.world_size)
    sent = own.sent_bytes(network.world_size)
    found = model.step_s(parts)
    figures = [("sent by a rank in a step", [sum(sent.values()) / 1e6], "MB")]
    figures += [(f"step, {how}", [s * 1e3], "ms") for how, s in found.items()]
    rate = network.world_size * samples / found["keys ahead"] / 1e6
    figures.append(("samples, keys ahead", [rate], "M/s"))
    for name, noise in NOISES.items():
        times = simulation.step_times(parts, network.world_size, N_STEPS, noise)
        figures.append((f"step, simulated, {name}", [*(times * 1e3)], "ms"))
    notes = {"stages_ms": {name: round(s * 1e3, 3) for name, s in parts.items()}}
    notes["sent_mb"] = {kind: round(n / 1e6, 2) for kind, n in sent.items()}
    title = f"projected, {network.name}, {8 * own.value_bytes}-bit rows"
    log.add(title, axes, {}, figures, notes)


def project_all(log, dims, costs_of_host):
    """Project to cards and to hosts like this one on a real network."""
    for dim in dims:
        for value_bytes in (4, 2):
            own = projected_work(dim, PROJECTED_SAMPLES, value_bytes)
            costs = clusters.card_costs(dim, PROJECTED_SAMPLES, slot_floats=dim)
            for n in (8, 64):
                project(log, clusters.CARDS[n], own, costs, PROJECTED_SAMPLES)
        samples = PROJECTED_SAMPLES // 2
        project(
            log, clusters.HOSTS[8], projected_work(dim, samples, 4), costs_of_host[dim], samples
        )


def project_rows(log):
    """Add what 10 TB of rows come to: rows, bytes of the table, ranks that hold them."""
    for optimizer in (es.Adagrad(), es.RowWiseAdagrad()):
        for dtype in ("float32", "bfloat16"):
            n = 100_000_000
            plan = es.Table.plan(n, dim=64, optimizer=optimizer, dtype=dtype)
            row_bytes = plan.resting_bytes / n
            n_rows = TEN_TB / row_bytes
            axes = axes_of(dim=64, optimizer=type(optimizer).__name__)
            figures = [
                ("a row with its index and record", [row_bytes], "bytes"),
                ("rows", [n_rows / 1e9], "G"),
                ("hosts of 2 TB", [TEN_TB / (clusters.HOST_BYTES * clusters.USABLE)], ""),
                ("cards of 141 GB", [TEN_TB / (clusters.HBM_BYTES * clusters.USABLE)], ""),
                ("rows of one of 64 ranks", [n_rows / 64 / 1e6], "M"),
            ]
            log.add(f"projected, 10 TB of rows, {dtype}", axes, {}, figures)


def dense_seconds(dim, samples):
    """Return the seconds of the dense part of bench_torch here; 0 without torch."""
    if not has_module("torch"):
        return 0.0
    from bench import dlrm

    call = dlrm.dense_call({"samples": samples, "features": N_FEATURES, "dim": dim}, 0)
    return float(np.median(timed(call, 5))) * 1e-9


def measure(scale, seed, report, twins=None):
    """Measure and project at a name in SCALES; say what could not be measured."""
    size, log = SCALES[scale], Log(report)
    if has_module("torch"):
        import torch  # noqa: F401 - so that its threads are set, too
    set_threads(1)
    measure_shares(log, size, seed)
    costs = {dim: measure_table(log, size, dim, seed) for dim in size.dims}
    if has_module("torch"):
        for dim in size.dims:
            measure_loopback(log, size, dim, costs[dim], seed)
    else:
        print("SKIPPED: loopback: torch is not installed")
    samples = PROJECTED_SAMPLES // 2
    hosts = {dim: replace(c, dense_s=dense_seconds(dim, samples)) for dim, c in costs.items()}
    project_all(log, size.dims, hosts)
    project_rows(log)
    return log.cases, log.figures
