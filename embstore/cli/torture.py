"""``embstore torture``: try on this machine and this disk whether the library keeps its word."""

import argparse
import json
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from embstore.cli import _torture_model
from embstore.cli import _torture_saves as saves
from embstore.cli._options import integer, number
from embstore.cli._progress import Countdown
from embstore.cli._torture_damage import Damage
from embstore.cli._torture_faults import FailingDisk
from embstore.cli._torture_host import Host
from embstore.cli._torture_kills import EachCall, RandomKills
from embstore.cli._torture_report import Tally, failures_shown, shown

QUICK_MINUTES = 0.06

KILLED = "a kill loses nothing that was saved"
DAMAGED = "damage is detected"
FAILING = "a failing disk is an error, no loss"
MODEL = "the table is the model"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Describe the options of the command."""
    parser.add_argument("directory", nargs="?", default=".", help="a folder on the disk to test")
    parser.add_argument("--minutes", type=number(0), default=5.0, help="how long (5)")
    parser.add_argument("--seed", type=integer(0), help="of all that is random (random)")
    parser.add_argument(
        "--kills", type=integer(1), help="kill at random times so often, however long it takes"
    )
    parser.add_argument("--quick", action="store_true", help="a few seconds instead of minutes")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    """Run all tests; 0 if every promise was kept, else 1 and what was not."""
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    minutes = QUICK_MINUTES if options.quick else options.minutes
    folder = Path(tempfile.mkdtemp(prefix="embstore-torture-", dir=options.directory))
    torture = Torture(folder, seed, 60 * minutes, options.kills, is_shown=not options.json)
    try:
        torture.run()
    finally:
        if torture.n_failures == 0:
            shutil.rmtree(folder)
    _tell(torture, seed, options)
    return int(torture.n_failures > 0)


def _tell(torture: "Torture", seed: int, options: argparse.Namespace) -> None:
    """Print what came of it."""
    again = f"embstore torture {options.directory} --seed {seed}"
    again += " --quick" if options.quick else f" --minutes {options.minutes:g}"
    again += f" --kills {options.kills}" if options.kills else ""
    folder = str(torture.folder) if torture.n_failures else None
    if options.json:
        tests = [tally.as_json() for tally in torture.tallies]
        summary = {"seed": seed, "n_failures": torture.n_failures, "tests": tests}
        print(json.dumps({**summary, "folder": folder, "again": again}, indent=2))
        return
    print(f"{shown(torture.tallies)}\n\nseed {seed}, {torture.n_failures} failures")
    if torture.n_failures:
        print(f"\n{failures_shown(torture.tallies)}\n\nkept: {folder}\nagain: {again}")


class Torture:
    """All tests, each with its share of the time."""

    def __init__(
        self, folder: Path, seed: int, seconds: float, n_kills: int | None, is_shown: bool
    ) -> None:
        self.tallies: list[Tally] = []
        self.folder, self._seed, self._n_kills = folder, seed, n_kills
        self._end = time.monotonic() + seconds
        self._countdown = Countdown("torture", seconds, is_shown)

    def run(self) -> None:
        """Run the tests, one after another."""
        with self._countdown:
            self._damage()
            self._model()
            self._faults()
            self._kills()

    @property
    def n_failures(self) -> int:
        """How many cases failed so far."""
        return sum(len(tally.failures) for tally in self.tallies)

    @contextmanager
    def _test(self, promise: str, test: str, unit: str, share: float) -> Iterator[Tally]:
        """Run a test for its share of the time that is left."""
        tally = Tally(promise, test, unit, on_case=self._on_case)
        now = time.monotonic()
        tally.deadline = now + share * max(0.0, self._end - now)
        self.tallies.append(tally)
        with tally.timed():
            yield tally

    def _on_case(self, tally: Tally) -> None:
        self._countdown.show(f"{tally.n_cases} {tally.unit}")

    def _damage(self) -> None:
        damage = Damage(self.folder)
        tests: tuple[tuple[str, str, float, Callable[[Tally, int], None]], ...] = (
            ("files dropped, swapped, doubled, replaced", "cases", 0.04, damage.exchanges),
            ("changed bytes", "flips", 0.12, damage.flips),
            ("cut files", "truncations", 0.06, damage.truncations),
        )
        for test, unit, share, attack in tests:
            with self._test(DAMAGED, test, unit, share) as tally:
                attack(tally, self._seed)

    def _model(self) -> None:
        with self._test(MODEL, "random calls against a plain dict", "keys", 0.15) as tally:
            _torture_model.run(self.folder, tally, self._seed)

    def _faults(self) -> None:
        for kind in saves.KINDS:
            share = 0.4 / len(saves.KINDS)
            with self._test(FAILING, f"each call of a {kind} save fails", "cases", share) as tally:
                disk = FailingDisk(self.folder / f"failing-{kind}", kind)
                n_cases = disk.run(tally, self._seed)
                tally.test += f", {tally.n_cases} of {n_cases} ways"

    def _kills(self) -> None:
        with Host(self.folder / "children.log") as host:
            for kind in saves.KINDS:
                each = EachCall(self.folder, host, kind)
                for how, share in (("before", 0.3), ("halfway", 0.4)):
                    test = f"SIGKILL {how} each call of a {kind} save"
                    with self._test(KILLED, test, "kills", share / len(saves.KINDS)) as tally:
                        n_calls = each.run(tally, how, self._seed)
                        tally.test += f", {tally.n_cases} of {n_calls}"
            with self._test(KILLED, "SIGKILL at random times", "kills", 1.0) as tally:
                RandomKills(self.folder, host, self._seed).run(tally, self._n_kills)
