"""A second process that runs parts of a benchmark, with this build of embstore or with another.

It takes lines of JSON on stdin and answers with lines of JSON on stdout. So contenders of another
build, or of an environment of its own, take turns with those of this process; they are timed where
they run, and the way through the pipe is not counted.
"""

import importlib
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import embstore as es

ROOT = Path(__file__).resolve().parent.parent
THIS_BUILD = Path(es.__file__).resolve().parent.parent


class Worker:
    """A child process; `ask` calls a function of one of its modules and returns what it returns.

    `build` is the folder in which the child finds the package embstore.
    """

    def __init__(self, build=THIS_BUILD, python=sys.executable):
        path = os.pathsep.join([str(Path(build).resolve()), str(ROOT)])
        self._child = subprocess.Popen(
            [python, "-m", "bench.worker"],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, module, function, *arguments):
        """Return what the function returns in the child; a RuntimeError holds what it raised."""
        line = json.dumps([module, function, arguments])
        self._child.stdin.write(line + "\n")
        self._child.stdin.flush()
        answer = json.loads(self._child.stdout.readline() or '{"error": "it has ended"}')
        if "error" in answer:
            raise RuntimeError(f"the worker of {module}.{function}: {answer['error']}")
        return answer["result"]

    def close(self):
        self._child.stdin.close()
        self._child.wait()
        self._child.stdout.close()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()


class Host:
    """The side of the child: the one contender at a time that it holds, and its workspace."""

    def __init__(self):
        self._setup = None
        self._workspace = None
        self._calls = {}

    def begin(self, module, scale, seed, i_case, name):
        """Build a contender of case number `i_case`; return nothing."""
        from bench.harness import set_threads

        cases = importlib.import_module(module).cases(scale, seed)
        case = next(case for i, case in enumerate(cases) if i == i_case)
        contender = next(c for c in case.contenders if c.name == name)
        if self._setup != case.setup:
            self._calls, self._workspace = {}, None
            self._setup, self._workspace = case.setup, case.setup.build()
        set_threads(contender.threads)
        self._calls = {k: v for k, v in self._calls.items() if k[0] == i_case}
        self._calls[i_case, name] = (contender, contender.build(self._workspace, case))

    def sample(self, i_case, name, turn):
        """Return the nanoseconds of one call of a contender."""
        from bench.harness import set_threads

        contender, call = self._calls[i_case, name]
        if set_threads(contender.threads):
            call(turn - 1)
        start = time.perf_counter_ns()
        call(turn)
        return time.perf_counter_ns() - start


HOST = Host()


def peers_of(workers, module, scale, seed):
    """Return a function of (case, i_case) that gives our contenders as run by each of `workers`.

    `workers` is a dict from the label of a build to its `Worker`.
    """

    def remote(contender, i_case, label, worker):
        def build(workspace, case):
            worker.ask("bench.worker", "HOST.begin", module, scale, seed, i_case, contender.name)
            return RemoteCall(worker, i_case, contender.name)

        name = f"{contender.name} [{label}]"
        return replace(contender, name=name, build=build, twin=contender.name)

    def peers(case, i_case):
        ours = [c for c in case.contenders if c.is_ours]
        return [remote(c, i_case, *item) for item in workers.items() for c in ours]

    return peers


class RemoteCall:
    """A call that another process runs and times."""

    def __init__(self, worker, i_case, name):
        self._worker = worker
        self._asked = (i_case, name)

    def __call__(self, turn):
        self.sample_ns(turn)

    def sample_ns(self, turn):
        return self._worker.ask("bench.worker", "HOST.sample", *self._asked, turn)


def answer(line):
    """Return the answer to one line: {"result": ...} or {"error": ...}."""
    module, function, arguments = json.loads(line)
    try:
        found = importlib.import_module(module)
        for name in function.split("."):
            found = getattr(found, name)
        return {"result": found(*arguments)}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def serve():
    """Answer lines until stdin ends; what a module prints goes to stderr."""
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        print(json.dumps(answer(line)), file=answers, flush=True)


if __name__ == "__main__":
    serve()
