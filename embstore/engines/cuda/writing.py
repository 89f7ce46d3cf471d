"""The verbs of a CUDA table that write values: apply_gradients and assign; semantics, section 6."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embstore.engines import native
from embstore.engines.cuda import training
from embstore.engines.cuda.batch import CudaTicket, Distinct
from embstore.engines.cuda.clock import BASE_SPAN
from embstore.engines.cuda.core import ADMITS_ALL, ADMITS_NONE
from embstore.engines.cuda.crossing import is_late, keys_at
from embstore.engines.cuda.device import Memory
from embstore.engines.cuda.inserting import CudaInserting
from embstore.engines.cuda.reading import POOL_MODES, CudaReading
from embstore.engines.engine import Floats, JoinedBatch, Keys, Part
from embstore.engines.types import ApplyReport, AssignReport, LateReport
from embstore.errors import NonFiniteError, TicketError


class CudaWriting(CudaInserting, CudaReading):
    """Training and assigning, and the pooling of both directions."""

    # ---- apply_gradients

    def _sum_up(self, batch: JoinedBatch, step: int) -> "Summed":
        """Sum the gradients of a batch: the part of apply_gradients that may fail."""
        given = [array for part in batch.parts for array in (part.keys, part.rows)]
        late = is_late(self._strict, *given)
        self._check_captured(late)
        self._check_bags(batch.parts, self._is_captured)
        if not late:
            self._check_late()
        distinct = self._distinct_of(batch)
        parts = [self._grad_part(place, part) for place, part in enumerate(batch.parts)]
        sums = training.sum_up(
            self._launcher,
            self._storage.view,
            distinct,
            parts,
            self._spec.dim,
            self._config["on_nonfinite"],
        )
        late = self._is_captured or (late and step - self._clock.step_base < BASE_SPAN)
        if late:
            report = self._launcher.alloc(8 * len(training.COUNTS))
            return Summed(self, batch, distinct, sums, None, report)
        counts = np.empty(len(training.COUNTS), np.uint64)
        self._launcher.give(sums.counts, counts)
        return Summed(self, batch, distinct, sums, counts, None)

    def _update(self, summed: "Summed", step: int) -> ApplyReport:
        """Update the rows by sums; raise before the first one changes if one is not finite."""
        report, distinct = None, summed.distinct
        if summed.counts is not None:
            counts = dict(zip(training.COUNTS, summed.counts.tolist(), strict=True))
            self._check_finite(distinct, counts)
            report = report_of(counts, self._spec.on_nonfinite)
        if not self._is_captured:
            self._advance_base(step)
        self._protect(distinct.rows, distinct.n, distinct.n_unique)
        if not self._is_captured:
            step = self._clamped(step)
            self._clock.train(step, self._betas)
        how = training.Step(
            summed.batch.lr,
            self._clock.beta1_power,
            self._clock.beta2_power,
            self._clock.n_train_steps,
            self._relative(step),
            self._has_row_sums,
            self._config["on_nonfinite"],
            self._now_address,
        )
        view, dim = self._storage.view, self._spec.dim
        training.update(self._launcher, view, distinct, summed.sums, dim, how)
        return report or self._late_report(summed)

    def _late_report(self, summed: "Summed") -> LateReport:
        """Return the report of a call that did not wait."""
        memory, queue = summed.report, self._launcher.queue
        assert memory is not None
        self._has_late = True
        queue.copy(memory.address, summed.sums.counts, 8 * len(training.COUNTS))

        home = getattr(queue, "real", queue)

        def read() -> ApplyReport:
            values = np.empty(len(training.COUNTS), np.uint64)
            home.download(memory.address, values)
            counted = dict(zip(training.COUNTS, values.tolist(), strict=True))
            return report_of(counted, self._spec.on_nonfinite)

        return LateReport(read)

    def _distinct_of(self, batch: JoinedBatch) -> Distinct:
        """Return the distinct keys of a ticket, or, without one, of the batch's parts."""
        ticket = batch.ticket
        if isinstance(ticket, CudaTicket):
            if ticket.engine is not self:
                raise TicketError(f"{self._where}: the batch is of another table")
            if ticket.n_clears != self._n_clears:
                raise TicketError(f"{self._where}: the batch is of before clear()")
            return ticket.distinct
        keys, _, n = self._upload_joined(batch.parts)
        distinct = self._distinct(keys, None, n)
        distinct.look_up(self._launcher, self._storage.view, ADMITS_NONE)
        return distinct

    def _check_finite(self, distinct: Distinct, counts: dict[str, int]) -> None:
        if self._spec.on_nonfinite != "raise" or not counts["n_nonfinite"]:
            return
        keys, _, inverse = self.download_ticket(distinct)
        raise NonFiniteError(
            f"{self._where}: the gradient of key {keys[inverse[counts['first_bad']]]} is not "
            f'finite; on_nonfinite="skip" would leave such rows alone'
        )

    @property
    def _betas(self) -> tuple[float, float] | None:
        p = self._config["optimizer_p"]
        return (p[0], p[1]) if self._storage.has_moments else None

    @property
    def _has_row_sums(self) -> bool:
        """Whether an update sums along rows: RowWiseAdagrad, or any optimizer with clip_norm."""
        return bool(self._config["clip_norm"] > 0.0 or self._config["optimizer_kind"] == 2)

    def _grad_part(self, place: int, part: Part) -> training.Part:
        rows = self._floats(f"grads_{place}", part.rows)
        if part.bags is None:
            return training.Part(len(part.rows), rows)
        bags = part.bags
        weights = 0 if bags.weights is None else self._floats(f"weights_{place}", bags.weights)
        offsets = self._upload(f"offsets_{place}", bags.offsets)
        mode = POOL_MODES[bags.mode]
        return training.Part(bags.n_keys, rows, bags.n_bags, offsets, mode, weights)

    # ---- assign

    def assign(self, keys: Keys, values: Floats, mode: str, step: int) -> AssignReport:
        """Replace, or add to, the values of `keys`."""
        n, dim, view = len(keys), self._spec.dim, self._storage.view
        with self._writing():
            distinct = self._distinct(keys_at(self._launcher, "keys", keys), None, n)
            distinct.look_up(self._launcher, view, ADMITS_ALL)
            given = self._floats("assigned", values)
            if mode == "replace":
                vectors = training.last_values(self._launcher, distinct, given)
            else:
                vectors = training.added_values(self._launcher, view, distinct, given, dim)
            if self._config["on_nonfinite"] == native.ON_NONFINITE["raise"]:
                has_bad = training.check(self._launcher, distinct, vectors, dim)
                if self._word(has_bad):
                    raise NonFiniteError(f"{self._where}: assign: a value is not finite")
            self._advance_base(step)
            tally = self._insert(distinct, max(step, self._clock.step_base), has_counts=False)
            assert tally is not None
            step = self._clamped(step)
            training.assign(
                self._launcher, self._storage.view, distinct, vectors, dim, self._relative(step)
            )
            self._clock.saw(step)
        return AssignReport(tally["n_found"], tally["n_new_rows"], tally["n_refused"])


@dataclass
class Summed:
    """The summed gradients of a batch.

    `counts` (COUNTS) are there where the call waits for them; `report`, memory for them, where not.
    """

    engine: CudaWriting
    batch: JoinedBatch
    distinct: Distinct
    sums: training.Sums
    counts: NDArray[np.uint64] | None
    report: Memory | None


def report_of(counts: dict[str, int], on_nonfinite: str) -> ApplyReport:
    """Return the report of what `training.COUNTS` says."""
    is_refused = on_nonfinite == "raise" and counts["n_nonfinite"] > 0
    n_skipped = counts["n_nonfinite"] if on_nonfinite == "skip" else 0
    n_applied = 0 if is_refused else counts["n_wanted"] - n_skipped
    return ApplyReport(n_applied, counts["n_dropped"], counts["n_stale"], n_skipped)
