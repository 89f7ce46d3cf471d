"""Run benchmarks and print their figures; README.md tells how to read them."""

import argparse
import importlib
import sys
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

from bench import machine, results
from bench.report import case_lines, closing_lines, figure_lines
from bench.twins import twins_of
from bench.worker import Worker

CONCEPTS = (
    "lookup",
    "train",
    "pooled",
    "many",
    "memory",
    "growth",
    "scan",
    "checkpoint",
    "serving_open",
    "accounting",
    "distances",
    "peers",
    "torch",
    "frameworks",
    "scaling",
)


def arguments(argv):
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.partition(";")[0])
    parser.add_argument(
        "names",
        nargs="*",
        metavar="names",
        help=f"of {', '.join(CONCEPTS)} (all); or gpu alone, first, with options of its own",
    )
    scale = parser.add_mutually_exclusive_group()
    scale.add_argument("--quick", action="store_true", help="seconds, tiny tables: does it run?")
    scale.add_argument("--small", action="store_true", help="1 M rows, for two builds in turn")
    parser.add_argument("--seed", type=int, default=0, help="of keys and tables (0)")
    parser.add_argument(
        "--out", type=Path, help="folder of the JSON (bench/results; --quick: none)"
    )
    parser.add_argument(
        "--show",
        action="store_true",
        help="run nothing: the targets by the results in --out",
    )
    parser.add_argument("--label", default="", help="name of this run, ends its file name")
    parser.add_argument(
        "--against",
        action="append",
        default=[],
        metavar="LABEL=FOLDER",
        help="another build: FOLDER holds its package embstore, which takes turns with this one",
    )
    found = parser.parse_args(argv)
    for name in found.names:
        if name not in CONCEPTS:
            parser.error(f"there is no benchmark {name!r}; known are {', '.join(CONCEPTS)}")
    found.builds = dict(item.partition("=")[::2] for item in found.against)
    for label, folder in found.builds.items():
        if not (Path(folder) / "embstore").is_dir():
            parser.error(f"--against {label}: there is no package embstore in {folder!r}")
    found.scale = "quick" if found.quick else "small" if found.small else "default"
    return found


def report_case(result, figures):
    """Print a case as it ends; its figures come in the table at the end."""
    print("\n".join(case_lines(result)), flush=True)


def run_concept(name, options, facts):
    """Run one benchmark and return its `Run`."""
    module = importlib.import_module(f"bench.bench_{name}")
    date = datetime.now(UTC).strftime("%Y-%m-%dT%H%M%SZ")
    with ExitStack() as stack:
        workers = {k: stack.enter_context(Worker(v)) for k, v in options.builds.items()}
        twins = twins_of(workers, module.__name__, options.scale, options.seed)
        cases, figures = module.measure(options.scale, options.seed, report_case, twins)
    return results.Run(
        concept=name,
        date=date,
        scale=options.scale,
        label=options.label,
        seed=options.seed,
        machine=facts,
        cases=cases,
        figures=figures,
    )


def show(runs):
    """Print the targets by results, those of a card by a run of `gpu`."""
    on_card = [runs.pop("gpu")] if "gpu" in runs else []
    print("\n".join(closing_lines(runs.values(), machine.lacks())))
    if on_card:
        from bench.gpu.targets import ROWS

        card = on_card[0].machine.get("card", {})
        print(f"\non a card: {card.get('name', 'unknown')}")
        print("\n".join(closing_lines(on_card, {}, ROWS)))


def main(argv=None):
    """Run what the command line names, print it, and write it to files."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["gpu"]:
        from bench.gpu import program

        return program.main(argv[1:])
    options = arguments(argv)
    if options.show:
        show(results.latest(options.out or results.FOLDER))
        return 0
    facts = machine.facts()
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    runs = []
    for name in options.names or CONCEPTS:
        print(f"\n=== {name}, {options.scale}", flush=True)
        start = time.monotonic()
        runs.append(run_concept(name, options, facts))
        print(f"({time.monotonic() - start:.0f} s)")
    for run in runs:
        print(f"\n=== {run.concept}: figures")
        print("\n".join(figure_lines(run.figures)))
    print("\n=== targets")
    print("\n".join(closing_lines(runs, machine.lacks())))
    print()
    for warning in machine.warnings(facts):
        print(warning)
    folder = options.out or (None if options.quick else results.FOLDER)
    for run in runs if folder else ():
        print(f"written: {results.write(run, folder).name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
