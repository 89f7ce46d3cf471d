"""Measure the CUDA engine on a card: find, find_or_insert, training, bags, scans, and the floor."""

import argparse
import time
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import embstore as es
from bench import machine, results
from bench.gpu import card, ceilings, reading, targets, tiers, training
from bench.gpu.adapter import VERBS, NotMeasured
from bench.gpu.clock import EmulatedClock, GpuClock
from bench.gpu.peers import hkv_opener, hkv_program, torch_on
from bench.gpu.session import SCALES, Session
from bench.report import closing_lines


def arguments(argv):
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(prog="python -m bench gpu", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under a minute: does it run?")
    parser.add_argument(
        "--emulated", action="store_true", help="tiny, on a card that the CPU emulates; no figures"
    )
    parser.add_argument("--device", type=int, default=0, help="the number of the card (0)")
    parser.add_argument("--hkv", type=Path, help="the folder of HierarchicalKV, built by nvcc")
    parser.add_argument("--seconds", type=float, help="after which what is left is not measured")
    parser.add_argument("--seed", type=int, default=0, help="of keys and tables (0)")
    parser.add_argument("--label", default="", help="name of this run, ends its file name")
    parser.add_argument("--out", type=Path, help="folder of the JSON and plots (bench/results)")
    found = parser.parse_args(argv)
    if found.quick and found.emulated:
        parser.error("--emulated is tiny already")
    found.scale = "emulated" if found.emulated else "quick" if found.quick else "default"
    return found


@contextmanager
def clock_of(options):
    """Open the card, or what stands for it."""
    clock = EmulatedClock() if options.emulated else GpuClock(options.device)
    try:
        yield clock
    finally:
        clock.close()


def measure(session, options):
    """Run all sections, the ones that matter most first; yield after each."""
    hkv = options.hkv
    if hkv is not None and not session.clock.is_emulated:
        with session.guarded("HierarchicalKV", {}):
            hkv_program(hkv)
    sections = {
        "ceilings": lambda: ceilings.measure(session),
        "rows by key": lambda: reading.measure(session, hkv_opener(session, hkv)),
        "training": lambda: training.measure(session),
        "rows on the host": lambda: tiers.measure(session),
    }
    for name, section in sections.items():
        session.say(f"\n=== {name} (after {session.seconds:.0f} s)")
        section()
        yield name


def lacks_of(session):
    """Return why each thing that a target needs cannot be had here; empty where it can."""
    found = {"torch": "", "hkv": session.lacks.get("hkv", "")}
    try:
        torch_on(session.clock)
    except NotMeasured as error:
        found["torch"] = str(error)
    return found


def run(options, clock, say=print, is_strict=False, keep=None):
    """Measure, and return the session and its `Run`; `keep` gets what there is so far."""
    facts = machine.facts() | {"card": card.facts(clock)}
    say(", ".join(f"{name} {value}" for name, value in facts["card"].items()))
    scale = SCALES[options.scale]
    if options.seconds is not None:
        scale = replace(scale, seconds=options.seconds)
    date = datetime.now(UTC).strftime("%Y-%m-%dT%H%M%SZ")
    session = Session(clock, scale, options.seed, say, is_strict)
    resources = card.resources(clock, options.scale == "quick")
    say("\n".join(card.resource_lines(resources)))
    found = None
    for _ in measure(session, options):
        more = {"kernels": resources, "copy_bytes_per_s": session.bytes_per_s}
        more["rows_in"] = {verb: session.crossing.place(verb) for verb in VERBS}
        found = results.Run(
            concept="gpu",
            date=date,
            scale=options.scale,
            label=options.label,
            seed=options.seed,
            machine=facts | more,
            cases=list(session.cases),
            figures=list(session.figures),
        )
        if keep is not None:
            keep(found)
    return session, found


def written(found, folder, say):
    """Say where the JSON is, and draw the pictures where matplotlib is installed."""
    say(f"written: {results.write(found, folder).name}")
    if not machine.has_module("matplotlib"):
        say("SKIPPED: plots: matplotlib is not installed")
        return
    from bench import plot

    for path in plot.write([found], folder / "plots"):
        say(f"written: plots/{path.name}")


def main(argv=None):
    """Run what the command line asks for, print it, and write it to files."""
    options, say = arguments(argv), partial(print, flush=True)
    status = es.cuda_status()
    if not (options.emulated or status.is_available):
        say(f"python -m bench gpu: there is no card to measure: {status.message}")
        return 1
    begin = time.monotonic()
    folder = options.out or (results.FOLDER if options.scale == "default" else None)
    keep = None if folder is None else partial(results.write, folder=folder)
    with clock_of(options) as clock:
        session, found = run(options, clock, say, keep=keep)
        say("\n=== targets")
        say("\n".join(closing_lines([found], lacks_of(session), targets.ROWS)))
    if folder:
        written(found, folder, say)
    say(f"({time.monotonic() - begin:.0f} s)")
    if session.n_failed:
        say(f"FAILED: {session.n_failed} rows failed; they stand above with what they raised")
    return 1 if session.n_failed else 0
