"""``embstore report``: a checkpoint drawn on one HTML page."""

import argparse
import json
import os
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from embstore.checkpoint import LoadedTable, inspect, load_tables
from embstore.cli import _figures, _page
from embstore.cli._checkpoint import (
    add_checkpoint,
    policy_text,
    rows_with_bar,
    step_of,
    understanding,
)
from embstore.cli._histogram import Histogram, Octaves, short, short_bytes
from embstore.cli._output import check_output, new_file
from embstore.cli._parts import parts_of
from embstore.cli._report import count
from embstore.cli._rows import ages, norms
from embstore.errors import ArgumentError, CheckpointError

FUNNEL = {
    "n_candidates_expired": "counts expired",
    "n_inserted": "admitted",
    "n_refused": "refused",
    "n_evicted": "evicted",
    "n_erased": "erased",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Describe the options of the command."""
    add_checkpoint(parser)
    parser.add_argument("--out", required=True, metavar="FILE", help="the page to make, .html")
    parser.add_argument("--force", action="store_true", help="replace the file if it exists")


def run(options: argparse.Namespace) -> int:
    """Draw a checkpoint, or one table of it."""
    if find_spec("matplotlib") is None:
        raise ArgumentError("a report needs matplotlib: pip install embstore[cli]")
    check_output(options.out, options.force)
    names = None if options.table is None else [options.table]
    with load_tables(options.checkpoint, names, generation=options.generation) as loaded:
        summary = inspect(options.checkpoint, loaded.generation)
        history = _history(options.checkpoint, summary)
        indices = {each["name"]: i for i, each in enumerate(summary["tables"])}
        sections = [
            (name, _section(table, summary, indices[name], history))
            for name, table in loaded.tables.items()
        ]
    title = os.path.basename(os.path.abspath(options.checkpoint))
    page = _page.page(f"Checkpoint {title}", _subtitle(summary), sections)
    with new_file(options.out, options.force) as file:
        file.write(page.encode())
    document = {"out": options.out, "bytes": len(page.encode()), "tables": list(indices)}
    document["tables"] = [name for name, _ in sections]
    print(json.dumps(document, indent=2) if options.json else f"report written to {options.out}")
    return 0


def _subtitle(summary: Mapping[str, Any]) -> str:
    deltas = f"{count(summary['deltas'])} deltas on a full save, " if summary["deltas"] else ""
    return (
        f"step {count(summary['step'])}, generation {summary['generation']}, "
        f"{deltas}{short_bytes(summary['bytes'])} in {count(len(summary['files']))} files, "
        f"format {summary['format_version']}"
    )


def _history(path: str, summary: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the summaries of all generations up to this one that are kept and can be read."""
    older = []
    for generation in summary["generations"]:
        if generation < summary["generation"]:
            try:
                older.append(inspect(path, generation))
            except CheckpointError:
                continue  # a page about this generation is not to fail for another one
    return [*older, summary]


def _section(
    table: LoadedTable, summary: Mapping[str, Any], index: int, history: list[Mapping[str, Any]]
) -> str:
    """Return the part of the page about one table."""
    freq, seen, age, norm = Octaves(), Histogram(), Histogram(1.0), Histogram()
    for block in rows_with_bar(table, f"report {table.name}"):
        freq.add(block.freq)
        seen.add(block.freq)
        age.add(ages(block.step, step_of(table)))
        norm.add(norms(block.values))
    parts = parts_of(summary, index)
    each = summary["tables"][index]
    slots = ", ".join(f"{name} ({width})" for name, width in table.slots) or "none"
    state = {name: _state_text(value) for name, value in table.state.items()}
    return "\n".join(
        [
            f'<p class="soft">{table.dim} values of {_page.text(table.dtype)}; '
            f"slots: {_page.text(slots)}</p>",
            _page.tiles(_tiles(table, each, seen, age)),
            _page.grid(
                [
                    _freq_figure(freq, seen),
                    _histogram_figure("Norm", norm, "Euclidean norm of the values"),
                    _histogram_figure("Age", age, "steps since the last training, or birth"),
                    _parts_figure(parts),
                    _funnel_figure(table),
                    _growth_figure(table.name, history, table),
                    _page.members("Parameters", _config(table.config)),
                    _page.members("State", state),
                ]
            ),
        ]
    )


def _tiles(
    table: LoadedTable, each: Mapping[str, Any], seen: Histogram, age: Histogram
) -> dict[str, str]:
    numbers = {"rows": count(table.n_rows), "bytes on disk": short_bytes(each["bytes"])}
    if table.n_rows:
        numbers["bytes a row"] = short(each["bytes"] / table.n_rows)
        numbers["median frequency"] = short(seen.quantile(0.5))
        numbers["median age"] = short(age.quantile(0.5))
    if table.n_candidates:
        numbers["pending keys"] = count(table.n_candidates)
    if len(table.pins):
        numbers["pinned keys"] = count(len(table.pins))
    if table.n_deltas:
        numbers["deltas"] = count(table.n_deltas)
    if each["nonfinite_rows"]:
        numbers["rows with NaN or infinity"] = count(each["nonfinite_rows"])
    return numbers


def _quantiles(found: Histogram) -> str:
    if not found.n:
        return "no rows"
    words = [f"median {short(found.quantile(0.5))}", f"90 % up to {short(found.quantile(0.9))}"]
    words += [f"99 % up to {short(found.quantile(0.99))}", f"greatest {short(found.greatest)}"]
    if found.n_nonfinite:
        words.append(f"{count(found.n_nonfinite)} rows are not finite")
    return ", ".join(words)


def _freq_figure(freq: Octaves, seen: Histogram) -> str:
    caption = _quantiles(seen)
    svg = _figures.octaves(freq, "how often a key was seen", f"rows by frequency: {caption}")
    return _page.figure("Frequency", svg, caption)


def _histogram_figure(title: str, found: Histogram, label: str) -> str:
    caption = _quantiles(found)
    svg = _figures.histogram(found, label, f"rows by {title.lower()}: {caption}")
    return _page.figure(title, svg, caption)


def _parts_figure(parts: Mapping[str, int]) -> str:
    names = [short_bytes(n_bytes) for n_bytes in parts.values()]
    words = ", ".join(f"{name} {text}" for name, text in zip(parts, names, strict=True))
    svg = _figures.bars(parts, names, f"bytes on disk: {words}")
    caption = "meta: key, frequency and step of each row; framing: Arrow's headers and padding"
    return _page.figure("Bytes on disk", svg, caption)


def _funnel_figure(table: LoadedTable) -> str:
    """Return what became of the keys: counted, admitted, gone, live."""
    with understanding(table):
        kind = (table.config.get("admission") or {}).get("kind")
    numbers: dict[str, int] = {}
    state = table.state
    if kind == "CounterAdmission":
        expired = int(state["n_candidates_expired"])
        numbers["counted or admitted"] = int(state["n_inserted"]) + table.n_candidates + expired
        numbers["pending now"] = table.n_candidates
    elif kind == "BloomAdmission":
        numbers["new in the filter"] = int(state["n_bloom_added"])
    wanted = {n: t for n, t in FUNNEL.items() if n == "n_inserted" or state[n]}
    numbers |= {name: int(state[field]) for field, name in wanted.items()}
    numbers["live now"] = table.n_rows
    names = [count(number) for number in numbers.values()]
    words = ", ".join(f"{name} {number}" for name, number in zip(numbers, names, strict=True))
    caption = "totals since the table was made; keys that came back after they went count again"
    return _page.figure("Admission and removal", _figures.bars(numbers, names, words), caption)


def _growth_figure(name: str, history: list[Mapping[str, Any]], table: LoadedTable) -> str:
    """Return rows and bytes over the generations kept, and what each delta wrote."""
    points = [
        {"step": each["state"]["step"], "rows": each["rows"], "bytes": each["bytes"]}
        for summary in history
        for each in summary["tables"]
        if each["name"] == name
    ]
    layers = [
        f"generation {layer.generation}: {count(layer.n_rows)} rows written, "
        f"{count(layer.n_deleted)} removed"
        for layer in table.layers[1:]
    ]
    caption = f"{len(points)} generations are kept. " + "; ".join(layers)
    if len(points) < 2:
        caption = "one generation is kept here; growth shows when more are. " + "; ".join(layers)
        return _page.figure("Growth", "", caption)
    words = "; ".join(f"step {p['step']}: {count(p['rows'])} rows" for p in points)
    return _page.figure("Growth", _figures.growth(points, f"growth: {words}"), caption)


def _config(config: Mapping[str, Any]) -> dict[str, str]:
    return {name: policy_text(value) for name, value in config.items() if value is not None}


def _state_text(value: float) -> str:
    return count(value) if isinstance(value, int) else f"{value:.6g}"
