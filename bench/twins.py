"""Contenders of other builds of embstore: the same ones as ours, in a process of their own."""

import gc
from dataclasses import replace

from bench import harness
from bench.worker import RemoteCall, attribute


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
