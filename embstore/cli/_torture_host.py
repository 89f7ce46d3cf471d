"""A host process forks a child for each case, so that killing a thousand costs no thousand starts.

1. The host has imported everything and made nothing: no table, no thread.
2. It does not reap a child before it is told to, so the number of a child is not given away while
   somebody may still kill it.
3. What children and host say goes through one pipe, a line each; after "end" there is no child.
"""

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import embstore

Case = Mapping[str, Any]

SERVE = "from embstore.cli._torture_child import main; main()"


class Host:
    """The host process, as its user sees it; a context manager."""

    def __init__(
        self, log: Path, code: str = SERVE, environment: Mapping[str, str] | None = None
    ) -> None:
        self._child: Child | None = None
        self._log_path = log
        self._log = log.open("ab")
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=_environment() | dict(environment or {}),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._child is not None:
            self._child.kill()
        self._process.communicate()
        self._log.close()

    def start(self, case: Case) -> "Child":
        """Fork a child that does `case`; the child before must have ended."""
        self.tell(json.dumps(case))
        self._child = Child(self, int(self.hear()))
        return self._child

    def tell(self, line: str) -> None:
        """Send a line."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def hear(self) -> str:
        """Receive a line."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of children ended; see {self._log_path}")
        return line.rstrip("\n")


class Child:
    """A child that runs."""

    def __init__(self, host: Host, pid: int) -> None:
        self._host = host
        self._pid = pid
        self.is_over = False

    def lines(self) -> Iterator[str]:
        """Yield what the child says, as it says it, until it has ended."""
        while not self.is_over:
            line = self._host.hear()
            if line == "end":
                self.is_over = True
                self._host.tell("reap")
            else:
                yield line

    def kill(self) -> list[str]:
        """Send SIGKILL, unless the child is known to be over; return what it had said."""
        if not self.is_over:
            os.kill(self._pid, 9)
        return list(self.lines())


def _environment() -> dict[str, str]:
    """Return an environment in which a child finds this embstore, and BLAS starts no threads."""
    root = str(Path(embstore.__file__).parent.parent)
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OPENBLAS_NUM_THREADS": "1"}


def say(line: str) -> None:
    """Send a line from a child, at once and whole."""
    os.write(1, f"{line}\n".encode())


def serve(run: Callable[[Case], None]) -> None:
    """Fork a child for each line of standard input; the child runs the case that it describes."""
    for line in sys.stdin:
        gate, opener = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(opener)
            os.read(gate, 1)  # its number is said before it says anything
            os.close(gate)
            _be_child(run, json.loads(line))
        say(str(pid))
        os.close(opener)
        os.close(gate)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        say("end")
        sys.stdin.readline()
        os.waitpid(pid, 0)


def _be_child(run: Callable[[Case], None], case: Case) -> None:
    """Run a case and leave the process, whatever happens."""
    try:
        run(case)
    except BaseException as error:
        traceback.print_exc()
        sys.stderr.flush()
        say(f"error {type(error).__name__}: {' '.join(str(error).split())}")
    finally:
        os._exit(0)
