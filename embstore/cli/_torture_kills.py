"""Kills: a checkpoint is the one before or the one in flight, whole, whenever the process dies."""

import random
import shutil
import time
from pathlib import Path

from embstore.checkpoint import generations, inspect
from embstore.cli import _torture_saves as saves
from embstore.cli._torture_host import Child, Host
from embstore.cli._torture_program import MAX_STEP, Twin, fault_of, new_store, train
from embstore.cli._torture_report import Tally

N_KEYS_RANDOM = 20_000
N_KEYS_EACH_CALL = 300
BASE_STEP = 12


class RandomKills:
    """A process that saves in a loop, killed at random times, and started again."""

    def __init__(
        self, folder: Path, host: Host, seed: int, kinds: tuple[str, ...] = saves.KINDS
    ) -> None:
        self._folder, self._host, self._kinds = folder, host, kinds
        self._rng = random.Random(seed)
        self._save_seconds = 0.05
        self._n_folders = 0
        self._begin_anew()

    def _begin_anew(self) -> None:
        """Go on in an empty folder."""
        self._n_folders += 1
        self.path = self._folder / f"random-{self._n_folders}"
        self._twin = Twin(N_KEYS_RANDOM)
        self._last = 0

    def run(self, tally: Tally, n_kills: int | None) -> None:
        """Kill until the time is over, or `n_kills` times."""
        while tally.n_cases < n_kills if n_kills is not None else not tally.is_due:
            fault = self.kill_one()
            tally.judge(fault, f"kill {tally.n_cases + 1}, {self.path}")
            if fault is not None:
                self._begin_anew()  # what failed stays as it is
            elif self._last > MAX_STEP - 100:
                shutil.rmtree(self.path)
                self._begin_anew()

    def kill_one(self) -> str | None:
        """Let a child save for a while, kill it, and look at what it left."""
        case = {
            "do": "loop",
            "path": str(self.path),
            "n_keys": N_KEYS_RANDOM,
            "kinds": saves.KINDS,
        }
        child = self._host.start(case)
        said = self._watch(child, n_saves=self._rng.choice((0, 0, 1, 1, 2, 3)))
        time.sleep(self._rng.random() * 1.5 * self._save_seconds)
        said += child.kill()
        errors = [line for line in said if line.startswith("error")]
        if errors:
            return errors[0]
        least = max([self._last, *_numbers(said, "done")])
        most = max([least, *_numbers(said, "begun")])
        self._last, fault = fault_of(self.path, self._twin, least, most)
        return fault

    def _watch(self, child: Child, n_saves: int) -> list[str]:
        """Return what the child says until it has saved so often, or begun its first save."""
        said: list[str] = []
        begin = time.monotonic()
        for line in child.lines():
            said.append(line)
            if line.startswith("begun"):
                begin = time.monotonic()
            elif line.startswith("done"):
                self._save_seconds = 0.8 * self._save_seconds + 0.2 * (time.monotonic() - begin)
            if sum(each.startswith("done") for each in said) >= n_saves:
                break
        return said


def _numbers(said: list[str], word: str) -> list[int]:
    return [int(line.split()[1]) for line in said if line.startswith(word)]


class EachCall:
    """A save that dies at its first call to the system, at its second, and so on to its last.

    `case` is what the child is told beside the number of the call: how to die there.
    """

    def __init__(self, folder: Path, host: Host, kind: str) -> None:
        self._host, self._kind = host, kind
        self._base, self._path = folder / f"base-{kind}", folder / f"each-call-{kind}"
        self._twin = Twin(N_KEYS_EACH_CALL)
        store = new_store()
        for step in range(1, BASE_STEP + 1):
            train(store, step, N_KEYS_EACH_CALL)
        saves.save(store, self._base, BASE_STEP, "full")

    def run(self, tally: Tally, how: str, seed: int) -> int:
        """Kill at each call, in random order, until the time is over; return how many there are."""
        n_calls = self.n_calls(how)
        places = list(range(1, n_calls + 1))
        random.Random(seed).shuffle(places)
        for at in places:
            tally.judge(self.kill_at(at, how), f"call {at} of {n_calls}, {how}, {self._path}")
            if tally.is_due or tally.failures:
                break
        return n_calls

    def n_calls(self, how: str) -> int:
        """Return how many calls a save makes."""
        said = self._said(0, how)
        (n_calls,) = _numbers(said, "calls") or [0]
        if not n_calls:
            raise RuntimeError(f"a save that nobody kills failed: {said}")
        return n_calls

    def _said(self, at: int, how: str) -> list[str]:
        shutil.rmtree(self._path, ignore_errors=True)
        shutil.copytree(self._base, self._path)
        case = {"do": "once", "path": str(self._path), "n_keys": N_KEYS_EACH_CALL}
        child = self._host.start({**case, "kind": self._kind, "at": at, "how": how})
        return list(child.lines())

    def kill_at(self, at: int, how: str) -> str | None:
        """Kill a save at one call; return what is wrong with what it left."""
        said = self._said(at, how)
        if said:
            return f"the child was not killed: {said}"
        step, fault = fault_of(self._path, self._twin, BASE_STEP, BASE_STEP + 1)
        return fault or self._fault_of_next_save(step)

    def _fault_of_next_save(self, step: int) -> str | None:
        """Save once more: that must work, and clear away what the dead one left."""
        case = {"do": "once", "path": str(self._path), "n_keys": N_KEYS_EACH_CALL}
        child = self._host.start({**case, "kind": self._kind, "at": 0, "how": "before"})
        said = list(child.lines())
        if f"done {step + 1}" not in said:
            return f"the next save failed: {said}"
        return leftovers(self._path)


def leftovers(path: Path) -> str | None:
    """Return which files of a folder are of none of its generations, or None."""
    newest = inspect(path)["generation"]
    listed = {"manifest.json", "lock"}
    for generation in generations(path):
        listed |= {file["name"] for file in inspect(path, generation)["files"]}
        if generation != newest:
            listed.add(f"g{generation:08d}-manifest.json")
    others = sorted(file.name for file in path.iterdir() if file.name not in listed)
    return f"{others} are left over" if others else None
