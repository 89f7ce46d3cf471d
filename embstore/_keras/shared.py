"""SharedTable: a table in the configs of layers."""

from typing import Any

import keras

from embstore import Table


@keras.saving.register_keras_serializable("embstore")
class SharedTable:
    """A table in the configs of layers: its parameters, shared again by those that shared it."""

    def __init__(self, table: Table) -> None:
        self.table = table

    def get_config(self) -> dict[str, Any]:
        """Return the parameters of the table."""
        return {"table": self.table.config()}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "SharedTable":
        """Return a new table of these parameters, on the CPU."""
        return cls(Table.from_config(config["table"]))
