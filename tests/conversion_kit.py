"""What `load` may change, written a second time: on the model, in the words of the documents."""

import contextlib
import tempfile
import warnings

import numpy as np
from property.pair import Pair
from property.program import Program
from reference import floats, optimizers
from reference.admission import Bloom, Counter, admission_state
from reference.eviction import first_of
from reference.upkeep import next_time

import embstore as es

MOMENTS = {"exp_avg": "beta1_power", "exp_avg_sq": "beta2_power"}


def convert_model(config, model, asked):
    """Change a model as `Table.load(**asked)` changes its table; return the new parameters."""
    new = config | {k: v for k, v in asked.items() if k in config or k == "on_full"}
    if asked.get("optimizer") == "reset":
        new["optimizer"] = config["optimizer"]
    if "optimizer" in asked:
        convert_training(model, new["optimizer"], asked)
    if "dtype" in asked:
        convert_dtype(model, new)
    if "admission" in asked:
        convert_admission(model, asked["admission"])
    convert_limits(model, new, asked)
    return new


def convert_training(model, optimizer, asked):
    """Move slots by name, and set the clocks of training."""
    state, old = model.state, model.optimizer
    is_reset = "reset" in (asked["optimizer"], asked.get("slots"))
    if not is_reset and asked.get("slots") is None:
        model.optimizer = optimizer
        return
    saved, at = {}, 0
    for name, width in old.slots(model.dim) if old else ():
        saved[name] = model.store.slots[:, at : at + width]
        at += width
    slots = optimizers.initial_slots(optimizer, len(model.store.keys), model.dim)
    powers, at = {}, 0
    for name, width in optimizer.slots(model.dim) if optimizer else ():
        origin = name if asked.get("slots") == "keep" else (asked.get("slots") or {})
        origin = None if is_reset else origin if origin == name else origin.get(name)
        if origin in saved and saved[origin].shape[1] == width:
            slots[:, at : at + width] = saved[origin]
            was_adam = isinstance(old, es.Adam | es.AdamW)
            powers[name] = getattr(state, MOMENTS[origin]) if was_adam else 0.0
        at += width
    model.store.slots, model.optimizer = slots, optimizer
    is_adam = isinstance(optimizer, es.Adam | es.AdamW)
    for name, power in MOMENTS.items():
        setattr(state, power, powers.get(name, 1.0) if is_adam else 1.0)
    if is_reset:
        state.n_train_steps = 0
    if is_reset or (is_adam and len(powers) < 2):
        state.last_train_step = -1


def convert_dtype(model, new):
    """Round the values of all rows."""
    model.dtype = new["dtype"]
    model.rounding = "nearest" if model.dtype == "float32" else new.get("rounding", "nearest")
    model.store.values = floats.narrow(model.store.values, model.dtype)
    row = np.float32(0 if new["default_row"] is None else new["default_row"])
    model.default_row = floats.narrow(np.broadcast_to(row, (model.dim,)), model.dtype)


def convert_admission(model, policy):
    """Keep candidates from counter to counter, and filters of one shape."""
    old, new = model.admission, admission_state(policy)
    state = model.get_state()
    model.admission = new
    if isinstance(old, Counter) and isinstance(new, Counter):
        convert_candidates(old, new, model)
    elif isinstance(new, Counter):
        new.epoch = 0
    else:
        state.candidate_epoch = 0
    shape = ("cell_bits", "n_hashes", "blocks")
    if isinstance(old, Bloom) and isinstance(new, Bloom):
        if all(getattr(old, name) == getattr(new, name) for name in shape):
            new.cells, new.n_added = old.cells, old.n_added
    if not isinstance(new, Bloom):
        state.n_bloom_added = 0
    period = getattr(policy, "halve_every", None)
    if period != model.bloom_halve_every:
        model.bloom_halve_every = period
        state.next_bloom_halve = next_time(state.step, period) if period else 0


def convert_candidates(old, new, model):
    """Tell epochs in the new grain, drop what is too old by the new ttl, cap counts."""
    step = model.state.step

    def told(epoch):
        if old.ttl == new.ttl:
            return epoch
        if not new.ttl:
            return 0
        return epoch * old.grain // new.grain if old.ttl else step // new.grain

    new.epoch = told(old.epoch)
    for key, (count, epoch) in old.table.items():
        if new.ttl and (new.epoch - told(epoch)) * new.grain > new.ttl:
            model.state.n_candidates_expired += 1
        else:
            new.table[key] = (min(count, new.min_count - 1), told(epoch))


def convert_limits(model, new, asked):
    """Set capacity and eviction."""
    model.max_rows = new["max_rows"]
    model.on_full = asked.get("on_full", model.on_full)
    if "eviction" not in asked and "evict_every" not in asked:
        return
    model.eviction = new["eviction"]
    capacity_by = first_of(model.eviction, es.CapacityEviction, "by")
    model.capacity_by = capacity_by or "step"
    halve_every = first_of(model.eviction, es.FrequencyEviction, "halve_every")
    for name, due, period in (
        ("evict_every", "next_evict", new["evict_every"]),
        ("freq_halve_every", "next_freq_halve", halve_every),
    ):
        if period != getattr(model, name):
            setattr(model, name, period)
            setattr(model.state, due, next_time(model.state.step, period) if period else 0)


def reload_as(pair: Pair, drops=None, **asked):
    """Save the pair's table, load it as asked for, and do the same to the model."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pair.table.save(folder)
        del caught[:]  # of rows that are not finite
        loaded = es.Table.load(folder, allow_nonfinite=True, on_evict=pair.sinks[0], **asked)
        messages = [str(warning.message) for warning in caught]
    assert len(messages) == (drops is not None), messages
    assert drops is None or drops in messages[0]
    pair.table.close()
    pair.table = loaded
    pair.batches = []
    pair.model.reset_changes()
    with np.errstate(all="ignore"):
        pair.config = convert_model(pair.config, pair.model, asked)
    pair.check()
    pair.check_bloom()


@contextlib.contextmanager
def program_on(seed, **overrides):
    """A table and its model in the middle of a random program, to be converted."""
    free = {"max_rows": None, "eviction": None, "evict_every": None, "on_nonfinite": "skip"}
    small = {
        "dim": 3,
        "default_row": 0.3,
        "admission": None,
        "dtype": "float32",
        "rounding": "nearest",
    }
    program = Program(seed, batch_keys=60, spread=300, **(small | free | overrides))
    try:
        program.run(1500)
        yield program
    finally:
        program.pair.close()


def go_on(program):
    """Run the program further, and compare everything."""
    program.run(program.n_key_ops + 1500)
    program.pair.check()
    program.pair.check_bloom()
