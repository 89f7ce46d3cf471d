"""A second process that runs parts of a benchmark, with another build or another Python.

It takes lines of JSON on stdin and answers with lines of JSON on stdout. So contenders of another
build (twins.py), or of an environment of its own (peers.py), take turns with those of this process;
they are timed where they run, and the way through the pipe is not counted.
"""

import gc
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def this_build():
    """Return the folder that holds the package embstore which this process would import."""
    return Path(importlib.util.find_spec("embstore").origin).resolve().parent.parent


def peer_worker(peer):
    """Return a worker in the environment of a `Peer`; what the peer says goes to its log."""
    with open(peer.folder / "log.txt", "w") as log:
        return Worker(python=peer.python, environment=peer.environment, stderr=log)


class Worker:
    """A child process; `ask` calls a function of one of its modules and returns what it returns.

    `build` is a folder in which the child finds the package embstore before all others.
    """

    def __init__(self, build=None, python=sys.executable, environment=(), stderr=None):
        path = os.pathsep.join([*([str(Path(build).resolve())] if build else []), str(ROOT)])
        self._child = subprocess.Popen(
            [str(python), "-m", "bench.worker"],
            cwd=ROOT,
            env=os.environ | dict(environment) | {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
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


class RemoteCall:
    """A call that another process makes and times: what module.function(*arguments) returns there.

    The child keeps the calls of one `place`, a number or text for a case of ours, at a time.
    """

    def __init__(self, worker, place, name, module, function, *arguments):
        self._worker = worker
        self._asked = (place, name)
        worker.ask("bench.worker", "begin", place, name, module, function, arguments)

    def __call__(self, turn):
        self.sample_ns(turn)

    def sample_ns(self, turn):
        return self._worker.ask("bench.worker", "sample", *self._asked, turn)


_calls = {}  # of the child: the calls it holds, by (place, name), all of one place


def begin(place, name, module, function, arguments):
    """Make a call and keep it; those of another place are forgotten first."""
    if any(kept != place for kept, _ in _calls):
        _calls.clear()
        gc.collect()
    _calls[place, name] = attribute(module, function)(*arguments)


def sample(place, name, turn):
    """Return the nanoseconds of one call."""
    call = _calls[place, name]
    if hasattr(call, "sample_ns"):
        return call.sample_ns(turn)
    start = time.perf_counter_ns()
    call(turn)
    return time.perf_counter_ns() - start


def resident_bytes():
    """Return the memory of this process that is in use."""
    n_pages = int(Path("/proc/self/statm").read_text().split()[1])
    return n_pages * os.sysconf("SC_PAGE_SIZE")


def attribute(module, path):
    """Return what a module holds under a name, or under names joined by dots."""
    found = importlib.import_module(module)
    for name in path.split("."):
        found = getattr(found, name)
    return found


def answer(line):
    """Return the answer to one line: {"result": ...} or {"error": ...}."""
    module, function, arguments = json.loads(line)
    try:
        return {"result": attribute(module, function)(*arguments)}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def serve():
    """Answer lines until stdin ends; what a module prints goes to stderr."""
    answers, sys.stdout = sys.stdout, sys.stderr
    gc.disable()
    for line in sys.stdin:
        print(json.dumps(answer(line)), file=answers, flush=True)


if __name__ == "__main__":
    # Under its own name, so that what asks for bench.worker meets this module and not a second one.
    importlib.import_module("bench.worker").serve()
