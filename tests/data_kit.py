"""What the tests of embstore.data share: files to write, readers to drain."""

import threading

import pyarrow as pa
import pyarrow.parquet as pq

from embstore.data import (
    ParquetReader,
    Ragged,
)

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1


def write(path, columns, row_group_size=None, **options):
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    pq.write_table(table, path, row_group_size=row_group_size, **options)
    return str(path)


def read_all(reader):
    """All batches of an epoch as Python lists, one list of rows per column."""
    rows = {}
    for batch in reader:
        for name, column in batch.items():
            values = (
                [bag.tolist() for bag in column] if isinstance(column, Ragged) else column.tolist()
            )
            rows.setdefault(name, []).extend(values)
    return rows


def column_of(tmp_path, array, **options):
    """What one Arrow array becomes."""
    path = write(tmp_path / "one.parquet", {"c": array})
    (batch,) = ParquetReader(path, ["c"], max(len(array), 1), **options)
    return batch["c"]


def prefetch_threads():
    return [t for t in threading.enumerate() if t.name == "embstore-prefetch"]
