"""ReferenceTable: the verbs of a table as docs/semantics.md, sections 4 to 8, has them."""

import numpy as np

from embstore.errors import (
    ArgumentError,
    CapacityError,
    MissingKeyError,
    NonFiniteError,
    TicketError,
)
from embstore.policies import BloomAdmission, CapacityEviction, FrequencyEviction, Normal

from . import floats, hashing, optimizers, pooling
from .admission import Bloom, Counter, admission_state
from .batches import UINT32_MAX, count_occurrences, deduplicate, last_occurrence, saturate
from .eviction import first_of
from .initial import initial_values
from .records import ApplyReport, AssignReport, Batch, PooledBatch, State
from .rows import ChangeLog, RowStore
from .upkeep import Upkeep

FOUND, INSERTED, PENDING, REFUSED = range(4)
quiet = np.errstate(all="ignore")


class ReferenceTable(Upkeep):
    """A table with the arguments and verbs of es.Table; simple, and checked for nothing."""

    def __init__(
        self,
        dim,
        *,
        optimizer=None,
        initializer=None,
        seed=0,
        name="table",
        dtype="float32",
        rounding="nearest",
        admission=None,
        eviction=None,
        evict_every=None,
        max_rows=None,
        on_full=None,
        on_nonfinite="raise",
        default_row=None,
        hash_seed=None,
        track_changes=False,
        on_evict=None,
        device="cpu",
    ):
        self.dim, self.optimizer, self.dtype, self.rounding = dim, optimizer, dtype, rounding
        self.initializer = initializer or Normal(std=0.01)
        self.stream = hashing.stream_of(seed, name)
        self.admission = admission_state(admission)
        self.eviction, self.evict_every = eviction, evict_every
        self.max_rows, self.on_nonfinite = max_rows, on_nonfinite
        row = np.float32(0 if default_row is None else default_row)
        self.default_row = floats.narrow(np.broadcast_to(row, (dim,)), dtype)
        self.on_evict = on_evict
        self.freq_halve_every = first_of(eviction, FrequencyEviction, "halve_every")
        capacity_by = first_of(eviction, CapacityEviction, "by")
        self.capacity_by = capacity_by or "step"
        self.on_full = on_full or ("evict" if capacity_by else "raise")
        self.bloom_halve_every = (
            admission.halve_every if isinstance(admission, BloomAdmission) else None
        )
        self.store = RowStore(dim, optimizers.slot_floats(optimizer, dim))
        self.state = State(
            next_evict=evict_every or 0,
            next_freq_halve=self.freq_halve_every or 0,
            next_bloom_halve=self.bloom_halve_every or 0,
        )
        self.pins = set()
        self.clears = 0
        self.log = ChangeLog()

    def __len__(self):
        return len(self.store)

    # Births and room

    def _initial(self, keys):
        values = initial_values(self.initializer, self.stream, keys, self.dim)
        return floats.narrow(values, self.dtype)

    def _born(self, keys, step, freq):
        """Make rows for `keys` and return their places."""
        at = self.store.add(keys)
        self.store.values[at] = self._initial(keys)
        self.store.slots[at] = optimizers.initial_slots(self.optimizer, len(keys), self.dim)
        self.store.step[at] = step
        self.store.freq[at] = saturate(freq)
        self.admission.forget(keys)
        self.state.n_inserted += len(keys)
        self.log.note_written(keys)
        return at

    def _make_room(self, n_new, keys):
        """Return how many of `n_new` rows may be made, evicting for them if so configured."""
        if self.max_rows is None or n_new <= self.max_rows - len(self):
            return n_new
        if self.on_full == "raise":
            raise CapacityError("full")
        if self.on_full == "evict":
            remain = max(0, self.max_rows * 19 // 20 - n_new)
            at = self.store.live()
            score = self.store.step[at] if self.capacity_by == "step" else self.store.freq[at]
            at = at[np.lexsort((self.store.keys[at], score))]
            at = at[~np.isin(self.store.keys[at], [*self.pins, *keys.tolist()])]
            self._remove_evicted(at[: max(0, len(self) - remain)])
        return min(n_new, self.max_rows - len(self))

    # Reading

    @quiet
    def find(self, keys, missing="default"):
        """Return (rows, found, freq, step)."""
        at = self.store.find(keys)
        found = at >= 0
        if missing == "raise" and not found.all():
            raise MissingKeyError(f"key {keys[~found][0]}")
        rows = np.broadcast_to(self.default_row, (len(keys), self.dim)).copy()
        if missing == "initial":
            rows[~found] = self._initial(keys[~found])
        rows[found] = self.store.values[at[found]]
        freq, step = np.zeros(len(keys), np.uint32), np.full(len(keys), -1, np.int64)
        freq[found], step[found] = self.store.freq[at[found]], self.store.step[at[found]]
        return rows, found, freq, step

    def contains(self, keys):
        return self.store.find(keys) >= 0

    def export(self):
        """Return all rows by (partition, key), as one Rows."""
        return self.store.export()

    def candidates(self):
        """Return (keys, counts, epochs) of the candidates by (partition, key)."""
        items = [(key, *candidate) for key, candidate in self.admission.candidates().items()]
        table = np.array(items, np.int64).reshape(-1, 3)
        return table[np.lexsort((table[:, 0], hashing.partition_of(table[:, 0])))].T

    def get_state(self):
        """Return the counters, with those that admission keeps."""
        if isinstance(self.admission, Counter):
            self.state.candidate_epoch = self.admission.epoch
        if isinstance(self.admission, Bloom):
            self.state.n_bloom_added = self.admission.n_added
        return self.state

    # Training

    @quiet
    def find_or_insert(self, keys, step, counts=None, admit="policy"):
        step = self._enter(step)
        self._maintain(step)
        unique, inverse = deduplicate(keys)
        occurrences = count_occurrences(inverse, len(unique), counts)
        status = np.where(self.store.find(unique) >= 0, FOUND, PENDING).astype(np.uint8)
        others = np.flatnonzero(status != FOUND)
        before = self.admission.counts_before(unique[others])
        total = before + occurrences[others]
        admitted = np.full(len(others), admit == "always") | self.admission.is_admitted(total)
        new = others[admitted]
        n_born = self._make_room(len(new), unique)
        status[new] = REFUSED
        status[new[:n_born]] = INSERTED
        self._count_hits(unique, occurrences, status)
        stay = ~admitted
        self.admission.count(unique[others[stay]], before[stay], occurrences[others[stay]])
        self._born(unique[new[:n_born]], step, total[admitted][:n_born])
        self.state.n_refused += len(new) - n_born
        self.state.step = max(self.state.step, step)
        return Batch(self, self.find(keys)[0], unique, status, inverse, self.clears)

    def _count_hits(self, unique, occurrences, status):
        hit = status == FOUND
        at = self.store.find(unique[hit])
        self.store.freq[at] = saturate(self.store.freq[at] + occurrences[hit])
        self.log.note_written(unique[hit])

    def _ticket(self, batch_or_keys):
        """Return (unique keys, inverse, which had a row at forward)."""
        if isinstance(batch_or_keys, np.ndarray):
            unique, inverse = deduplicate(batch_or_keys)
            return unique, inverse, self.contains(unique)
        batch = batch_or_keys
        if batch.table is not self or batch.clears != self.clears:
            raise TicketError("ticket")
        return batch.keys, batch.inverse, batch.status <= INSERTED

    @quiet
    def apply_gradients(self, batch_or_keys, grads, step, lr=None):
        if self.optimizer is None:
            raise ArgumentError("no optimizer")
        if isinstance(batch_or_keys, PooledBatch):
            grads = pooling.id_gradients(batch_or_keys, grads)
            batch_or_keys = batch_or_keys.batch
        unique, inverse, had_row = self._ticket(batch_or_keys)
        g = floats.sum_duplicates(grads.astype(np.float32), inverse, len(unique))
        at = self.store.find(unique)
        has_row = had_row & (at >= 0)
        bad = has_row & ~np.isfinite(g).all(axis=1)
        if self.on_nonfinite == "raise" and bad.any():
            raise NonFiniteError("nonfinite")
        lr = self._learning_rate(step, lr)
        step = self._enter(step)
        self._count_training_step(step)
        skipped = bad if self.on_nonfinite == "skip" else np.zeros(len(bad), bool)
        go = has_row & ~skipped
        self._update(at[go], g[go], step, lr)
        n_dropped, n_stale = int((~had_row).sum()), int((had_row & (at < 0)).sum())
        self.state.n_grads_dropped += n_dropped
        self.state.n_grads_stale += n_stale
        self.state.n_nonfinite += int(skipped.sum())
        return ApplyReport(int(go.sum()), n_dropped, n_stale, int(skipped.sum()))

    def _learning_rate(self, step, lr):
        lr = self.optimizer.lr if lr is None else lr
        return lr(step) if callable(lr) else lr

    def _count_training_step(self, step):
        state = self.state
        if state.n_train_steps == 0 or step > state.last_train_step:
            beta1, beta2 = getattr(self.optimizer, "betas", (1.0, 1.0))
            state.n_train_steps += 1
            state.last_train_step = step
            state.beta1_power *= beta1
            state.beta2_power *= beta2
        state.step = max(state.step, step)

    def _update(self, at, g, step, lr):
        store, state = self.store, self.state
        scalars = optimizers.Scalars(lr, state.beta1_power, state.beta2_power)
        w, slots = optimizers.update(self.optimizer, scalars, store.values[at], store.slots[at], g)
        if self.rounding == "stochastic" and self.dtype != "float32":
            t = state.n_train_steps & UINT32_MAX
            words = hashing.words(self.stream, store.keys[at], hashing.ROUNDING, self.dim, t)
            r = hashing.uniform(words[:, : self.dim])
            store.values[at] = floats.narrow_stochastic(w, r, self.dtype)
        else:
            store.values[at] = floats.narrow(w, self.dtype)
        store.slots[at] = slots
        store.step[at] = np.maximum(store.step[at], step)
        self.log.note_written(store.keys[at])

    # Bags

    @quiet
    def pooled(self, keys, offsets, mode="sum", weights=None, step=None, padding=None):
        if padding is not None:
            keep = keys != padding
            offsets = np.concatenate(([0], np.cumsum(keep)))[offsets]
            keys, weights = keys[keep], None if weights is None else weights[keep]
        batch = None if step is None else self.find_or_insert(keys, step)
        rows = self.find(keys)[0] if batch is None else batch.rows
        out, divisor = pooling.pool(rows, offsets, mode, weights)
        return out if batch is None else PooledBatch(out, batch, offsets, weights, divisor)

    # Other writes

    @quiet
    def assign(self, keys, values, mode="replace", step=None):
        unique, inverse = deduplicate(keys)
        at = self.store.find(unique)
        is_new = at < 0
        result = self._assigned(unique, inverse, at, values.astype(np.float32), mode)
        if self.on_nonfinite == "raise" and not np.isfinite(result).all():
            raise NonFiniteError("nonfinite")
        step = self.state.step if step is None else step
        self._advance_base(step)
        n_new = int(is_new.sum())
        n_born = self._make_room(n_new, unique)
        step = self._enter(step)
        at[np.flatnonzero(is_new)[:n_born]] = self._born(unique[is_new][:n_born], step, 0)
        written = at >= 0
        self.store.values[at[written]] = floats.narrow(result[written], self.dtype)
        self.store.step[at[written]] = np.maximum(self.store.step[at[written]], step)
        self.log.note_written(unique[written])
        self.state.n_refused += n_new - n_born
        self.state.step = max(self.state.step, step)
        return AssignReport(len(unique) - n_new, n_born, n_new - n_born)

    def _assigned(self, unique, inverse, at, values, mode):
        """Return the values that the unique keys are to have, before rounding."""
        if mode == "replace":
            return values[last_occurrence(inverse, len(unique))]
        old = self._initial(unique)
        old[at >= 0] = self.store.values[at[at >= 0]]
        return old + floats.sum_duplicates(values, inverse, len(unique))

    def erase(self, keys):
        unique, _ = deduplicate(keys)
        at = self.store.find(unique)
        self._remove(at[at >= 0])
        self.admission.forget(unique)
        n_erased = int((at >= 0).sum())
        self.state.n_erased += n_erased
        return n_erased

    def clear(self):
        self.state.n_erased += len(self)
        self._remove(self.store.live())
        self.admission.clear()
        self.clears += 1

    @quiet
    def import_(self, rows):
        state = self.state
        at = self.store.find(rows.keys)
        n_new = int((at < 0).sum())
        if self.max_rows is not None and n_new > self.max_rows - len(self):
            raise CapacityError("full")
        latest = max(rows.step.tolist(), default=0)
        self._advance_base(latest)
        state.step = max(state.step, latest)
        state.n_steps_clamped += int((rows.step < state.step_base).sum())
        at[at < 0] = self._born(rows.keys[at < 0], 0, 0)
        self.store.values[at], self.store.slots[at] = rows.values, rows.slots
        self.store.freq[at] = rows.freq
        self.store.step[at] = np.maximum(rows.step, state.step_base)
        self.log.note_written(rows.keys)

    def changes(self):
        """Return (upserted, deleted) since the last reset, by (partition, key)."""
        return self.log.read()

    def reset_changes(self):
        self.log = ChangeLog()
