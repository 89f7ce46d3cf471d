"""Engines of others, each in a process and an environment of its own (peers.py), beside ours.

TFRA's CuckooHashTable is the same kind of table: keys in, rows out. FBGEMM's CPU TBE is a static
table by row id with a fused update. Both sides run on one thread and are timed where they run.
Before the clock starts a small copy of each learns from the same batches, and the rows are
compared.
"""

from contextlib import ExitStack

import numpy as np

import embstore as es
from bench import harness, targets
from bench.bench_lookup import OURS as FIND_OUT
from bench.bench_lookup import OURS_FRESH as FIND
from bench.bench_lookup import build_ours as build_find
from bench.bench_train import OURS as STEP
from bench.bench_train import build_ours as build_step
from bench.bench_train import learned, raise_unless_alike, small_problem
from bench.harness import Case, Contender, Ratio, Scale, axes_of
from bench.keys import key_of
from bench.peers import FBGEMM, PEERS, TFRA
from bench.report import shown_axes
from bench.worker import RemoteCall, peer_worker
from bench.workspace import LEARNING_RATE, Setup, row_numbers

SCALES = {
    "tiny": Scale(n_rows=2000, batch=256, rounds=5),
    "quick": Scale(n_rows=20_000, batch=4096, rounds=5),
    "small": Scale(n_rows=1_000_000, batch=131_072, rounds=15),
    "default": Scale(n_rows=4_000_000, batch=131_072, rounds=15),
}
N_WARMUPS = 2
ASSIGN, INSERT = "embstore assign of new keys", "embstore find_or_insert of new keys"
# How each peer's Adagrad begins, where it is not our default.
ADAGRAD = {TFRA.name: {"initial_accumulator": 0.1, "eps": 1e-7}, FBGEMM.name: {}}


def build_new(call):
    """Return a builder of the birth of a batch of rows, in a table with room for all."""

    def build(space, case):
        n_keys, batch = case.n_batches * case.axes["batch"], case.axes["batch"]
        table = es.Table(space.setup.dim, hash_seed=case.seed)
        table.reserve(n_keys)
        parts = np.split(key_of(np.arange(n_keys), case.seed), case.n_batches)
        rows = np.full((batch, space.setup.dim), 0.01, np.float32)
        return lambda turn: call(table, parts[turn % len(parts)], rows)

    return build


def assign(table, keys, rows):
    table.assign(keys, rows)


def insert(table, keys, rows):
    table.find_or_insert(keys, step=0, out=rows).close()


def build_remote(peer, worker, kind):
    """Return a builder of a peer's contender of a kind."""

    def build(space, case):
        asked = (kind, dict(case.axes), case.n_batches, case.seed, LEARNING_RATE)
        place = f"{case.name}, {shown_axes(case.axes)}"
        return RemoteCall(worker, place, kind, peer.module, "contender", *asked)

    return build


def check_with(peer, worker):
    """Return a check that a small table of ours and of the peer learn the same."""

    def check(space, case, calls):
        setup, batches, grads = small_problem(case, case.seed)
        adagrad = es.Adagrad(lr=LEARNING_RATE, **ADAGRAD[peer.name])
        ours = learned(setup, batches, grads, optimizer=adagrad)
        values = np.repeat(row_numbers(np.arange(setup.n_rows))[:, None], setup.dim, axis=1)
        asked = (values.tolist(), batches.row_ids.tolist(), grads.tolist(), LEARNING_RATE)
        raise_unless_alike(case, ours, worker.ask(peer.module, "learned", *asked))

    return check


def peer_case(peer, worker, kind, axes, size, seed, ours, target):
    """Return a case of our contenders, a dict of builders, against one kind of a peer's."""
    theirs = f"{peer.title} {kind}"
    first, *_ = ours
    is_step = kind == "step"
    return Case(
        name=f"{kind} beside {peer.title}",
        axes=axes,
        setup=Setup(axes["n_rows"], axes["dim"], seed, is_trained=is_step),
        contenders=(
            *(Contender(name, build, is_ours=True) for name, build in ours.items()),
            Contender(theirs, build_remote(peer, worker, kind)),
        ),
        figures=tuple(Ratio(name, theirs, target if name == first else None) for name in ours),
        check=check_with(peer, worker) if is_step else None,
        n_batches=size.rounds + N_WARMUPS if kind == "insert" else 32,  # each key is new once
        n_warmups=N_WARMUPS,
        rounds=size.rounds,
        seed=seed,
    )


def cases(scale, seed, workers):
    """Yield the cases of a name in SCALES; `workers` are those of the peers that are there."""
    size = SCALES[scale]
    uniform = axes_of(
        n_rows=size.n_rows, dim=64, batch=size.batch, distribution="uniform", threads=1
    )
    zipf = uniform | {"distribution": "zipf"}
    finds = {FIND_OUT: build_find(False), FIND: build_find(True)}
    steps, inserts = {STEP: build_step()}, {ASSIGN: build_new(assign), INSERT: build_new(insert)}
    for peer in PEERS:
        if peer.name not in workers:
            continue
        pair = (peer, workers[peer.name])
        is_tfra = peer is TFRA
        target = targets.FIND_TFRA if is_tfra else None
        yield peer_case(*pair, "find", uniform, size, seed, finds, target)
        if is_tfra:
            target = targets.INSERT_TFRA
            yield peer_case(*pair, "insert", uniform, size, seed, inserts, target)
        for axes in (uniform, zipf):
            target = targets.TRAIN_FBGEMM[axes["distribution"], 64]
            if is_tfra:
                target = targets.TRAIN_TFRA if axes is uniform else None
            yield peer_case(*pair, "step", axes, size, seed, steps, target)


def measure(scale, seed, report, twins=None):
    """Run the cases of a scale for the peers that were built; say which were not."""
    with ExitStack() as stack:
        workers = {}
        for peer in PEERS:
            if why := peer.why_not():
                print(f"SKIPPED: {peer.title}: {why}")
            else:
                workers[peer.name] = stack.enter_context(peer_worker(peer))
        return harness.measure(cases(scale, seed, workers), report)
