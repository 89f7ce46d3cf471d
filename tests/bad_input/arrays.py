"""Bad arrays and steps, each for every verb that takes such a one; three keys are expected."""

import numpy as np
from bad_input.scene import TYPE, VALUE
from contract.tools import ids

import embstore as es

INT_KEYS = "1-D integer array"

KEY_VERBS = {
    "find": lambda s, keys: s.table.find(keys),
    "find with meta": lambda s, keys: s.table.find(keys, with_meta=True),
    "contains": lambda s, keys: s.table.contains(keys),
    "find_or_insert": lambda s, keys: s.table.find_or_insert(keys, step=7),
    "apply_gradients": lambda s, keys: s.table.apply_gradients(keys, s.grads(), step=7),
    "assign": lambda s, keys: s.table.assign(keys, s.grads()),
    "erase": lambda s, keys: s.table.erase(keys),
    "pooled": lambda s, keys: s.table.pooled(keys, ids(0, 3), step=7),
    "pin": lambda s, keys: s.table.pin(keys),
    "unpin": lambda s, keys: s.table.unpin(keys),
    "evict": lambda s, keys: s.table.evict(es.StepEviction(0), step=99, pins=keys),
    "import_": lambda s, keys: s.table.import_(s.rows(keys=keys)),
    "find_many": lambda s, keys: s.store.find_many({"user": keys}),
    "find_or_insert_many": lambda s, keys: s.store.find_or_insert_many({"user": keys}, step=7),
    "pooled_many": lambda s, keys: s.store.pooled_many({"user": keys}, {"user": ids(0, 3)}),
}
BAD_KEYS = {
    "float64": (np.ones(3), TYPE, [INT_KEYS, "float64", "(3,)"]),
    "bool": (np.ones(3, bool), TYPE, [INT_KEYS, "bool"]),
    "int16": (np.ones(3, np.int16), TYPE, [INT_KEYS, "int16"]),
    "strings": (np.array(["a", "b", "c"]), TYPE, [INT_KEYS, "<U1"]),
    "objects": (np.array([1, 2, 3], object), TYPE, [INT_KEYS, "object"]),
    "dates": (np.ones(3, "datetime64[s]"), TYPE, [INT_KEYS, "datetime64"]),
    "masked": (np.ma.masked_array(ids(1, 2, 3)), TYPE, [INT_KEYS, "masked"]),
    "2-D": (np.ones((3, 1), np.int64), VALUE, [INT_KEYS, "(3, 1)"]),
    "0-D": (np.array(1), VALUE, [INT_KEYS, "()"]),
    "an int": (7, TYPE, [INT_KEYS, "7"]),
    "a string": ("123", TYPE, [INT_KEYS, "'123'"]),
    "a set": ({1, 2, 3}, TYPE, [INT_KEYS, "set"]),
    "floats": ([1, 2.5, 3], TYPE, ["list of ints", "2.5", "index 1"]),
    "a bool": ([1, True, 3], TYPE, ["list of ints", "True"]),
    "nested": ([[1], [2], [3]], TYPE, ["list of ints", "index 0"]),
    "too large": ([1, 2**63, 3], VALUE, ["2**63 - 1", "index 1"]),
    "too small": ((1, 2, -(2**63) - 1), VALUE, ["-2**63", "index 2"]),
}


def three(scene):
    """Return a batch of three keys that have rows already: nothing changes but their freq."""
    scene.table.reset_changes()
    none = np.zeros(3, np.uint32)
    return scene.table.find_or_insert(ids(1, 2, 1), step=6, counts=none)


FLOAT_VERBS = {
    "by keys": ("grads", lambda s, x: s.table.apply_gradients(s.keys, x, step=7)),
    "by batch": ("grads", lambda s, x: s.table.apply_gradients(three(s), x, step=7)),
    "assign": ("values", lambda s, x: s.table.assign(s.keys, x)),
    "assign add": ("values", lambda s, x: s.table.assign(s.keys, x, mode="add")),
    "import_ values": ("values", lambda s, x: s.table.import_(s.rows(values=x))),
    "import_ slots": ("slots", lambda s, x: s.table.import_(s.rows(slots=x))),
    "many": (
        "grads",
        lambda s, x: s.store.apply_gradients_many({"user": s.keys}, {"user": x}, step=7),
    ),
}
BAD_FLOATS = {
    "float64": (np.ones((3, 2)), TYPE, ["float64", ".astype(np.float32)"]),
    "int": (np.ones((3, 2), np.int32), TYPE, ["int32"]),
    "complex": (np.ones((3, 2), np.complex64), TYPE, ["complex64"]),
    "too few rows": (np.ones((2, 2), np.float32), VALUE, ["(2, 2)"]),
    "too many rows": (np.ones((4, 2), np.float32), VALUE, ["(4, 2)"]),
    "too wide": (np.ones((3, 3), np.float32), VALUE, ["(3, 3)"]),
    "1-D": (np.ones(6, np.float32), VALUE, ["(6,)"]),
    "3-D": (np.ones((3, 2, 1), np.float32), VALUE, ["(3, 2, 1)"]),
    "a list": ([[1.0, 1.0]] * 3, TYPE, ["list"]),
    "None": (None, TYPE, ["None"]),
}

STEP_VERBS = {
    "find_or_insert": lambda s, step: s.table.find_or_insert(s.keys, step=step),
    "apply_gradients": lambda s, step: s.table.apply_gradients(s.keys, s.grads(), step=step),
    "pooled": lambda s, step: s.table.pooled(s.keys, ids(0, 3), step=step),
    "evict": lambda s, step: s.table.evict(es.StepEviction(0), step=step),
    "assign": lambda s, step: s.table.assign(s.keys, s.grads(), step=step),
    "find_or_insert_many": lambda s, step: s.store.find_or_insert_many({"user": s.keys}, step),
    "apply_many": lambda s, step: s.store.apply_gradients_many(
        {"user": s.keys}, {"user": s.grads()}, step
    ),
    "evict of a store": lambda s, step: s.store.evict(step),
}
BAD_STEPS = {
    "negative": (-1, VALUE, ["from 0 to 2**63 - 1", "-1"]),
    "too large": (2**63, VALUE, ["from 0 to 2**63 - 1", "9223372036854775808"]),
    "float": (1.0, TYPE, ["must be an integer", "1.0"]),
    "bool": (True, TYPE, ["must be an integer", "True"]),
    "string": ("7", TYPE, ["must be an integer", "'7'"]),
    "array": (np.array([7]), TYPE, ["must be an integer"]),
}

OUT_VERBS = {
    "find": lambda s, out: s.table.find(s.keys, out=out),
    "find, found": lambda s, out: s.table.find(s.keys, out=out, return_found=True),
    "find_or_insert": lambda s, out: s.table.find_or_insert(s.keys, step=7, out=out),
    "pooled": lambda s, out: s.table.pooled(s.keys, ids(0, 1, 2, 3), out=out),
}


def read_only():
    out = np.zeros((3, 2), np.float32)
    out.flags.writeable = False
    return out


BAD_OUTPUTS = {
    "float64": (lambda: np.zeros((3, 2)), TYPE, "float64"),
    "shape": (lambda: np.zeros((2, 3), np.float32), VALUE, "(2, 3)"),
    "read-only": (read_only, VALUE, "read-only"),
    "strided": (lambda: np.zeros((3, 4), np.float32)[:, ::2], VALUE, "not C-contiguous"),
    "transposed": (lambda: np.zeros((2, 3), np.float32).T, VALUE, "not C-contiguous"),
    "a list": (lambda: [[0.0, 0.0]] * 3, TYPE, "list"),
}


def overlapping(verb):
    """Return a call of `verb` whose output is the memory of its keys."""

    def call(scene):
        memory = np.array([1, 2, 9], np.int64)
        scene.keys = memory
        verb(scene, memory.view(np.float32).reshape(3, 2))

    return call


def cases():
    """Yield (name, (call, error, parts of the message)) for each verb and each bad argument."""
    for verb, call in KEY_VERBS.items():
        for bad, (keys, error, parts) in BAD_KEYS.items():
            yield f"{verb}: keys {bad}", (partial(call, keys), error, parts)
    for verb, (name, call) in FLOAT_VERBS.items():
        for bad, (x, error, parts) in BAD_FLOATS.items():
            expected = [name, "must be float32 of shape (3, 2)"]
            yield f"{verb}: {name} {bad}", (partial(call, x), error, expected + parts)
    for verb, call in STEP_VERBS.items():
        for bad, (step, error, parts) in BAD_STEPS.items():
            yield f"{verb}: step {bad}", (partial(call, step), error, ["step", *parts])
    for verb, call in OUT_VERBS.items():
        for bad, (make, error, part) in BAD_OUTPUTS.items():
            parts = ["float32 of shape (3, 2)", part]
            yield f"{verb}: out {bad}", (partial(call, make()), error, parts)
        yield f"{verb}: out is keys", (overlapping(call), VALUE, ["share memory with keys"])


def partial(call, argument):
    """Return a call of a scene alone."""
    return lambda scene: call(scene, argument)


CASES = dict(cases())
