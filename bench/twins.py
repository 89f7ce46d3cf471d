"""Contenders of other builds of embstore: the same ones as ours, in a process of their own."""

import gc
from contextlib import ExitStack
from dataclasses import replace

from bench import harness
from bench.harness import Contender
from bench.worker import RemoteCall, Worker, attribute


def build_remote(worker, module, scale, seed, i_case, name):
    """Return a builder of a contender of a benchmark, by its name, as another process runs it."""

    def build(workspace, case):
        asked = (module, scale, seed, i_case, name)
        return RemoteCall(worker, i_case, name, "bench.twins", "lane", *asked)

    return build


class Nothing:
    """The setup of cases whose tables lie in other processes."""

    def build(self):
        return self


NOTHING = Nothing()


def twins_of(workers, module, scale, seed):
    """Return a function of (case, i_case) that gives our contenders as run by each of `workers`.

    `workers` is a dict from the label of a build to its `Worker`.
    """

    def twin(contender, i_case, label, worker):
        build = build_remote(worker, module, scale, seed, i_case, contender.name)
        name = f"{contender.name} [{label}]"
        return replace(contender, name=name, build=build, twin=contender.name)

    def twins(case, i_case):
        ours = [c for c in case.contenders if c.is_ours]
        return [twin(c, i_case, *item) for item in workers.items() for c in ours]

    return twins


_workspaces = {}  # the one in use, by its setup


def workspace_of(setup):
    """Return the workspace of a setup; the one of another setup is let go first."""
    if setup not in _workspaces:
        _workspaces.clear()
        gc.collect()
        _workspaces[setup] = setup.build()
    return _workspaces[setup]


def lane(module, scale, seed, i_case, name):
    """Build a contender of case number `i_case` of a benchmark, in the process of the twin."""
    cases = attribute(module, "cases")(scale, seed)
    case = next(case for i, case in enumerate(cases) if i == i_case)
    contender = next(c for c in case.contenders if c.name == name)
    call = contender.build(workspace_of(case.setup), case)
    harness.set_threads(contender.threads)
    return harness.Lane(contender, call, offset=0)


def side_by_side(builds, module, scale, seed, figures):
    """Yield the cases of a benchmark with our first contender, as run by each of the builds.

    `builds` is a dict from names to `Worker`s; `figures` those of every case.
    """
    for i_case, case in enumerate(attribute(module, "cases")(scale, seed)):
        ours = next(c.name for c in case.contenders if c.is_ours)
        yield replace(
            case,
            setup=NOTHING,
            contenders=tuple(
                Contender(name, build_remote(worker, module, scale, seed, i_case, ours))
                for name, worker in builds.items()
            ),
            figures=figures,
            check=None,
        )


def measure_builds(folders, module, scale, seed, report, figures):
    """Run a benchmark's cases by the builds in `folders`, by name, in turn; see `side_by_side`."""
    with ExitStack() as stack:
        builds = {name: stack.enter_context(Worker(folder)) for name, folder in folders.items()}
        return harness.measure(side_by_side(builds, module, scale, seed, figures), report)
