"""Checkpoints: directories of Arrow IPC files and one manifest; docs/format.md has every byte.

The room knows tables only by what they export and import, `TableView` and `TableSink`.
"""

from embstore.checkpoint.audit import VerifyReport, inspect, verify
from embstore.checkpoint.content import CandidateBlock, RowBlock, TableSink, TableView
from embstore.checkpoint.reader import LoadedCheckpoint, LoadedTable, load_tables
from embstore.checkpoint.writer import save_tables

__all__ = [
    "CandidateBlock",
    "LoadedCheckpoint",
    "LoadedTable",
    "RowBlock",
    "TableSink",
    "TableView",
    "VerifyReport",
    "inspect",
    "load_tables",
    "save_tables",
    "verify",
]
