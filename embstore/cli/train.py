"""``embstore train``: train a DeepFM on Parquet data with its embeddings in the store."""

import argparse
import json
import math
import os
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

from embstore.cli import _options
from embstore.cli._job import Job, JobConfig, Outcome
from embstore.cli._progress import Progress
from embstore.cli._report import comparison
from embstore.cli._static import VOCABULARY_SHARE, StaticLayout, choose_vocabularies, distinct_keys
from embstore.cli._tables import DynamicTables, StaticTables, TableOptions
from embstore.data import DataError, DataTypeError, ParquetReader, parse_features
from embstore.errors import ArgumentError

SCAN_ROWS = 65536
PLOT_SUFFIXES = (".png", ".svg", ".pdf")

Add: TypeAlias = Callable[..., argparse.Action]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Describe the options of the command."""
    parser.add_argument("data", nargs="+", help="Parquet files in time order, or folders of them")
    _add_data_options(parser.add_argument_group("data").add_argument)
    _add_table_options(parser.add_argument_group("tables").add_argument)
    _add_training_options(parser.add_argument_group("training").add_argument)
    _add_baseline_options(parser.add_argument_group("baseline").add_argument)
    _add_result_options(parser.add_argument_group("results").add_argument)


def _add_data_options(add: Add) -> None:
    add("--label", required=True, help="the column of labels, 0 or 1")
    add("--features", required=True, help="columns, with commas: user,item,category")
    add("--cross", default="", help="crosses of columns, with commas: user*category")
    add("--batch-size", type=_options.integer(1), default=512, help="rows of a batch (512)")
    add("--prefetch", type=_options.integer(0), default=8, help="batches read ahead (8)")


def _add_table_options(add: Add) -> None:
    add("--dim", type=_options.integer(1), default=16, help="length of a row (16)")
    add(
        "--admission",
        type=_options.admission,
        default="none",
        metavar="POLICY",
        help="none, counter:N[:TTL] or bloom:N[:CAPACITY]; a key gets a row when seen N times",
    )
    add(
        "--evict",
        type=_options.eviction,
        action="append",
        metavar="POLICY",
        help="step:N, l2:THRESHOLD:AGE or freq:N:AGE; several are joined by 'or'",
    )
    add(
        "--evict-every",
        type=_options.integer(1),
        default=50,
        help="batches between two evictions (50)",
    )
    add(
        "--max-rows",
        type=_options.integer(1),
        help="rows of each table; the longest untrained make room",
    )
    add("--device", default="cpu", help="cpu, cuda, cuda:N, or auto: a card where there is one")


def _add_training_options(add: Add) -> None:
    add("--lr", type=_options.number(0), default=0.1, help="row-wise Adagrad's, for the rows (0.1)")
    add("--eps", type=_options.number(0), default=1e-2, help="row-wise Adagrad's (0.01)")
    add("--dense-lr", type=_options.number(0), default=2e-3, help="Adam's, for the network (0.002)")
    add("--seed", type=_options.integer(0), default=0, help="of all initial values (0)")
    add("--stop-after", type=_options.integer(1), metavar="N", help="end after N batches")


def _add_baseline_options(add: Add) -> None:
    add(
        "--baseline",
        type=_options.baseline,
        metavar="static:ROWS",
        help="train the same model on a static table; static:1.25x is a multiple of the peak rows",
    )
    add(
        "--baseline-exact",
        type=_options.names,
        metavar="FEATURES",
        help="features without collisions; else those with few keys: at most 1/8 of ROWS each",
    )
    add(
        "--baseline-split",
        type=_options.shares,
        default={},
        metavar="SPLIT",
        help="'shared' (default), or shares of the hashed rows: item=0.7,user*category=0.3",
    )


def _add_result_options(add: Add) -> None:
    add("--save", metavar="DIR", help="write a checkpoint at the end")
    add("--save-every", type=_options.integer(1), metavar="N", help="and after every N batches")
    add("--resume", metavar="DIR", help="continue from a checkpoint, with the same options")
    add("--plot", metavar="FILE", help="draw AUC and table size over time (.png, .svg, .pdf)")
    add("--json", metavar="FILE", help="write configuration and outcome")
    add("--quiet", action="store_true", help="no progress bar")


def run(options: argparse.Namespace) -> int:
    """Train, compare, save, print."""
    _check_outputs(options)
    config = _config(options)
    _check_baseline(options, config)
    job = _dynamic_job(options, config)
    if options.save:
        Path(options.save).mkdir(parents=True, exist_ok=True)
    n_before = job.n_done
    with _progress(options, "dynamic", job) as bar:
        _train(job, options, bar)
    if options.save:
        job.save(options.save)
    outcome = job.outcome()
    static = None
    if options.baseline is not None:
        static = _static_job(options, config, outcome.n_peak_rows)
        with _progress(options, "static", static) as bar:
            static.run(-(-job.n_done // config.batch_size), bar.on_batch)
    _print_outcome(job, n_before, outcome, static)
    _write_results(options, config, job, outcome, static)
    return 0


def _config(options: argparse.Namespace) -> JobConfig:
    features = tuple(parse_features(options.features, options.cross))
    eviction = None
    for policy in options.evict or []:
        eviction = policy if eviction is None else eviction | policy
    tables = TableOptions(
        dim=options.dim,
        lr=options.lr,
        eps=options.eps,
        seed=options.seed,
        admission=options.admission,
        eviction=eviction,
        evict_every=options.evict_every,
        max_rows=options.max_rows,
        device=options.device,
    )
    config = JobConfig(features, options.label, options.batch_size, options.dense_lr, tables)
    if options.label in {column for feature in features for column in feature.columns}:
        raise ArgumentError(f"the label {options.label!r} is among the features")
    return config


def _check_baseline(options: argparse.Namespace, config: JobConfig) -> None:
    for name in (*(options.baseline_exact or ()), *options.baseline_split):
        if name not in config.names:
            raise ArgumentError(f"{name!r} of the baseline is not a feature: {config.names}")


def _reader(options: argparse.Namespace, config: JobConfig) -> ParquetReader:
    reader = ParquetReader(
        options.data, config.columns, config.batch_size, prefetch=options.prefetch
    )
    if not reader.n_rows:
        raise DataError(f"there are no rows in {', '.join(reader.files.paths)}")
    for feature in config.features:
        for column in feature.columns:
            if reader.schema[column].startswith("float"):
                raise DataTypeError(
                    f"the feature {feature.name!r} needs keys, and the column {column!r} is "
                    f"{reader.schema[column]}: cut it into integer bins first"
                )
    return reader


def _dynamic_job(options: argparse.Namespace, config: JobConfig) -> Job:
    reader = _reader(options, config)
    if options.resume:
        return Job.resume(options.resume, config, reader)
    return Job(config, reader, DynamicTables.create(config.names, config.tables))


def _train(job: Job, options: argparse.Namespace, bar: Progress) -> None:
    """Run the job, in pieces if it is to be saved now and then."""
    n_left = math.inf if options.stop_after is None else options.stop_after
    while n_left > 0 and not job.is_complete:
        n_batches = min(n_left, options.save_every or math.inf)
        job.run(None if n_batches == math.inf else int(n_batches), bar.on_batch)
        n_left -= n_batches
        if options.save_every and n_left > 0 and not job.is_complete:
            job.save(options.save)


def _static_job(options: argparse.Namespace, config: JobConfig, n_peak_rows: int) -> Job:
    n_rows = options.baseline.resolve(n_peak_rows)
    reader = _reader(options, config)
    exact = options.baseline_exact
    names = config.names if exact is None else exact
    scan = ParquetReader(options.data, config.columns, SCAN_ROWS, prefetch=1)
    n_most = int(n_rows * VOCABULARY_SHARE) if exact is None else None
    found = distinct_keys((config.keys(batch) for batch in scan), names, n_most)
    chosen = choose_vocabularies(found, n_rows) if exact is None else found
    hashed = [name for name in config.names if name not in chosen]
    layout = StaticLayout(n_rows, chosen, hashed, options.baseline_split, options.seed)
    return Job(config, reader, StaticTables(layout, config.names, config.tables))


def _progress(options: argparse.Namespace, title: str, job: Job) -> Progress:
    is_shown = not options.quiet and not job.is_complete
    return Progress(title, job.reader.n_rows, job.n_done, is_shown)


def _print_outcome(job: Job, n_before: int, outcome: Outcome, static: "Job | None") -> None:
    n_rows = job.reader.n_rows
    where = "all" if job.is_complete else f"{job.n_done:,} of"
    resumed = f", {n_before:,} of them before this run" if n_before else ""
    print(f"{where} {n_rows:,} rows in {job.step:,} batches{resumed}; predicted, then trained\n")
    if static is None:
        print(comparison(outcome, {}))
        return
    layout = _layout(static)
    print(comparison(outcome, {f"static:{layout.n_rows:,}": static.outcome()}))
    exact = ", ".join(layout.vocabularies) or "none"
    print(
        f"\nstatic table: features without collisions: {exact}; hashed: {', '.join(layout.ranges)}"
    )


def _layout(static: Job) -> StaticLayout:
    assert isinstance(static.tables, StaticTables)
    return static.tables.layout


def _check_outputs(options: argparse.Namespace) -> None:
    """Notice before the training what would fail after it."""
    if options.save_every and not options.save:
        raise ArgumentError("--save-every needs --save DIR")
    for path in (options.json, options.plot):
        if path is not None and not Path(path).absolute().parent.is_dir():
            raise ArgumentError(f"there is no folder {os.fspath(Path(path).parent)} for {path}")
    if options.plot and Path(options.plot).suffix not in PLOT_SUFFIXES:
        raise ArgumentError(f"{options.plot} does not end in {', '.join(PLOT_SUFFIXES)}")
    if options.plot and find_spec("matplotlib") is None:
        raise ArgumentError("--plot needs matplotlib: pip install embstore[cli]")


def _write_results(
    options: argparse.Namespace, config: JobConfig, job: Job, outcome: Outcome, static: "Job | None"
) -> None:
    if options.json:
        record = _record(config, job, outcome, static)
        Path(options.json).write_text(json.dumps(record, indent=2) + "\n")
    if options.plot:
        from embstore.cli._plot import draw

        draw(options.plot, job, static)
    for what, path in (
        ("checkpoint", options.save),
        ("plot", options.plot),
        ("json", options.json),
    ):
        if path:
            print(f"{what} written to {path}", file=sys.stderr)


def _record(config: JobConfig, job: Job, outcome: Outcome, static: "Job | None") -> dict[str, Any]:
    """Return what ``--json`` writes."""
    record = {
        "config": config.describe(),
        "n_rows": job.n_done,
        "n_steps": job.step,
        "is_complete": job.is_complete,
        "dynamic": _finite(outcome.describe()),
    }
    if static is not None:
        record["static"] = _finite(static.outcome().describe()) | {
            "layout": _layout(static).describe()
        }
    return record


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values, NaN as None, since JSON has no NaN."""
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in values.items()}
