"""``embstore demo``: a click log made up, trained, evicted, saved, reloaded and compared."""

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np

import embstore as es
from embstore.cli import _options
from embstore.cli._clicklog import write_clicklog
from embstore.cli._job import Job, JobConfig
from embstore.cli._progress import Progress
from embstore.cli._report import comparison, count, size, table
from embstore.cli._static import VOCABULARY_SHARE, StaticLayout, choose_vocabularies, distinct_keys
from embstore.cli._tables import DynamicTables, StaticTables, TableOptions
from embstore.data import ParquetReader, parse_features

BATCH_SIZE = 512
DIM = 16
MIN_COUNT, CANDIDATE_TTL = 2, 1000
STEPS_TO_LIVE = 1500
CHECK_ROWS = 100_000


def add_options(parser: argparse.ArgumentParser) -> None:
    """Describe the options of the command."""
    add = parser.add_argument
    add("--rows", type=_options.integer(10_000), default=3_000_000, help="of the log (3,000,000)")
    add("--seed", type=_options.integer(0), default=0, help="of the log and the model (0)")
    add("--out", metavar="DIR", help="keep log and checkpoint here, not in a temporary folder")
    add("--quiet", action="store_true", help="no progress bar")
    add("--check", metavar="DIR", help=argparse.SUPPRESS)  # the part of the new process


def run(options: argparse.Namespace) -> int:
    """Run the demo, or in its new process the check."""
    if options.check:
        print(_check(Path(options.check), options.seed))
        return 0
    with ExitStack() as cleanup:
        folder = options.out or cleanup.enter_context(tempfile.TemporaryDirectory())
        Path(folder).mkdir(parents=True, exist_ok=True)
        return _demo(Path(folder), options)


def _demo(folder: Path, options: argparse.Namespace) -> int:
    started = time.perf_counter()
    log = folder / "clicks.parquet"
    _title("1. A click log as Parquet: int64 keys, Zipf's law, half of it drifting users and items")
    write_clicklog(log, options.rows, options.seed)
    found = _distinct(log, _config(options.seed))
    _print_log(log, options.rows, {name: len(keys) for name, keys in found.items()})

    _title("2. A DeepFM in one pass, each batch predicted before it is trained")
    job = _dynamic(log, options)
    n_rows = {
        "static, as many rows": job.n_peak_rows,
        "static, as many bytes": job.tables.sizes().nbytes // (4 * (DIM + 1)),
    }
    statics = {name: _static(log, options, found, n).outcome() for name, n in n_rows.items()}
    print(comparison(job.outcome(), statics))
    _explain(job, sum(len(keys) for keys in found.values()))

    _title("3. Evict, save, reload in a new process")
    is_same = _save_and_check(folder, job, options.seed)
    print(f"\ndemo: {'all done' if is_same else 'FAILED'} in {time.perf_counter() - started:.0f} s")
    return 0 if is_same else 1


def _save_and_check(folder: Path, job: Job, seed: int) -> bool:
    tables = job.tables
    n_before = tables.n_rows()
    n_evicted = tables.evict(job.step + STEPS_TO_LIVE // 2)
    print(f"evicted {count(n_evicted)} of {count(n_before)} rows, as if half a lifetime had passed")
    job.save(folder / "checkpoint")
    n_bytes = sum(file.stat().st_size for file in (folder / "checkpoint").rglob("*"))
    print(f"saved {count(tables.n_rows())} rows, optimizer state and the network: {size(n_bytes)}")
    here = _digest(job)
    command = [
        sys.executable,
        "-m",
        "embstore",
        "demo",
        "--check",
        str(folder),
        "--seed",
        str(seed),
    ]
    there = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True).stdout.strip()
    pids = f"process {os.getpid()} and the new one"
    if here == there:
        n_rows = min(CHECK_ROWS, job.reader.n_rows)
        print(f"{n_rows:,} predictions of {pids} are the same to the bit (SHA-256 {here[:16]})")
    else:
        print(f"the predictions of {pids} DIFFER: SHA-256 {here[:16]} and {there[:16] or 'none'}")
    return here == there


def _check(folder: Path, seed: int) -> str:
    """Load the checkpoint and return the digest of its predictions."""
    config = _config(seed)
    job = Job.resume(folder / "checkpoint", config, _reader(folder / "clicks.parquet", config))
    return _digest(job)


def _digest(job: Job) -> str:
    """Return the SHA-256 of the predictions of the last rows of the log."""
    digest = hashlib.sha256()
    reader = _reader(Path(job.reader.files.paths[0]), job.config)
    first_row = max(0, reader.n_rows - CHECK_ROWS)
    reader.load_state_dict({**reader.state_dict(), "row": first_row})
    for batch in reader:
        digest.update(np.ascontiguousarray(job.predict(batch)).tobytes())
    return digest.hexdigest()


def _config(seed: int) -> JobConfig:
    tables = TableOptions(
        dim=DIM,
        lr=0.1,
        eps=1e-2,
        seed=seed,
        admission=es.CounterAdmission(MIN_COUNT, candidate_ttl=CANDIDATE_TTL),
        eviction=es.StepEviction(STEPS_TO_LIVE),
    )
    features = tuple(parse_features("user,item,category", "user*category"))
    return JobConfig(features, "label", BATCH_SIZE, 2e-3, tables)


def _reader(log: Path, config: JobConfig) -> ParquetReader:
    return ParquetReader(log, config.columns, config.batch_size, prefetch=8)


def _distinct(log: Path, config: JobConfig) -> dict[str, np.ndarray]:
    scan = ParquetReader(log, config.columns, 1 << 18, prefetch=1)
    return distinct_keys((config.keys(batch) for batch in scan), config.names, None)


def _dynamic(log: Path, options: argparse.Namespace) -> Job:
    config = _config(options.seed)
    job = Job(config, _reader(log, config), DynamicTables.create(config.names, config.tables))
    return _trained(job, "dynamic", options)


def _static(
    log: Path, options: argparse.Namespace, found: dict[str, np.ndarray], n_rows: int
) -> Job:
    config = _config(options.seed)
    few = {k: keys for k, keys in found.items() if len(keys) <= n_rows * VOCABULARY_SHARE}
    chosen = choose_vocabularies(few, n_rows)
    hashed = [name for name in config.names if name not in chosen]
    layout = StaticLayout(n_rows, chosen, hashed, seed=options.seed)
    tables = StaticTables(layout, config.names, config.tables)
    return _trained(Job(config, _reader(log, config), tables), "static", options)


def _trained(job: Job, title: str, options: argparse.Namespace) -> Job:
    with Progress(title, job.reader.n_rows, is_shown=not options.quiet) as bar:
        job.run(on_batch=bar.on_batch)
    return job


def _print_log(log: Path, n_rows: int, n_distinct: dict[str, int]) -> None:
    print(f"{count(n_rows)} rows, {size(log.stat().st_size)}; distinct keys:")
    lines = [[f"  {name}", count(n)] for name, n in n_distinct.items()]
    print(table([*lines, ["  together", count(sum(n_distinct.values()))]]))


def _explain(job: Job, n_keys: int) -> None:
    ratio = n_keys / job.n_peak_rows
    print(
        f"\ndynamic: a key gets a row when seen {MIN_COUNT} times, pauses up to {CANDIDATE_TTL} "
        f"steps, and loses it after {STEPS_TO_LIVE}\nsteps without training; of {count(n_keys)} "
        f"keys at most {count(job.n_peak_rows)} had one at a time, {ratio:.1f} times fewer\n"
        "static: an array onto which keys are hashed; categories have rows of their own"
    )


def _title(text: str) -> None:
    print(f"\n{text}\n{'-' * len(text)}", flush=True)
