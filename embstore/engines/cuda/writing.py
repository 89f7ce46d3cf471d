"""The verbs of a CUDA table that write values: apply_gradients and assign; semantics, section 6."""

from embstore.engines import native
from embstore.engines.cuda import pooling, training
from embstore.engines.cuda.batch import CudaTicket, Distinct
from embstore.engines.cuda.core import ADMITS_ALL, ADMITS_NONE
from embstore.engines.cuda.inserting import CudaInserting
from embstore.engines.engine import Floats, JoinedBatch, Keys, Part
from embstore.engines.types import ApplyReport, AssignReport
from embstore.errors import InternalError, NonFiniteError, TicketError

POOL_MODES = {"sum": 0, "mean": 1, "sqrtn": 2}


class CudaWriting(CudaInserting):
    """Training and assigning, and the pooling of both directions."""

    # ---- apply_gradients

    def _apply(self, batch: JoinedBatch, step: int) -> ApplyReport:
        with self._writing():
            distinct = self._distinct_of(batch)
            known = known_of(distinct)
            on_nonfinite = self._config["on_nonfinite"]
            parts = [self._grad_part(place, part) for place, part in enumerate(batch.parts)]
            sums = training.sum_up(
                self._launcher, self._storage.view, known, parts, self._spec.dim, on_nonfinite
            )
            counts = training.counted(self._launcher, sums.counts)
            self._check_finite(distinct, counts)
            self._advance_base(step)
            self._protect(distinct.rows, distinct.n, distinct.n_unique)
            step = self._clamped(step)
            self._clock.train(step, self._betas)
            how = training.Step(
                batch.lr,
                self._clock.beta1_power,
                self._clock.beta2_power,
                self._clock.n_train_steps,
                self._relative(step),
                self._has_row_sums,
                on_nonfinite,
            )
            training.update(self._launcher, self._storage.view, known, sums, self._spec.dim, how)
        n_skipped = counts["n_nonfinite"] if self._spec.on_nonfinite == "skip" else 0
        return ApplyReport(
            counts["n_wanted"] - n_skipped, counts["n_dropped"], counts["n_stale"], n_skipped
        )

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
        rows = self._upload(f"grads_{place}", part.rows)
        if part.bags is None:
            return training.Part(len(part.rows), rows)
        bags = part.bags
        weights = 0 if bags.weights is None else self._upload(f"weights_{place}", bags.weights)
        offsets = self._upload(f"offsets_{place}", bags.offsets)
        mode = POOL_MODES[bags.mode]
        return training.Part(bags.n_keys, rows, bags.n_bags, offsets, mode, weights)

    # ---- assign

    def assign(self, keys: Keys, values: Floats, mode: str, step: int) -> AssignReport:
        """Replace, or add to, the values of `keys`."""
        n, dim, view = len(keys), self._spec.dim, self._storage.view
        with self._writing():
            distinct = self._distinct(self._upload("keys", keys), None, n)
            distinct.look_up(self._launcher, view, ADMITS_ALL)
            known = known_of(distinct)
            given = self._upload("assigned", values)
            if mode == "replace":
                vectors = training.last_values(self._launcher, known, given)
            else:
                vectors = training.added_values(self._launcher, view, known, given, dim)
            if self._config["on_nonfinite"] == native.ON_NONFINITE["raise"]:
                has_bad = training.check(self._launcher, known, vectors, dim)
                if self._word(has_bad):
                    raise NonFiniteError(f"{self._where}: assign: a value is not finite")
            self._advance_base(step)
            tally = self._insert(distinct, max(step, self._clock.step_base), has_counts=False)
            step = self._clamped(step)
            training.assign(
                self._launcher, self._storage.view, known, vectors, dim, self._relative(step)
            )
            self._clock.saw(step)
        return AssignReport(tally["n_found"], tally["n_new_rows"], tally["n_refused"])

    # ---- pooling

    def _pool_keys(self, part: Part, missing: str) -> None:
        """Fill the pooled rows of a part that only reads."""
        launcher = self._launcher
        assert part.keys is not None
        if missing != "default":
            raise InternalError(f"bags read default rows for missing keys, not {missing!r}")
        n = len(part.keys)
        rows = launcher.scratch("pooled_ids", 4 * n)
        launcher.run(
            "find_rows",
            8 * n,
            table=self._storage.view,
            keys=self._upload("find_keys", part.keys),
            n=n,
            out=0,
            out_dtype=0,
            missing=0,
            found=0,
            freq=0,
            step=0,
            rows=rows,
            first_missing=0,
        )
        self._pool(part, rows, 0)

    def _pool_batch(self, distinct: Distinct, first: int, part: Part) -> None:
        """Fill the pooled rows of a part whose keys begin at position `first` of a batch."""
        self._pool(part, distinct.rows, distinct.inverse + 4 * first)

    def _pool(self, part: Part, rows: int, inverse: int) -> None:
        bags = part.bags
        assert bags is not None
        if bags.n_bags == 0:
            return
        weights = 0 if bags.weights is None else self._upload("pool_weights", bags.weights)
        out = self._launcher.scratch("rows_out", part.rows.nbytes)
        pooling.pool(
            self._launcher,
            self._storage.view,
            rows,
            self._upload("pool_offsets", bags.offsets),
            bags.n_bags,
            POOL_MODES[bags.mode],
            out,
            self._spec.dim,
            inverse=inverse,
            weights=weights,
        )
        self._launcher.queue.download(out, part.rows)


def known_of(distinct: Distinct) -> training.Batch:
    """Return distinct keys as training takes them."""
    return training.Batch(
        distinct.n,
        distinct.n_unique,
        distinct.keys,
        distinct.inverse,
        distinct.status,
        distinct.rows,
    )
