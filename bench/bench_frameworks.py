"""The adapters of TensorFlow, JAX and Keras beside each framework's own layers, and beside TFRA.

64 ids of a table in the cache, where it is the call that is measured, and 16,384 of a million rows:
a lookup outside and inside of a compiled function, and a training step of lookup, gradient and
update. Each framework runs in a process of its own (framework_*.py) on one thread, TFRA in its own
environment besides (peer_tfra.py). Before the clock starts small copies of all contenders are
compared: the rows that they give, and those that they have after a few steps.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np

from bench import harness, targets
from bench.framework import CHECK, checked_ids
from bench.harness import Absolute, Case, Contender, Ratio, Scale, axes_of
from bench.machine import ROOT
from bench.peers import TFRA
from bench.report import shown_axes
from bench.worker import RemoteCall, Worker, peer_worker, this_build
from bench.workspace import LEARNING_RATE, gradients, row_numbers

SMALL_BATCH = 64
SMALL_ROWS = 10_000  # of a table in the cache
# n_rows and batch are those of the large cases.
SCALES = {
    "tiny": Scale(n_rows=2000, batch=256, rounds=2),
    "quick": Scale(n_rows=20_000, batch=4096, rounds=5),
    "small": Scale(n_rows=200_000, batch=16_384, rounds=15),
    "default": Scale(n_rows=1_000_000, batch=16_384, rounds=31),
}
N_BATCHES = 64
LOGS = ROOT / "build" / "frameworks"
TFRA_FIND, TFRA_STEP = f"{TFRA.title} lookup", f"{TFRA.title} step"
TFRA_KINDS = {"eager": "find", "graph": "find in a graph", "step": "step"}

FIND_OP, GATHER = "embstore find op", "tf.gather"
LAYER, KERAS = "embstore Embedding", "Keras Embedding"
KERAS_STEP, RAW_STEP = "Keras Embedding and Adagrad", "tf.gather and sparse Adagrad"
WAITING, FUSED = "embstore Embedding and Optimizer", "embstore Embedding, fused"
FIND, LOOKUP, TAKE = "embstore find", "embstore lookup", "jnp.take"
OPTAX, BY_HAND = "optax adagrad, dense gradient", "sparse Adagrad by hand"
UPDATE, EMBED = "embstore lookup and update", "embstore embed"


@dataclass(frozen=True)
class Kind:
    """A kind of call: its name in cases, who does it, and who is set against whom.

    `unsummed` squares the gradients of one id one by one, as Keras's Adagrad does on TensorFlow,
    where all others square their sum: it is compared with the last one over distinct ids.
    """

    title: str
    names: tuple[str, ...]
    ratios: tuple[tuple[str, str], ...]
    unsummed: str = ""


@dataclass(frozen=True)
class Framework:
    """A framework: what must be installed, the module that runs it, and its kinds of calls."""

    title: str
    needs: tuple[str, ...]
    module: str
    kinds: dict[str, Kind]
    environment: dict[str, str]
    n_calls: int = 100  # of a sample, where batches are small

    def why_not(self):
        """Return why it cannot be measured; empty where it can."""
        missing = [name for name in self.needs if find_spec(name) is None]
        return f"without {', '.join(missing)}: make bench-frameworks" if missing else ""

    def start(self):
        """Return a worker of it; what it says goes to a log."""
        LOGS.mkdir(parents=True, exist_ok=True)
        with open(LOGS / f"{self.title}.log", "w") as log:
            return Worker(this_build(), environment=self.environment, stderr=log)


TF_NAMES = (GATHER, "tf.nn.embedding_lookup", KERAS, FIND_OP, LAYER, f"{LAYER}, training=True")
TF_RATIOS = ((FIND_OP, GATHER), (LAYER, KERAS), (FIND_OP, TFRA_FIND))
JAX_NAMES = (TAKE, "flax nnx.Embed", FIND, LOOKUP)
JAX_RATIOS = ((FIND, TAKE), (LOOKUP, TAKE))
JAX_ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "PJRT_NPROC": "1", "NPROC": "1"}  # of one thread
TENSORFLOW = Framework(
    title="TensorFlow",
    needs=("tensorflow", "keras"),
    module="bench.framework_tensorflow",
    kinds={
        "eager": Kind("lookup", TF_NAMES, TF_RATIOS),
        "graph": Kind("lookup in a tf.function", TF_NAMES, TF_RATIOS),
        "step": Kind(
            "step in a tf.function",
            (KERAS_STEP, RAW_STEP, WAITING, FUSED),
            tuple((of, over) for of in (WAITING, FUSED) for over in (KERAS_STEP, RAW_STEP)),
            unsummed=KERAS_STEP,
        ),
    },
    environment={"TF_CPP_MIN_LOG_LEVEL": "2", "KERAS_BACKEND": "tensorflow"},
)
JAX = Framework(
    title="JAX",
    needs=("jax", "optax", "flax"),
    module="bench.framework_jax",
    kinds={
        "eager": Kind("lookup", JAX_NAMES, JAX_RATIOS),
        "jit": Kind("lookup under jit", JAX_NAMES, JAX_RATIOS),
        "step": Kind(
            "step under jit",
            (OPTAX, BY_HAND, UPDATE, EMBED),
            tuple((of, over) for of in (UPDATE, EMBED) for over in (OPTAX, BY_HAND)),
        ),
    },
    environment=JAX_ENVIRONMENT,
)


def keras_on(title, package, environment):
    """Return Keras on one of its backends."""
    names = (KERAS, LAYER)
    unsummed = KERAS if package == "tensorflow" else ""
    return Framework(
        title=f"Keras on {title}",
        needs=("keras", package),
        module="bench.framework_keras",
        kinds={"step": Kind("train_on_batch", names, ((LAYER, KERAS),), unsummed)},
        environment=environment | {"KERAS_BACKEND": package},
        n_calls=20,
    )


FRAMEWORKS = (
    TENSORFLOW,
    JAX,
    keras_on("TensorFlow", "tensorflow", TENSORFLOW.environment),
    keras_on("JAX", "jax", JAX_ENVIRONMENT),
    keras_on("PyTorch", "torch", {}),
)


@dataclass(frozen=True)
class Elsewhere:
    """The setup of cases all of whose contenders run in other processes."""

    notes: tuple[tuple[str, object], ...]

    def build(self):
        return SimpleNamespace(notes={})


def build_own(framework, worker, kind, name, n_calls):
    """Return a builder of a contender of a framework."""

    def build(space, case):
        space.notes.update(case.setup.notes)
        asked = (kind, name, dict(case.axes), case.n_batches, n_calls, case.seed)
        place = f"{case.name}, {shown_axes(case.axes)}"
        return RemoteCall(worker, place, name, framework.module, "contender", *asked)

    return build


def build_tfra(worker, kind, n_calls):
    """Return a builder of TFRA's contender of a kind."""

    def build(space, case):
        asked = (TFRA_KINDS[kind], dict(case.axes), case.n_batches, case.seed, LEARNING_RATE)
        place = f"{case.name}, {shown_axes(case.axes)}"
        return RemoteCall(worker, place, kind, TFRA.module, "contender", *asked, n_calls)

    return build


def tfra_answer(worker, kind, axes, seed):
    """Return what `answer` of a framework's module returns, of TFRA."""
    row_ids = checked_ids(axes, seed, has_duplicates=True)
    values = np.repeat(row_numbers(np.arange(axes["n_rows"]))[:, None], axes["dim"], axis=1)
    trained = row_ids.tolist() if kind == "step" else []
    grads = gradients(axes["batch"], axes["dim"], seed).tolist()
    rows = worker.ask(TFRA.module, "learned", values.tolist(), trained, grads, LEARNING_RATE)
    return rows if kind == "step" else np.asarray(rows)[row_ids[0]]


def check_with(framework, worker, kind, tfra):
    """Return a check that small copies of all contenders give or learn the same rows."""
    unsummed, last = framework.kinds[kind].unsummed, framework.kinds[kind].names[-1]

    def check(space, case, calls):
        axes = dict(case.axes) | CHECK

        def answer(name, has_duplicates=True):
            if name in (TFRA_FIND, TFRA_STEP):
                return tfra_answer(tfra, kind, axes, case.seed)
            asked = (kind, name, axes, case.seed, has_duplicates)
            return worker.ask(framework.module, "answer", *asked)

        raise_unless_alike(case.name, {name: answer(name) for name in calls if name != unsummed})
        if unsummed:
            distinct = {name: answer(name, has_duplicates=False) for name in (last, unsummed)}
            raise_unless_alike(case.name, distinct)

    return check


def raise_unless_alike(place, answers):
    """Raise unless all contenders, by name, have the rows of the first, but for rounding."""
    first, *others = answers
    expected = np.asarray(answers[first])
    for name in others:
        found = np.asarray(answers[name])
        if found.shape != expected.shape or not np.allclose(found, expected, rtol=1e-4, atol=1e-5):
            raise AssertionError(f"{place}: {name!r} does not have the rows of {first!r}")


def figures_of(framework, kind, axes):
    """Return the figures of a case but for differences: ratios, and what JAX's calls take."""
    found = [Ratio(*pair) for pair in framework.kinds[kind].ratios]
    is_large_step = kind == "step" and axes["batch"] > SMALL_BATCH
    if framework is TENSORFLOW and kind == "step":
        target = targets.STEP_TFRA if is_large_step else {}
        found += [Ratio(name, TFRA_STEP, target.get(name == FUSED)) for name in (WAITING, FUSED)]
    if framework is JAX and kind != "step":
        is_small = axes["batch"] == SMALL_BATCH
        target = targets.JAX_FORWARD_US if is_small else {}
        found += [Absolute(name, "us", 1e3, target.get((kind, name))) for name in (FIND, LOOKUP)]
    return tuple(found)


def case_of(framework, worker, kind, axes, size, seed, notes, tfra):
    """Return the case of a kind of call at some axes; `tfra` is TFRA's worker or None."""
    of_kind = framework.kinds[kind]
    is_small = axes["batch"] == SMALL_BATCH
    n_calls = 2 if size.rounds <= 2 else framework.n_calls if is_small else 4
    contenders = [
        Contender(name, build_own(framework, worker, kind, name, n_calls), n_calls=n_calls)
        for name in of_kind.names
    ]
    if framework is TENSORFLOW and tfra is not None:
        name = TFRA_STEP if kind == "step" else TFRA_FIND
        contenders.append(Contender(name, build_tfra(tfra, kind, n_calls), n_calls=n_calls))
    return Case(
        name=f"{framework.title}, {of_kind.title}",
        axes=axes,
        setup=Elsewhere(notes),
        contenders=tuple(contenders),
        figures=figures_of(framework, kind, axes),
        check=check_with(framework, worker, kind, tfra),
        n_batches=N_BATCHES,
        rounds=size.rounds,
        max_seconds=15.0,
        seed=seed,
    )


def choices(scale):
    """Yield (n_rows, dim, batch) of the cases."""
    size = SCALES[scale]
    yield min(SMALL_ROWS, size.n_rows), 16, SMALL_BATCH
    yield size.n_rows, 16, size.batch
    if scale != "tiny":
        yield size.n_rows, 64, size.batch


def cases(framework, worker, scale, seed=0, notes=(), tfra=None):
    """Yield the cases of a framework at a name in SCALES."""
    for n_rows, dim, batch in choices(scale):
        axes = axes_of(n_rows=n_rows, dim=dim, batch=batch, distribution="uniform", threads=1)
        for kind in framework.kinds:
            if kind == "step" or dim == 16:
                yield case_of(framework, worker, kind, axes, SCALES[scale], seed, notes, tfra)


def difference_figures(result):
    """Return by how many microseconds our op is slower than TensorFlow's, round by round."""
    times = {c.name: np.asarray(c.times_ns) / c.n_calls for c in result.contenders}
    if not {FIND_OP, GATHER} <= set(times) or result.axes["batch"] != SMALL_BATCH:
        return []
    is_graph = result.name.endswith("tf.function")
    differences = (times[FIND_OP] - times[GATHER]) / 1e3
    title = f"{result.name}: {FIND_OP} over {GATHER}"
    target = targets.TF_OP_US[is_graph]
    return [harness.figure_of(title, result.axes, differences, "us", target)]


def measure(scale, seed, report, twins=None):
    """Run the cases of a scale; say which frameworks are not there."""
    found, figures = [], []

    def report_with_differences(result, own):
        more = difference_figures(result)
        figures.extend((*own, *more))
        report(result, [*own, *more])

    with ExitStack() as stack:
        tfra = None
        if why := TFRA.why_not():
            print(f"SKIPPED: {TFRA.title}: {why}")
        else:
            tfra = stack.enter_context(peer_worker(TFRA))
        for framework in FRAMEWORKS:
            if why := framework.why_not():
                print(f"SKIPPED: {framework.title}: {why}")
                continue
            with framework.start() as worker:
                notes = tuple(worker.ask(framework.module, "facts").items())
                own = cases(framework, worker, scale, seed, notes, tfra)
                found += harness.measure(own, report_with_differences)[0]
    return found, figures
