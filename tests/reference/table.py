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
from .eviction import first_of, is_evictable, is_selective, leaves
from .initial import initial_values
from .records import ApplyReport, AssignReport, Batch, EvictReport, PooledBatch, State
from .rows import ChangeLog, RowStore

FOUND, INSERTED, PENDING, REFUSED = range(4)
UINT32_MAX = 2**32 - 1
INT64_MAX = 2**63 - 1
BASE_SPAN = 2**32
BASE_KEPT = 2**31
quiet = np.errstate(all="ignore")


def deduplicate(keys):
    """Return unique keys in order of first occurrence, and the inverse."""
    unique, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return unique[order], rank[inverse.reshape(-1)]


def saturate(x):
    return np.minimum(x, UINT32_MAX).astype(np.uint32)


def next_time(step, period):
    return min((step // period + 1) * period, INT64_MAX)


class ReferenceTable:
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

    # Steps and periodic maintenance

    def _advance_base(self, step):
        """Advance step_base if `step` is far ahead of it; older rows take it as their step."""
        state = self.state
        if step - state.step_base >= BASE_SPAN:
            state.step_base = step - BASE_KEPT
            at = self.store.live()
            old = at[self.store.step[at] < state.step_base]
            self.store.step[old] = state.step_base
            self.log.note_written(self.store.keys[old])
            state.n_steps_clamped += len(old)

    def _enter(self, step):
        """Advance step_base if need be, and return the step to use."""
        self._advance_base(step)
        if step < self.state.step_base:
            self.state.n_steps_clamped += 1
        return max(step, self.state.step_base)

    def _maintain(self, step):
        state = self.state
        if isinstance(self.admission, Counter):
            state.n_candidates_expired += self.admission.expire(step)
        if self.bloom_halve_every and step >= state.next_bloom_halve:
            self.admission.halve()
            state.next_bloom_halve = next_time(step, self.bloom_halve_every)
        if self.freq_halve_every and step >= state.next_freq_halve:
            self.store.freq >>= np.uint32(1)
            self.log.note_written(self.store.keys[self.store.live()])
            state.next_freq_halve = next_time(step, self.freq_halve_every)
        if self.evict_every and step >= state.next_evict:
            selected = self._selected(self.eviction, step, self.pins)
            self._remove_evicted(selected)
            state.next_evict = next_time(step, self.evict_every)

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

    def _remove(self, at):
        self.log.note_removed(self.store.keys[at])
        self.store.remove(at)

    def _remove_evicted(self, at):
        """Remove rows and return them by key."""
        at = at[np.argsort(self.store.keys[at])]
        rows = self.store.rows(at)
        self._remove(at)
        self.state.n_evicted += len(at)
        if self.on_evict and len(at):
            self.on_evict(rows)
        return rows

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
        occurrences = np.zeros(len(unique), np.int64)
        np.add.at(occurrences, inverse, 1 if counts is None else counts.astype(np.int64))
        occurrences = np.minimum(occurrences, UINT32_MAX)
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

    # Eviction

    def _selected(self, policy, step, pins):
        store, at = self.store, self.store.live()
        age = np.maximum(0, step - store.step[at])
        chosen = is_evictable(policy, age, store.freq[at], store.values[at])
        return at[chosen & ~np.isin(store.keys[at], list(pins))]

    @quiet
    def evict(
        self,
        where=None,
        step=None,
        max_rows=None,
        keep_at_least=0,
        pins=None,
        dry_run=False,
        return_rows=False,
    ):
        if where is None and not any(is_selective(leaf) for leaf in leaves(self.eviction)):
            raise ArgumentError("no policy that selects rows")
        step = self.state.step if step is None else max(step, self.state.step_base)
        pins = self.pins | set(() if pins is None else pins.tolist())
        n_live, store = len(self), self.store
        at = self._selected(self.eviction if where is None else where, step, pins)
        n_selected = len(at)
        bound = max(0, n_live - keep_at_least)
        bound = bound if max_rows is None else min(bound, max_rows)
        at = at[np.lexsort((store.keys[at], store.step[at]))][:bound]
        n_evicted = 0 if dry_run else len(at)
        rows = store.rows(at[np.argsort(store.keys[at])]) if dry_run else self._remove_evicted(at)
        if not dry_run:
            self.state.step = max(self.state.step, step)
        return EvictReport(n_live, n_selected, n_evicted, True, rows if return_rows else None)

    def pin(self, keys):
        self.pins.update(keys.tolist())

    def unpin(self, keys):
        self.pins.difference_update(keys.tolist())

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
            last = np.zeros(len(unique), np.int64)
            np.maximum.at(last, inverse, np.arange(len(inverse)))
            return values[last]
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
        state.step = max([state.step, *rows.step.tolist()])
        self._advance_base(state.step)
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
