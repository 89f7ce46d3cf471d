"""Results on disk: one JSON file for each concept and run, its schema, and reading it back."""

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bench.stats import Target, summarize, verdict

SCHEMA = 1
NUMBERS = re.compile(r"\[[\d\s,]+\]")  # a list of samples, which stays on one line
FOLDER = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class ContenderResult:
    """The samples of one contender, one a round; a sample is `n_calls` calls."""

    name: str
    n_calls: int
    times_ns: list[int]

    def summary_ns(self):
        """Return the `Summary` of the time of one call."""
        return summarize([t / self.n_calls for t in self.times_ns])


@dataclass(frozen=True)
class CaseResult:
    """What a case measured."""

    name: str
    axes: dict[str, object]
    rounds: int
    contenders: list[ContenderResult]
    notes: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Figure:
    """One number that a benchmark exists for, with its range, its target and so its verdict."""

    name: str
    axes: dict[str, object]
    value: float
    low: float
    high: float
    unit: str
    target: Target | None = None

    def verdict(self):
        """Return what the target says; empty without a target."""
        return "" if self.target is None else verdict(self.target, self.value, self.low, self.high)

    def elsewhere(self):
        """Return the axes at which the target is meant and this figure is not."""
        return {} if self.target is None else self.target.differing_axes(self.axes)


@dataclass(frozen=True)
class Run:
    """All that one run of one concept found."""

    concept: str
    date: str
    scale: str
    label: str
    seed: int
    machine: dict[str, object]
    cases: list[CaseResult]
    figures: list[Figure]


def to_json(run):
    """Return a run as the JSON value that `from_json` takes."""
    cases = []
    for case in run.cases:
        contenders = [asdict(c) | {"summary_ns": asdict(c.summary_ns())} for c in case.contenders]
        cases.append(asdict(case) | {"contenders": contenders})
    figures = [asdict(figure) | {"verdict": figure.verdict()} for figure in run.figures]
    head = {name: getattr(run, name) for name in HEAD}
    return {"schema": SCHEMA, **head, "cases": cases, "figures": figures}


HEAD = {
    "concept": str,
    "date": str,
    "scale": str,
    "label": str,
    "seed": int,
    "machine": dict,
}
CASE = {"name": str, "axes": dict, "rounds": int, "contenders": list, "notes": dict}
CONTENDER = {"name": str, "n_calls": int, "times_ns": list}
FIGURE = {
    "name": str,
    "axes": dict,
    "value": (int, float),
    "low": (int, float),
    "high": (int, float),
    "unit": str,
    "target": (dict, type(None)),
}
TARGET = {"name": str, "bound": (int, float), "is_at_least": bool, "axes": dict}


def _take(value, fields, where):
    """Return the fields of a JSON object, each of its type."""
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected an object, got {type(value).__name__}")
    for name, kind in fields.items():
        if name not in value:
            raise ValueError(f"{where}: {name!r} is missing")
        if not isinstance(value[name], kind):
            raise ValueError(f"{where}: {name!r} is a {type(value[name]).__name__}")
    return {name: value[name] for name in fields}


def from_json(value, where="result"):
    """Return the `Run` of a JSON value; a ValueError says what is wrong with it."""
    head = _take(value, {"schema": int} | HEAD | {"cases": list, "figures": list}, where)
    if head.pop("schema") != SCHEMA:
        raise ValueError(f"{where}: schema {value['schema']}, expected {SCHEMA}")
    cases = []
    for i, item in enumerate(head["cases"]):
        at = f"{where}: case {i}"
        case = _take(item, CASE, at)
        contenders = [ContenderResult(**_take(c, CONTENDER, at)) for c in case["contenders"]]
        cases.append(CaseResult(**case | {"contenders": contenders}))
    figures = []
    for i, item in enumerate(head["figures"]):
        at = f"{where}: figure {i}"
        figure = _take(item, FIGURE, at)
        target = figure["target"]
        target = None if target is None else Target(**_take(target, TARGET, at))
        figures.append(Figure(**figure | {"target": target}))
    return Run(**head | {"cases": cases, "figures": figures})


def write(run, folder=FOLDER):
    """Write a run to ``<concept>-<date>-<machine>.json`` in `folder`; return the path."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{run.concept}-{run.date}-{run.machine.get('id', 'unknown')}"
    name += f"-{run.label}" if run.label else ""
    path = folder / f"{name}.json"
    text = json.dumps(to_json(run), indent=1)
    path.write_text(NUMBERS.sub(lambda found: "".join(found.group().split()), text) + "\n")
    return path


def read(path):
    """Return the `Run` in a file."""
    return from_json(json.loads(Path(path).read_text()), Path(path).name)


def latest(path):
    """Return the runs in a file or folder by concept; of several in a folder, the latest."""
    path = Path(path)
    files = [path] if path.is_file() else sorted(path.glob("*.json"))
    return {run.concept: run for run in sorted(map(read, files), key=lambda run: run.date)}
