"""What keeps a table in order: its steps, the work that is due at a step, and eviction."""

import numpy as np

from embstore.errors import ArgumentError

from .admission import Counter
from .eviction import is_evictable, is_selective, leaves
from .records import EvictReport

INT64_MAX = 2**63 - 1
BASE_SPAN = 2**32
BASE_KEPT = 2**31
quiet = np.errstate(all="ignore")


def next_time(step, period):
    return min((step // period + 1) * period, INT64_MAX)


class Upkeep:
    """The part of ReferenceTable for docs/semantics.md, sections 4 (point 1) and 7."""

    # Steps and periodic maintenance

    def _advance_base(self, step):
        """Advance step_base if `step` is far ahead of it; older rows take it as their step."""
        state = self.state
        if step - state.step_base >= BASE_SPAN:
            state.step_base = step - BASE_KEPT
            state.step = max(state.step, state.step_base)
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
