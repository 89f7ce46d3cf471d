"""The table of promises that `make torture` prints at its end: which test proves what, how often.

A test takes the fixture `record` and counts its cases, or bears the mark `promise` and is a case.
"""

import pytest

TALLIES = pytest.StashKey()
OF_TEST = pytest.StashKey()

# The promises of docs/reliability.md, in its words.
PROMISES = {
    "R1": "a crash loses nothing that was saved",
    "R2": "what is loaded is all that was saved",
    "R3": "a checkpoint is of one moment",
    "R4": "damage is detected",
    "R5": "a failing disk is an error, no loss",
    "R7": "a table is what the model says",
    "R11": "memory limits are kept",
    "S1": "chosen ids do not slow a table",
    "S2": "a hostile checkpoint does no harm",
    "S3": "loading runs no code",
    "S4": "nothing surprising on disk",
    "S6": "a key tells forgeries, if one is given",
}


class Tallies:
    """All counts of a session, those of one test of one promise in one place."""

    def __init__(self):
        self._by_name = {}

    def of(self, promise, test, unit):
        """Return the tally of a test; a new one at its first use."""
        from embstore.cli._torture_report import Tally

        assert promise in PROMISES, promise
        tally = Tally(f"{promise} {PROMISES[promise]}", test, unit)
        return self._by_name.setdefault((promise, test, unit), tally)

    def lines(self):
        """Return the table, in the order of PROMISES."""
        from embstore.cli._torture_report import shown

        order = list(PROMISES)
        names = sorted(self._by_name, key=lambda name: (order.index(name[0]), *name[1:]))
        return shown([self._by_name[name] for name in names]).splitlines() if names else []


def tallies_of(config):
    """Return the tallies of a session."""
    return config.stash.setdefault(TALLIES, Tallies())


def after_test(item, report):
    """Give the time of a test, and its failure if it failed, to what it counted."""
    if report.when != "call" or report.skipped:
        return
    used = item.stash.get(OF_TEST, [])
    for mark in item.iter_markers("promise"):
        tally = tallies_of(item.config).of(*mark.args, "tests")
        tally.passed()
        used = [*used, tally]
    for tally in used:
        tally.seconds += report.duration / len(used)
        if report.failed:
            tally.failures.append(item.nodeid)
