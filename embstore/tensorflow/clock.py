"""The step that a table is trained at: a variable, so that graphs read and move it."""

from typing import Any

import tensorflow as tf

from embstore import Table
from embstore._adapters import check_step, step_behind


class Clock:
    """Now, in steps: what training lookups and updates of a table happen at.

    `Optimizer` moves it by one in each step. Where a table is trained in backward (``fused=True``),
    an update does, once for all lookups of its step.
    """

    def __init__(self, table: Table) -> None:
        with tf.init_scope(), tf.device("CPU"):
            self.variable = tf.Variable(
                step_behind(table), trainable=False, dtype=tf.int64, name="embstore_step"
            )

    @property
    def now(self) -> int:
        """The step."""
        return int(self.variable.numpy())

    def set(self, now: int) -> None:
        """Set the step."""
        self.variable.assign(check_step(now))

    def advance(self) -> Any:
        """Go to the next step, in a graph or at once."""
        return self.variable.assign_add(1)

    def go_behind(self, step: Any) -> Any:
        """Go to the step behind one that was trained, unless the clock is there or further."""
        return self.variable.assign(tf.maximum(self.variable, step + 1))
