"""Bad arguments of all other kinds, verb by verb: name -> (call, error, parts of the message)."""

import numpy as np
from bad_input.scene import TYPE, VALUE
from contract.tools import ids, rows_of

import embstore as es

CASES = {
    "counts int64": (
        lambda s: s.table.find_or_insert(s.keys, 7, counts=np.ones(3, np.int64)),
        TYPE,
        ["counts must be uint32 of shape (3,)", "int64", ".astype(np.uint32)"],
    ),
    "counts too few": (
        lambda s: s.table.find_or_insert(s.keys, 7, counts=np.ones(2, np.uint32)),
        VALUE,
        ["counts must be uint32 of shape (3,)", "(2,)"],
    ),
    "counts list": (
        lambda s: s.table.find_or_insert(s.keys, 7, counts=[1, 1, 1]),
        TYPE,
        ["counts must be uint32", "list"],
    ),
    "admit": (
        lambda s: s.table.find_or_insert(s.keys, 7, admit="never"),
        VALUE,
        ["admit", "never"],
    ),
    "missing": (lambda s: s.table.find(s.keys, missing="zeros"), VALUE, ["missing", "zeros"]),
    "missing None": (lambda s: s.table.find(s.keys, missing=None), TYPE, ["missing", "None"]),
    "missing key": (
        lambda s: s.table.find(s.keys, missing="raise"),
        es.MissingKeyError,
        ["key 9"],
    ),
    "full": (
        lambda s: s.table.find_or_insert(np.arange(200), 6, admit="always"),
        es.CapacityError,
        ["198", "100"],
    ),
    "full assign": (
        lambda s: s.table.assign(np.arange(200), s.grads(200)),
        es.CapacityError,
        ["198", "100"],
    ),
    "lr negative": (
        lambda s: s.table.apply_gradients(s.keys, s.grads(), 7, lr=-0.1),
        VALUE,
        ["lr", "-0.1"],
    ),
    "lr nan": (
        lambda s: s.table.apply_gradients(s.keys, s.grads(), 7, lr=float("nan")),
        VALUE,
        ["lr"],
    ),
    "lr string": (
        lambda s: s.table.apply_gradients(s.keys, s.grads(), 7, lr="0.1"),
        TYPE,
        ["lr", "'0.1'"],
    ),
    "no optimizer": (
        lambda s: es.Table(2).apply_gradients(s.keys, s.grads(), 7),
        VALUE,
        ["optimizer"],
    ),
    "nan gradient": (
        lambda s: s.table.apply_gradients(s.keys, rows_of(1, np.nan, 1), 7),
        es.NonFiniteError,
        ["key 2", "not finite"],
    ),
    "infinite value": (
        lambda s: s.table.assign(s.keys, rows_of(1, 1, np.inf)),
        es.NonFiniteError,
        ["not finite"],
    ),
    "foreign batch": (
        lambda s: s.other.apply_gradients(s.batch, s.grads(5), 7),
        es.TicketError,
        ["'user'", "'other'"],
    ),
    "grads of bags": (
        lambda s: s.table.apply_gradients(s.pooled, s.grads(2), 7),
        VALUE,
        ["(1, 2)", "(2, 2)"],
    ),
    "offsets first": (
        lambda s: s.table.pooled(s.keys, ids(1, 3)),
        VALUE,
        ["begin with 0", "first 1"],
    ),
    "offsets last": (
        lambda s: s.table.pooled(s.keys, ids(0, 2)),
        VALUE,
        ["end with 3", "last 2"],
    ),
    "offsets decrease": (
        lambda s: s.table.pooled(s.keys, ids(0, 2, 1, 3)),
        VALUE,
        ["never decrease", "2 before 1"],
    ),
    "offsets huge": (
        lambda s: s.table.pooled(s.keys, ids(0, 2**62, 3)),
        VALUE,
        ["never decrease"],
    ),
    "offsets empty": (lambda s: s.table.pooled(ids(), ids()), VALUE, ["empty"]),
    "offsets float": (
        lambda s: s.table.pooled(s.keys, np.array([0.0, 3.0])),
        TYPE,
        ["offsets", "float64"],
    ),
    "mode": (lambda s: s.table.pooled(s.keys, ids(0, 3), mode="max"), VALUE, ["mode", "max"]),
    "weights": (
        lambda s: s.table.pooled(s.keys, ids(0, 3), weights=np.ones(2, np.float32)),
        VALUE,
        ["weights must be float32 of shape (3,)", "(2,)"],
    ),
    "padding": (
        lambda s: s.table.pooled(s.keys, ids(0, 3), padding=0.5),
        TYPE,
        ["padding", "0.5"],
    ),
    "assign mode": (
        lambda s: s.table.assign(s.keys, s.grads(), mode="sub"),
        VALUE,
        ["mode", "sub"],
    ),
    "evict where": (lambda s: s.table.evict(step=9), VALUE, ["where", "policy"]),
    "evict what": (lambda s: s.table.evict("old"), TYPE, ["where", "'old'"]),
    "evict class": (lambda s: s.table.evict(es.StepEviction), TYPE, ["where"]),
    "evict capacity": (
        lambda s: s.table.evict(es.CapacityEviction("step")),
        VALUE,
        ["CapacityEviction"],
    ),
    "evict max_rows": (
        lambda s: s.table.evict(es.StepEviction(0), max_rows=-1),
        VALUE,
        ["max_rows", "-1"],
    ),
    "evict keep": (
        lambda s: s.table.evict(es.StepEviction(0), keep_at_least=-1),
        VALUE,
        ["keep_at_least", "-1"],
    ),
    "evict seconds": (
        lambda s: s.table.evict(es.StepEviction(0), max_seconds=0),
        VALUE,
        ["max_seconds", "0"],
    ),
    "evict nan": (
        lambda s: s.table.evict(es.StepEviction(0), max_seconds=float("nan")),
        VALUE,
        ["max_seconds", "nan"],
    ),
    "import what": (lambda s: s.table.import_({"keys": s.keys}), TYPE, ["embstore.Rows", "dict"]),
    "import twice": (
        lambda s: s.table.import_(s.rows(keys=ids(7, 8, 7))),
        VALUE,
        ["twice"],
    ),
    "import step": (
        lambda s: s.table.import_(s.rows(step=ids(1, -1, 1))),
        VALUE,
        ["step", "-1"],
    ),
    "import freq": (
        lambda s: s.table.import_(s.rows(freq=ids(1, 1, 1))),
        TYPE,
        ["freq must be uint32", "int64"],
    ),
    "import lengths": (
        lambda s: s.table.import_(s.rows(freq=np.ones(2, np.uint32))),
        VALUE,
        ["freq", "(2,)"],
    ),
    "import full": (lambda s: s.table.import_(s.rows(99)), es.CapacityError, ["99", "2"]),
    "export": (lambda s: s.table.export(batch_rows=0), VALUE, ["batch_rows", "0"]),
    "reserve": (lambda s: s.table.reserve(-1), VALUE, ["n_rows", "-1"]),
    "reserve too much": (lambda s: s.table.reserve(2**33), es.OutOfMemoryError, ["memory"]),
    "reserve float": (lambda s: s.table.reserve(1e6), TYPE, ["n_rows", "1000000.0"]),
    "plan": (lambda s: s.table.plan(-1), VALUE, ["n_rows", "-1"]),
    "plan of nothing": (lambda s: es.Table.plan(10), TYPE, ["dim"]),
    "plan of a card on the CPU": (
        lambda s: es.Table.plan(10, dim=2, hbm_bytes=5),
        VALUE,
        ["Table.plan", "hbm_bytes=5", "on a card"],
    ),
    "promote": (lambda s: s.table.promote(-1), VALUE, ["Table.promote", "max_rows", "-1"]),
    "promote float": (lambda s: s.table.promote(2.0), TYPE, ["max_rows", "2.0"]),
    "untracked": (lambda s: s.other.changes(), VALUE, ["track_changes"]),
    "unknown feature": (
        lambda s: s.store.find_many({"item": s.keys}),
        VALUE,
        ["'item'", "user", "other"],
    ),
    "unknown table": (lambda s: s.store["item"], VALUE, ["'item'", "user", "other"]),
    "feature of no table": (
        lambda s: es.Store([s.other], {"f": "item"}),
        VALUE,
        ["'f'", "'item'", "other"],
    ),
    "tables of one name": (lambda s: es.Store([s.other, s.other]), VALUE, ["two", "'other'"]),
    "no tables": (lambda s: es.Store(7), TYPE, ["tables", "7"]),
    "grads lack a feature": (
        lambda s: s.store.apply_gradients_many({"user": s.keys}, {}, 7),
        VALUE,
        ["['user']", "[]"],
    ),
    "offsets lack a feature": (
        lambda s: s.store.pooled_many({"user": s.keys}, {}),
        VALUE,
        ["offsets", "'user'"],
    ),
    "keys no dict": (lambda s: s.store.find_many(s.keys), TYPE, ["dict by feature"]),
    "lr of a table": (lambda s: setattr(s.table, "lr", -1.0), VALUE, ["lr", "-1.0"]),
    "threads": (lambda s: es.set_num_threads(0), VALUE, ["n", "0"]),
    "config": (lambda s: es.Table.from_config({"name": "x"}), VALUE, ["'dim'", "['name']"]),
    "config kind": (
        lambda s: es.Table.from_config({"dim": 2, "optimizer": {"kind": "Lion"}}),
        VALUE,
        ["kind", "'Lion'"],
    ),
    "config what": (lambda s: es.Table.from_config("table"), TYPE, ["dict", "'table'"]),
}
