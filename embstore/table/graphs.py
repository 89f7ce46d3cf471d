"""The verbs of a Table for CUDA graphs: to capture calls, and to replay them."""

from collections.abc import Iterator
from contextlib import contextmanager

from embstore.errors import ArgumentError
from embstore.policies._check import check_step
from embstore.table.base import TableBase


class TableGraphs(TableBase):
    """capturing and replaying."""

    @contextmanager
    def capturing(self) -> Iterator[None]:
        """Let find, find_or_insert and apply_gradients be captured in a CUDA graph.

        Inside, make the calls once as usual, which takes their memory; then begin the capture of a
        stream, make the same calls on it, and end it. All arrays are of the card, all calls have
        ``out=``, and the table is not strict. Steps and rates given to captured calls are not
        used: each replay has its own, see `replaying`. The graph stays good when the table grows,
        and needs the table to live.

        Raises
        ------
        ArgumentError
            If the table is on the CPU, or has an `on_evict`, which wants rows after every call.
        """
        self._check_card("Table.capturing")
        with self._engine.capturing():
            yield

    @contextmanager
    def replaying(
        self, step: int | None = None, lr: float | None = None, stream: object = None
    ) -> Iterator[None]:
        """Frame one replay of a graph: queue it on the stream inside.

        What is due at the step (eviction, decay) is done before, and room is made for as many new
        rows as the captured batches have keys. Reads and writes of other streams keep their order.

        Parameters
        ----------
        step
            The step of the replay; None if nothing but find was captured.
        lr
            The learning rate; the table's own by default.
        stream
            Where the graph will be queued; by default the device's current stream.

        Raises
        ------
        ArgumentError
            If the table is on the CPU, or `max_rows` might be passed.
        """
        where = "Table.replaying"
        self._check_card(where)
        rate = 0.0
        if step is not None:
            step = check_step(where, step)
            rate = self._rate(lr, step, where) if self._spec.optimizer is not None else 0.0
        with self._on_stream(stream, where), self._writing, self._engine.replaying(step, rate):
            yield

    def _check_card(self, where: str) -> None:
        if self._device == "cpu":
            raise ArgumentError(f"{where}: graphs are of tables on a card; this one is on the cpu")
